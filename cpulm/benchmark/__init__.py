"""How fast this machine trains, and what it can train in a given time."""
