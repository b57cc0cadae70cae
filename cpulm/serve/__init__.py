"""A trained model behind an HTTP interface like OpenAI's, with a page to write with it."""
