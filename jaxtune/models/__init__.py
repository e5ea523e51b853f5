"""Defines language models as plain flax.linen modules, and reads and writes their folders."""
