"""Rules that every generated text obeys, enforced token by token."""
