"""What a person sees: the live dashboard, plain lines, JSON lines, tables."""
