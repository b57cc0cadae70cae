"""Checkpoint files: format, loading, and the data that belongs to one."""
