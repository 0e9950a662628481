"""What teachers say about a trajectory: which token ids to ask for, and the workers that answer."""
