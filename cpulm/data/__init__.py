"""Text to batches: readers, tokenizers, token files, the batch loader and the built-in corpus."""
