"""One module for each file format: generators of documents, in constant memory."""
