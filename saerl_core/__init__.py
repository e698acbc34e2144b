"""SAERL: curate RL prompts with a model's own SAE features. Plain functions on plain data."""
