"""Analyzes run logs: curves, timeline, findings, comparisons. Never loads torch."""
