"""cpulm: train small language models from scratch on the computer you already have."""

__version__ = "0.1.0"
