"""Checkpoint files: their format, loading them, and the data that belongs to one."""
