"""Text generation: sampling and the loop over tokens."""
