"""A teacher behind a completions endpoint."""
