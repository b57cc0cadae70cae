"""cpulm from Python: what ``import cpulm`` gives."""
