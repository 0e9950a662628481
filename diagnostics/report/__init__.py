"""Self-contained pages for people: of a run, of a recipe and of a diagnosis. Nothing in them is fetched."""
