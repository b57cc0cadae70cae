"""What a run will need before it starts: memory, disk, time, and the loss to expect. Never loads torch."""
