"""Grids of trials, grouped into compiled programs, and what is learnt from them."""
