"""A run: from its config to a trained group of trials, its folder, and back."""
