"""The ground: what all rooms share."""
