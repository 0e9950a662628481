"""Records that travel between workers: frozen, of ids, masks and numpy arrays."""
