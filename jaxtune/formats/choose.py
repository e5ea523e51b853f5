"""Chooses the format in which methods are exported."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtune import peft, tree
from jaxtune.errors import UserError, check_known
from jaxtune.formats.peft import layout
from jaxtune.models.heads import is_head

FORMATS = ("auto", "peft", "adapterhub", "merged")


def own_format(method: peft.Method) -> str:
  """Returns the format that a method is exported in if nothing else is asked for.

  Raises:
    UserError: for a method that no format of PyTorch's libraries holds.
  """
  unshifted = method.kind == "prefix" and not method.options.get("shift", True)
  if method.kind in ("adapter", "compacter") or unshifted:
    return "adapterhub"
  if method.kind in layout.TYPES and method.kind != "norms":
    return "peft"
  if _is_delta(method):
    return "merged"
  raise UserError(
    f"no PyTorch format holds method {method.name!r} ({method.kind}): train LoRA or an adapter to "
    "use it in PyTorch; jaxtune evaluates and generates with it"
  )


def _is_delta(method: peft.Method) -> bool:
  """Says whether a method only changes weights, so that it can be merged into them."""
  return any(f is not None for f in (method.trains, method.overwrite, method.merge))


def choose_format(adapted: peft.Adapted, format: str = "auto") -> str:
  """Returns the format that an adapted model is exported in.

  Raises:
    UserError: where there is none, or the one asked for cannot express them.
  """
  check_known("export format", format, FORMATS)
  parts, tuned = trained_methods(adapted), adapted.tuned
  if len(parts) > 1:
    return _stack_format(parts, format)
  if not parts and not tree.flatten(tuned["params"]):
    raise UserError("there is no method to export")
  # Without a method, there is a trained head alone.
  name, own, norms = "head", "merged", False
  if parts:
    name, own, norms = parts[0].name, own_format(parts[0]), parts[0].kind == "norms"
  if format == "merged" and parts and not _is_delta(parts[0]):
    raise UserError(f"method {name!r} is no weight delta and cannot be merged: use format={own!r}")
  if format not in ("auto", "merged", own) and not (norms and format == "peft"):
    raise UserError(f"{format!r} cannot express method {name!r}: use format={own!r}")
  form = own if format == "auto" else format
  beyond = not all(map(is_head, tree.flatten(tuned["params"])))
  if form != "merged" and beyond and not norms:
    raise UserError(
      f"weights of the base were trained too, and {form!r} cannot hold them: train those in a run "
      f"of their own, export it with format='merged', and train {name} with that as model.path"
    )
  return form


def trained_methods(adapted: peft.Adapted) -> tuple[peft.Method, ...]:
  """Lists the methods without those that train a head alone, or nothing in the model.

  The latter are regularisation, and an objective with arrays of its own, such as a value function.
  """
  moved = tree.flatten(adapted.tuned["params"])
  beyond = lambda m: (
    m.trains is not None and any(m.trains(path) and not is_head(path) for path in moved)
  )
  adds = lambda m: m.intercept is not None and peft.arrays_of(m, adapted.tuned["peft"])
  return tuple(m for m in adapted.methods if beyond(m) or m.overwrite is not None or adds(m))


def _stack_format(methods: Sequence[peft.Method], format: str) -> str:
  """Returns the format of several methods at once; raises UserError as `choose_format` does."""
  mam = sorted(m.kind for m in methods) == ["adapter", "prefix"]
  if mam and format in ("auto", "adapterhub") and {*map(own_format, methods)} == {"adapterhub"}:
    return "adapterhub"
  deltas = [m.name for m in methods if _is_delta(m)]
  if format in ("auto", "merged") and len(deltas) == len(methods):
    return "merged"
  names = " + ".join(m.name for m in methods)
  if len(deltas) == len(methods):
    raise UserError(f"{format!r} cannot express the stack {names}: use format='merged'")
  way = "train and export each part in a run of its own"
  if deltas:
    way = (
      f"train {' + '.join(deltas)} in a run of its own, export it with format='merged', and train "
      "the rest with that folder as model.path"
    )
  raise UserError(f"no PyTorch format holds the stack {names}: {way}")
