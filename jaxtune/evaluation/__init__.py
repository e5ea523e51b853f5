"""Measures of a tuned model: loss, generation and the metrics of text."""
