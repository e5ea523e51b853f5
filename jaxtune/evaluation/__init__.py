"""Judges models: losses, generated text, predictions and their metrics, and comparisons."""
