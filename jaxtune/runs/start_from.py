"""Starts training from an adapter: `method.start` is a run's folder, PEFT's or AdapterHub's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from jaxtune import formats, peft, tree
from jaxtune.errors import UserError
from jaxtune.files import expanded
from jaxtune.models.heads import is_head
from jaxtune.runs import folder as runs
from jaxtune.runs.trial import Trial

# The config, not the adapter, decides the fixed numbers whose names begin with these.
SET_BY_CONFIG = ("dropout", "rate:", "orth_weight")
# The adapter decides these, and the config, which is to describe it, has to agree: {name: options}.
SET_BY_ADAPTER = {
  "scale": "alpha or scale", "target": "target_rank", "first": "first", "edited": "layers",
  "offset": "shift", "mask": "length or lengths",
}  # fmt: skip
HOW_DRAWN = ("initialise",)  # options of arrays that are not drawn here


def continued(trial: Trial, overlay: peft.Overlay) -> peft.Overlay:
  """Replaces what methods drew by the arrays of the adapters that they start from.

  The optimizer starts anew, and what concerns training alone (dropout, learning-rate ratios, the
  weight of a penalty) is the config's. All else must be alike in both, such as the scale.

  Raises:
    UserError: where an adapter is of another base, method, option or shape than the config says.
  """
  for method in trial.methods:
    if method.start is not None:
      overlay = _continued(method, trial, overlay)
  return overlay


def _continued(method: peft.Method, trial: Trial, overlay: peft.Overlay) -> peft.Overlay:
  folder = expanded(method.start)
  if _is_foreign(folder) and any(_is_traced(x) for x in jax.tree.leaves(trial.pretrained.params)):
    return overlay  # such an adapter is read beside weights, and its shapes are these
  trained, fixed, params, labels = _read(method, trial, folder)
  drawn, numbers = overlay.arrays_of(method)
  trained = _fit(method, drawn, trained, "trained arrays")
  fixed = _fit(method, numbers, fixed, "fixed numbers")
  moved = tree.flatten(overlay.tuned["params"])
  of_task = trial.pretrained.model.config.head is not None  # whose head is trained anew
  lost = [path for path in params if path not in moved and not (of_task and is_head(path))]
  if lost:
    raise UserError(
      f"method.start: {method.start} has trained {lost[0]} too, which no method of the config "
      "trains: add the method that did, or export it merged and train on that model"
    )
  taken = {path: jnp.asarray(x) for path, x in params.items() if path in moved}
  own = trial.dataset.labels
  if labels and own and labels != tuple(own) and any(is_head(path, pooler=False) for path in taken):
    raise UserError(
      f"method.start: the head in {method.start} has the labels {', '.join(labels)}, expected "
      f"those of the data, {', '.join(own)}, in their order: set data.labels to the former"
    )
  deltas = peft.with_arrays(method, overlay.tuned["peft"], trained)
  tuned = {"params": tree.unflatten(moved | taken), "peft": deltas}
  return peft.Overlay(tuned, peft.with_arrays(method, overlay.hyper, fixed))


def _is_foreign(folder: Path) -> bool:
  """Says whether a folder is of PEFT's or AdapterHub's format."""
  return (folder / "adapter_config.json").exists()


def _is_traced(leaf: Any) -> bool:
  """Says whether an array is a shape alone, as where a program is outlined."""
  return isinstance(leaf, jax.core.Tracer)


def _read(
  method: peft.Method, trial: Trial, folder: Path
) -> tuple[dict, dict, dict, tuple[str, ...]]:
  """Returns an adapter's (trained arrays, fixed numbers, moved weights, labels, () if unknown)."""
  if _is_foreign(folder):
    found = formats.read(folder, trial.pretrained)
    labels = trial.config["data"]["labels"]
    formats.check_named(found, trial.pretrained, labels, trial.dataset.labels, folder)
    kinds = [part.section["name"] for part in found.methods]
    if method.kind not in kinds:
      raise _other_kind(method, folder, kinds)
    part = found.methods[kinds.index(method.kind)]
    _check_words(method, part.section)
    return part.trained, part.fixed, found.params, found.labels
  try:
    path, record, flat = runs.read(folder)
  except UserError as error:
    raise UserError(f"method.start: {error}") from error
  tree.check_finite(flat, f"method.start: {path}")
  if trial.fingerprint and record["base"] != trial.fingerprint:
    raise UserError(
      f"method.start: {path.parent} was trained over other base weights, or with another head: "
      "expected the same model.path, with a head of the same kind and number of labels"
    )
  parts = peft.sections(record["config"]["method"])
  names = [name for name, part in parts.items() if part["name"] == method.kind]
  names = [method.name] if method.name in names else names
  if len(names) != 1:
    raise _other_kind(method, folder, [part["name"] for part in parts.values()])
  _check_words(method, parts[names[0]])
  trees = tree.unflatten(flat)
  theirs = method._replace(name=names[0])
  arrays = (peft.arrays_of(theirs, trees.get(part, {})) for part in ("peft", "hyper"))
  return *arrays, tree.flatten(trees.get("params", {})), tuple(record["labels"])


def _other_kind(method: peft.Method, folder: Path, kinds: Sequence[str]) -> UserError:
  held = " + ".join(kinds)
  return UserError(f"method.start: {folder} holds {held}, expected one {method.kind}")


def _check_words(method: peft.Method, section: dict) -> None:
  """Raises UserError where an option that no array shows differs from that of an adapter's section.

  These are all words, such as the placement and the activation of an adapter.
  """
  (theirs,) = peft.build(section)
  for name, value in method.options.items():
    own = theirs.options.get(name, value)
    if own != value and isinstance(value, str) and name not in HOW_DRAWN:
      raise UserError(f"method.{name} is {value!r}, expected {own!r}, as {method.start} has")


def _can_say(method: peft.Method, path: str, arrays: dict[str, jax.Array]) -> bool:
  """Says whether a config can give an adapter's number: not scales that differ between layers.

  Nor those that differ between sites, of a method without `alphas`.
  """
  if not path.endswith("/scale"):
    return True
  scales = [x for name, x in arrays.items() if name.endswith("/scale")]
  alike = [arrays[path]] if "alphas" in method.groupable else scales
  return len(np.unique(np.concatenate(list(map(np.ravel, alike))))) == 1


def _fit(method: peft.Method, drawn: peft.Arrays, found: peft.Arrays, what: str) -> peft.Arrays:
  """Replaces drawn arrays by an adapter's, all but those named in `SET_BY_CONFIG`.

  Raises:
    UserError: unless the adapter has the arrays that the config asks for, in their shapes.
  """
  old = lambda arrays: {n: x for n, x in arrays.items() if not n.startswith(SET_BY_CONFIG)}
  mine, theirs = (
    peft.by_path(method, {site: old(arrays) for site, arrays in some.items()})
    for some in (drawn, found)
  )
  if mine.keys() != theirs.keys():
    path = sorted(mine.keys() ^ theirs.keys())[0]
    raise UserError(
      f"method.start: {method.start} and the config differ in their {what}: {path} is in "
      f"{'the config' if path in mine else 'the adapter'} alone; compare targets and options"
    )
  for path, leaf in mine.items():
    if theirs[path].dtype != leaf.dtype:
      raise UserError(
        f"method.start: {path} is {theirs[path].dtype} in {method.start}, expected {leaf.dtype}"
      )
    if leaf.shape != theirs[path].shape:
      raise UserError(
        f"method.start: {path} is {np.shape(theirs[path])} in {method.start}, but the config makes "
        f"it {leaf.shape}: give the adapter's own rank, width or length"
      )
    option = SET_BY_ADAPTER.get(path.rpartition("/")[2])
    if not option or _is_traced(leaf) or not _can_say(method, path, theirs):
      continue  # of shapes alone nothing is drawn
    if not np.allclose(leaf, theirs[path], rtol=1e-5):
      said = " and ".join(str(np.unique(x)) for x in (theirs[path], leaf))
      raise UserError(
        f"method.start: {path} is not the same in {method.start} and in the config: {said}; give "
        f"the adapter's own {option}"
      )
  joined = {site: drawn[site] | old(found.get(site, {})) for site in drawn}
  return jax.tree.map(jnp.asarray, joined)
