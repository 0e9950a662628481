"""Gradient alignment: where a teacher pulls the student towards what it succeeds with."""
