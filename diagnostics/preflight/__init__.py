"""Checks of a set-up before it trains: what was seen, what it means and what to change, from records alone."""
