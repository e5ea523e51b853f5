"""Checks that a configuration can work, and what it will cost, before anything expensive starts."""
