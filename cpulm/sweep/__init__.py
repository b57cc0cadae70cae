"""Sweeps: many runs that differ in a few settings, trained as processes, halved and compared."""
