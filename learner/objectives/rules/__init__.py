"""Which compositions of an objective are refused, and why."""
