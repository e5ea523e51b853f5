"""What a model scores if the changes of its matrices are cut to their largest singular values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import jax.numpy as jnp
from jaxtyping import PyTree

from jaxtune import data, peft, tree
from jaxtune.evaluation import judge
from jaxtune.evaluation.analysis.changes import Change, Spectrum, changes_weights


def ranks(spectra: Sequence[Spectrum]) -> list[int]:
  """Returns the ranks to cut to: 0, powers of 2, and the rank of the changes."""
  whole = max((rank for spectrum in spectra for rank in spectrum.ranks), default=0)
  return sorted({0, *(2**n for n in range(whole.bit_length())), whole}) if whole else []


def rest(adapted: peft.Adapted) -> tuple[peft.Method, ...]:
  """Returns the methods that change no weights, which stay as they are."""
  return tuple(m for m in adapted.methods if not changes_weights(m))


def cut(
  adapted: peft.Adapted,
  params: PyTree,
  changed: Mapping[str, Change],
  spectra: Mapping[str, Spectrum],
  rank: int,
) -> tuple[peft.Overlay, PyTree]:
  """Returns an overlay of `rest`, and the weights with every matrix' change cut to `rank`.

  Changes of biases and scales, and new heads, are kept whole.

  Args:
    params: the base's weights.
    changed, spectra: of the leaves that change, and of the matrices among them.
  """
  flat = tree.flatten(params) | tree.flatten(adapted.tuned["params"])
  for path, change in changed.items():
    if path in spectra:
      u, s, v = spectra[path]
      delta = (u[..., :rank] * s[:, None, :rank]) @ v[:, :rank]
    else:
      delta = change.delta
    shape = change.base.shape if "layers" in path.split("/") else change.base.shape[1:]
    # A plain array may take the place of a quantised kernel, which is a dict of arrays.
    flat = {p: x for p, x in flat.items() if not p.startswith(f"{path}/")}
    flat[path] = jnp.asarray((change.base + delta).reshape(shape))
  owned = {m.name for m in rest(adapted)}
  kept = lambda arrays: tree.partition(arrays, lambda path: path.split("/")[-2] in owned)[0]
  tuned = {"params": {}, "peft": kept(adapted.tuned["peft"])}
  return peft.Overlay(tuned, kept(adapted.hyper)), tree.unflatten(flat)


def scores(
  evaluator: judge.Evaluator, overlay: peft.Overlay, base: PyTree, split: data.Split
) -> dict[str, float]:
  """Returns the loss of a split (nats a target), and the accuracy (%) where the objective has one.

  They are NaN where no example has a weight.

  Args:
    evaluator: of the methods that `overlay` holds the arrays of.
  """
  # An overlay may be empty, but trials are counted by the first axis of an array.
  overlay = overlay._replace(hyper=overlay.hyper | {"cut": jnp.zeros(())})
  (rows,) = judge.measure(evaluator, tree.stack([overlay]), base, [split])
  measures = [m for m in ("loss", "accuracy") if m in evaluator.objective.MEASURES]
  named = judge.summarise(measures, rows, "cut")
  return {name: named.get(f"cut_{name}", math.nan) for name in measures}


def curve(
  evaluator: judge.Evaluator,
  adapted: peft.Adapted,
  params: PyTree,
  changed: Mapping[str, Change],
  spectra: Mapping[str, Spectrum],
  split: data.Split,
) -> dict[str, list]:
  """Returns {"rank": those of `ranks`, "loss": ..., maybe "accuracy": ...}; see `scores`."""
  found: dict[str, list] = {"rank": ranks(list(spectra.values()))}
  for rank in found["rank"]:
    overlay, base = cut(adapted, params, changed, spectra, rank)
    for name, score in scores(evaluator, overlay, base, split).items():
      found.setdefault(name, []).append(score)
  return found
