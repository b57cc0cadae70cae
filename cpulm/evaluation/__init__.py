"""How good a trained model is: loss on text, samples, memorization, multiple choice."""
