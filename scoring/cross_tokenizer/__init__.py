"""Teachers with a tokenizer of their own."""
