"""All output: the live dashboard, plain lines, JSON lines, tables, the page."""
