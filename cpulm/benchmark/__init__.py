"""Measures how fast this machine trains, and plans what it can train in a given time."""
