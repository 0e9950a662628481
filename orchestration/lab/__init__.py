"""Tiny teachers and students with known outcomes, trained for real: every phenomenon of the field by one command."""
