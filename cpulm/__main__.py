"""``python -m cpulm`` is the same program as ``cpulm``."""

from cpulm.cli.main import main

if __name__ == "__main__":
    main()
