"""What a trained model does: losses by token, attention, embeddings, weights."""
