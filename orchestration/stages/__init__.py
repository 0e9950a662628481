"""Stages of a recipe; each reads artifacts and writes artifacts."""
