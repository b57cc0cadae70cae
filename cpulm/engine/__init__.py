"""One run from start to end: build, train, evaluate, checkpoint, generate; and the machine it runs on."""
