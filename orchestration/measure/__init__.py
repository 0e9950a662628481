"""What is measured with workers that run."""
