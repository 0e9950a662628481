"""The home of objectives: adding one is adding one small file that registers itself."""
