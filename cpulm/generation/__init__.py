"""Text from a model: sampling and the loop over tokens."""
