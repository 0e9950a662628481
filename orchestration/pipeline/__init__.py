"""Prompts stream through rollout, scoring and learner."""
