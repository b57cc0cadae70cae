"""The transformer and its parts, and what it counts: parameters and floating-point operations."""
