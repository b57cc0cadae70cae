"""The transformer and its parts, and its counts of parameters and floating-point operations."""
