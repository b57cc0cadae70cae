"""Estimates what a run will need before it starts: memory, disk, time; predicts its loss. No torch."""
