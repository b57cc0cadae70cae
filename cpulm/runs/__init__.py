"""The folders of runs: lock, status, stop file, supervisor state. Never loads torch."""
