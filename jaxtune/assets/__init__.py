"""Folders of the bundled model and of the bundled instruction data."""

from __future__ import annotations

from pathlib import Path

TINY = Path(__file__).parent / "tiny"
INSTRUCTIONS = Path(__file__).parent / "instructions"
