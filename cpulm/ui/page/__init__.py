"""The report: one self-contained page about one run or several, and the same charts as files."""
