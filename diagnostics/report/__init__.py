"""Self-contained pages for people: of a run and of a diagnosis."""
