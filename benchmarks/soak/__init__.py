"""Long tests of the promise that no work is lost; ``python -m benchmarks.soak --help`` lists them."""
