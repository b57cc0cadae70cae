"""From text to batches: readers, tokenizers, token files, the loader, the built-in corpus."""
