"""What a run's record tells once it is looked at: curves, happenings, findings, and runs side by side."""
