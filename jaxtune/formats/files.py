"""What every reader of adapters needs: its config, its tensors, and checks with clear errors."""

from __future__ import annotations

import difflib
import os
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from jaxtune import peft, schema, tree
from jaxtune.errors import UserError
from jaxtune.models import hf, quantize
from jaxtune.models.names import Tensor


class ImportedMethod(NamedTuple):
  """One method of an adapter that was read.

  Attributes:
    section: the method's config section, {"name": "lora", "rank": 8, ...}.
    trained, fixed: {site path: {array name: array}}, as the method's `init` returns them.
  """

  section: dict
  trained: dict[str, dict[str, np.ndarray]]
  fixed: dict[str, dict[str, np.ndarray]]


class Imported(NamedTuple):
  """An adapter as our arrays.

  Attributes:
    methods: its one method; of a union, each of them.
    params: {path in the model's tree: array}: a head, and what else of the model was trained.
    labels: names of a head's labels; () where the files state none.
    source: what the files say of themselves: {"format", "type", "base", "version"}.
  """

  methods: tuple[ImportedMethod, ...]
  params: dict[str, np.ndarray]
  labels: tuple[str, ...] = ()
  source: dict = {}

  @property
  def section(self) -> dict:
    """The config section of its one method, or of the stack of its methods."""
    if len(self.methods) == 1:
      return self.methods[0].section
    return {"name": "stack"} | {method.section["name"]: method.section for method in self.methods}


def adapter_config(path: Path) -> tuple[str, dict]:
  """Reads an adapter_config.json: returns its format, "peft" or "adapterhub", and its content.

  Raises:
    UserError: for a file of neither format.
  """
  config = schema.read_json(path)
  if isinstance(config, dict) and "peft_type" in config:
    return "peft", config
  if isinstance(config, dict) and isinstance(config.get("config"), dict):
    return "adapterhub", config
  raise UserError(f"{path} is neither PEFT's (it has no peft_type) nor AdapterHub's (no config)")


def initial(section: dict, pretrained: hf.Pretrained) -> tuple[peft.Arrays, peft.Arrays]:
  """Returns what a method starts training with: (its trained arrays' shapes, its fixed numbers)."""
  methods = peft.build(section)
  sites, params = peft.find_sites(pretrained.model), pretrained.params
  init = lambda key, params: peft.init(key, methods, sites, params).overlay
  shapes = jax.eval_shape(init, jax.random.key(0), params).tuned["peft"]
  fixed = jax.jit(lambda *inputs: init(*inputs).hyper)(jax.random.key(0), params)
  fixed = peft.arrays_of(methods[0], jax.tree.map(np.asarray, fixed))
  return peft.arrays_of(methods[0], shapes), fixed


def table(pretrained: hf.Pretrained) -> list[Tensor]:
  """Lists the model's weights: each under our path and under its name in PyTorch."""
  return hf.family_module(pretrained.family).names(pretrained.model.config)


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
    try:
      arrays = {key: np.asarray(x, np.float32) for key, x in load_file(path).items()}
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
      raise UserError(f"{path} is damaged, truncated or of an unknown type: {error}") from error
  elif (folder / pickled).exists():
    arrays = _pickled(folder / pickled, name)
  else:
    raise UserError(f"{folder} has no weights: expected {name}")
  for key, x in arrays.items():
    if not np.isfinite(x).all():
      raise UserError(f"{key} in {folder} holds NaN or infinity; expected finite weights")
  return arrays


def _pickled(path: Path, name: str) -> dict[str, np.ndarray]:
  """Reads a pickle of tensors with torch, which refuses to execute what else is in it."""
  try:
    import torch
  except ImportError as error:
    raise UserError(
      f"{path} is a pickle, which is read with torch alone: install it (pip install "
      f"'jaxtune[torch]'), or save the adapter as {name}"
    ) from error
  try:
    loaded = torch.load(path, map_location="cpu", weights_only=True)
    if not all(isinstance(key, str) for key in loaded):
      raise TypeError("its keys are no names")
    return {key: x.detach().float().numpy() for key, x in loaded.items()}
  except Exception as error:  # of many kinds: the file is a stranger's
    raise UserError(f"{path} cannot be read as plain tensors: {error!r:.200}") from error


def shapes(pretrained: hf.Pretrained) -> dict[str, tuple[int, ...]]:
  """Returns {path: shape} of a model's weights; quantised ones have the shape of the original."""
  whole = jax.eval_shape(quantize.dequantised, pretrained.params)
  return {path: leaf.shape for path, leaf in tree.flatten(whole).items()}


def check_shape(name: str, shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
  """Raises UserError for a tensor whose shape is not the one that the model asks for."""
  if shape != expected:
    raise UserError(
      f"{name} is {shape}, expected {expected}: the adapter is of another base, or its "
      "config belongs to another adapter"
    )


def refuse_foreign(foreign: Collection[str], known: Iterable[str]) -> None:
  """Raises UserError for tensors that nothing reads, and names the most similar known one."""
  if foreign:
    key = min(foreign)
    close = difflib.get_close_matches(key, list(known), 1)
    hint = f"; did you mean {close[0]!r}?" if close else ": its module is not a target"
    raise UserError(f"the adapter has {key}, which nothing reads{hint}")


def refuse_missing(missing: Collection[str]) -> None:
  """Raises UserError for tensors that the config asks for and the files do not hold."""
  if missing:
    more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
    raise UserError(f"the adapter lacks {min(missing)}{more}, which its config asks for")


def check_base(named: str | None, pretrained: hf.Pretrained) -> None:
  """Raises UserError where the files name another base than the model's folder.

  Names are compared by their last part: a base may be a local folder here and the hub's there.
  """
  if not named or pretrained.folder is None:
    return
  if _name(named) != _name(os.path.abspath(pretrained.folder)):
    raise UserError(
      f"the adapter was trained over {named}, but the model is {pretrained.folder}; if they are "
      "the same, write the latter into adapter_config.json (base_model_name_or_path, model_name)"
    )


def _name(path: str | Path) -> str:
  """Returns the last part of a model's name; of a path in the hub's cache, the model's there."""
  parts = Path(path).parts
  cached = [part.rpartition("--")[2] for part in parts if part.startswith("models--")]
  return (cached or parts or ("",))[-1].lower()
