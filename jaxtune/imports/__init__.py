"""Reads adapters that others wrote, in PEFT's and AdapterHub's formats, into our arrays.

What is read is what our own training would have left: it can be trained on, compared, composed and
exported again. Nothing in a folder is executed, and every tensor in it is accounted for.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from jaxtune import peft as methods_
from jaxtune import tree
from jaxtune.errors import UserError


class Imported(NamedTuple):
  """An adapter as our arrays.

  Attributes:
    section: the method's config section, {"name": "lora", "rank": 8, ...}.
    trained, fixed: {site path: {array name: array}}, as the method's `init` returns them.
    params: {path in the model's tree: array}: a head, and what else of the model was trained.
    labels: names of a head's labels; () where the files state none.
    source: what the files say of themselves: {"format", "type", "base", "version"}.
  """

  section: dict
  trained: dict[str, dict[str, np.ndarray]]
  fixed: dict[str, dict[str, np.ndarray]]
  params: dict[str, np.ndarray]
  labels: tuple[str, ...] = ()
  source: dict = {}


def read(folder: str | Path, pretrained) -> Imported:
  """Reads an adapter's folder, in the format that its adapter_config.json says.

  Raises:
    UserError: for a folder that is no adapter, is damaged, or does not fit the model.
  """
  from jaxtune.imports import adapterhub, peft

  folder = Path(folder).expanduser()
  path = folder / "adapter_config.json"
  try:
    config = json.loads(path.read_text())
  except OSError as error:
    raise UserError(
      f"{folder} is no adapter: it has no adapter_config.json; expected a folder that PEFT, "
      "AdapterHub or `jaxtune export` wrote"
    ) from error
  except ValueError as error:
    raise UserError(f"{path} is no JSON ({error})") from error
  if isinstance(config, dict) and "peft_type" in config:
    return peft.read(folder, config, pretrained)
  if isinstance(config, dict) and isinstance(config.get("config"), dict):
    return adapterhub.read(folder, config, pretrained)
  raise UserError(f"{path} is neither PEFT's (it has no peft_type) nor AdapterHub's (no config)")


def lay(imported: Imported, pretrained, name: str | None = None):
  """Lays an imported adapter over its model: returns (methods, tuned, hyper, base).

  Args:
    name: of the method in the trees, by default its kind.
  """
  method = methods_.build(imported.section)[0]
  method = method._replace(name=name or method.name)
  arrays = lambda xs: {path: jnp.asarray(x) for path, x in xs.items()}
  moved, flat = imported.params, tree.flatten(pretrained.params)
  tuned = {
    "params": tree.unflatten(arrays(moved)),
    "peft": tree.unflatten(arrays(methods_.placed(method, imported.trained))),
  }
  hyper = tree.unflatten(arrays(methods_.placed(method, imported.fixed)))
  base = tree.unflatten({path: x for path, x in flat.items() if path not in moved})
  return (method,), tuned, hyper, base


def tensors(folder: Path, name: str, pickled: str) -> dict[str, np.ndarray]:
  """Reads the weights of an adapter in fp32, from safetensors or, with torch, from its pickle.

  Args:
    name: of the safetensors file.
    pickled: of the file that `torch.load(weights_only=True)` reads where there is no other.

  Raises:
    UserError: for no file, a damaged one, and numbers that are not finite.
  """
  path = folder / name
  if path.exists():
    found = _safe(path)
  elif (folder / pickled).exists():
    found = _pickled(folder / pickled, name)
  else:
    raise UserError(f"{folder} has no weights: expected {name}")
  for key, x in found.items():
    if not np.isfinite(x).all():
      raise UserError(f"{key} in {folder} holds NaN or infinity; expected finite weights")
  return found


def _safe(path: Path) -> dict[str, np.ndarray]:
  try:
    return {key: np.asarray(x, np.float32) for key, x in load_file(path).items()}
  except (SafetensorError, ValueError, KeyError, TypeError) as error:
    raise UserError(f"{path} is damaged, truncated or of an unknown type: {error}") from error


def _pickled(path: Path, name: str) -> dict[str, np.ndarray]:
  try:
    import torch
  except ImportError as error:
    raise UserError(
      f"{path} is a pickle, which is read with torch alone: install it (pip install "
      f"'jaxtune[torch]'), or save the adapter as {name}"
    ) from error
  try:
    loaded = torch.load(path, map_location="cpu", weights_only=True)
    return {key: x.detach().float().numpy() for key, x in loaded.items()}
  except Exception as error:  # of many kinds: the file is a stranger's
    raise UserError(f"{path} cannot be read as plain tensors: {error!r:.200}") from error
