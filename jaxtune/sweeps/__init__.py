"""Sweeps: the grid of trials, which of them share a compiled program, and the report on them."""
