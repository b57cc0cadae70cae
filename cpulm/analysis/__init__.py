"""What the log of a run says: curves, timeline, findings, comparisons. Never loads torch."""
