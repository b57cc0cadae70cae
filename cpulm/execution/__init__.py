"""How a model is executed: device, threads, precision, compilation, random state, timing."""
