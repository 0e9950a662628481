"""Hydra config groups: values only."""
