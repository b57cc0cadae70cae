"""Evaluates a trained model: loss on text, samples, memorization, multiple choice."""
