"""Models as other programs store them: which blocks they know, the names of the weights, and their files."""
