"""Objectives that mean nothing or something else than they seem to: what the tests of the rules are run with."""
