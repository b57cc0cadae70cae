"""The report: one self-contained page of a run, or of several, and the same pictures as files."""
