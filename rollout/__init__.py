"""Student trajectories: prompts, chat templates, verifiers, the vLLM worker, and how new weights enter it."""
