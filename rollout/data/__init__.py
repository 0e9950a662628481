"""Where prompts come from: files, hubs and tasks made on the spot."""
