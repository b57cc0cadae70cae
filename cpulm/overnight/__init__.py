"""A run without a person beside it: supervisor, summary, autostart, report page. Never loads torch."""
