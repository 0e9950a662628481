"""What needs files, models and prompts, done before anything is started."""
