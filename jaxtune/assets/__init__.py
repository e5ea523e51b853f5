"""What is bundled: a small pretrained model and a small instruction data set."""

from __future__ import annotations

from pathlib import Path

TINY = Path(__file__).parent / "tiny"
INSTRUCTIONS = Path(__file__).parent / "instructions"
