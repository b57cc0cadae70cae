"""Rows of tables and JSON objects: templates, conditions, and the documents made with them."""
