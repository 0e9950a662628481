"""Judgement without training: whether a run will work, and whether it still does."""
