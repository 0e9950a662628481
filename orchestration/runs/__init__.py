"""Runs and recipes from their folder to their exit code."""
