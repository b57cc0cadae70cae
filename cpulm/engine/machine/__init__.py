"""What this computer is and what it lends to this process, read without torch."""
