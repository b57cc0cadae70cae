"""One run from start to end: build, train, validate, save, finish."""
