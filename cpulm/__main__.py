"""``cpulm``, ``python -m cpulm``, and the file that :mod:`cpulm.command` starts: one program.

It answers Ctrl-C from the first moment: loading the commands takes a fifth of a second.
"""

import sys

if __name__ == "__main__":
    # Python has put the working folder (for ``-m``) or this file's folder first on the module path. Neither
    # is a place for modules: a user's ``random.py`` would run instead of Python's own. Nothing may be
    # imported before this line.
    if not (sys.flags.isolated or getattr(sys.flags, "safe_path", False)):
        del sys.path[0]


def _import_this_package() -> None:
    """Make ``cpulm`` the package that this file is part of, wherever it is and whatever else is installed."""
    from importlib import util
    from pathlib import Path

    folder = Path(__file__).absolute().parent
    spec = util.spec_from_file_location(
        "cpulm", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None
    assert spec.loader is not None
    package = sys.modules["cpulm"] = util.module_from_spec(spec)
    spec.loader.exec_module(package)


def main() -> None:
    """Load the commands and run the one that was typed."""
    try:
        if not __package__:
            _import_this_package()
        from cpulm.cli.main import main
    except KeyboardInterrupt:
        sys.stderr.write("stopped: aborted by Ctrl-C\n")
        sys.exit(130)
    main()


if __name__ == "__main__":
    main()
