"""Who computes a teacher's log-probs."""
