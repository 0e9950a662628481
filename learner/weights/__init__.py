"""How weights leave the learner."""
