"""Reads PEFT's format: adapter_config.json and adapter_model.safetensors."""

from __future__ import annotations

from pathlib import Path

from jaxtune.errors import UserError


def read(folder: Path, config: dict, pretrained):
  """Reads an adapter that PEFT, or our own export, wrote."""
  raise UserError(f"peft_type {config['peft_type']!r} cannot be read yet")
