"""A check before a run: does the loss depend on every array that is to be trained?"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jaxtune import data, hosts, sharding, tree
from jaxtune.errors import UserError
from jaxtune.peft import Overlay
from jaxtune.runs import answer_rows
from jaxtune.runs.first_state import first_state
from jaxtune.runs.programs import make_program
from jaxtune.runs.trial import Trial
from jaxtune.training import step


def check(trials: Sequence[Trial]) -> None:
  """Differentiates the loss of a few training examples, and checks the gradient of every array.

  They are two, or as many as the mesh needs to have one for each of its shards.

  Noise is added to the arrays of methods first: at the start LoRA's B is zero, and so is the
  gradient of its A. An array without a gradient would be trained, counted and exported in vain.

  Args:
    trials: of one group; they are checked one after another by one compiled program.

  Raises:
    UserError: naming the arrays without a gradient, or what is not finite; for noise at the head.
  """
  program, options = make_program(trials[0]), trials[0].config["train"]
  parallel = sharding.make(options["parallel"], options["mesh"])
  if parallel.kind == "pmap":  # whose devices all have the whole base
    parallel = sharding.ALONE
  states, bases = zip(*map(first_state, trials), strict=True)
  overlays = [Overlay(s.tuned | {"peft": with_noise(s.tuned["peft"])}, s.hyper) for s in states]
  for trial, overlay in zip(trials, overlays, strict=True):
    _check_noise(trial, overlay)

  def measure(overlay, base, rows):
    def loss(tuned):
      own = overlay._replace(tuned=tuned)
      forward = step.forward(program, own, base, backward=True)
      return program.objective(forward, rows, **step.numbers_of(own))[0].sum()

    value, gradients = jax.value_and_grad(loss)(overlay.tuned)
    return value, jax.tree.map(lambda g: jnp.abs(g).max(), gradients)

  rows = tree.stack([_rows(trial, trials, parallel.batch_shards) for trial in trials])
  measured = parallel.compile(tree.over_trials(measure, 1, parallel.mesh))
  values, largest = measured(tree.stack(overlays), bases[0], rows)
  # Comparisons of rewards leave a constant open, which only centring asks for.
  open_ones = {"params/head/out/bias"} if trials[0].objective.HEAD == "reward" else set()
  checked = {path: x for path, x in tree.flatten(largest).items() if path not in open_ones}
  for e, value in enumerate(values):
    if not np.isfinite(value):
      raise UserError(_not_finite(float(value), trials[e].pretrained.params))
    _check_gradients({path: float(x[e]) for path, x in checked.items()})


def _check_noise(trial: Trial, overlay: Overlay) -> None:
  """Raises UserError for dropout where logits are computed in parts, on whose size it depends."""
  for method in trial.methods:
    rate = method.options.get("dropout")
    if rate and "head" in overlay.arrays_of(method)[0]:
      raise UserError(
        f"method.dropout is {rate}, expected 0 at the vocabulary's head: its logits are computed "
        "in parts, on whose size the noise would depend"
      )


def _check_gradients(largest: dict[str, float]) -> None:
  """Raises UserError if the largest gradient of an array is zero or not finite."""
  wild = [path for path, x in largest.items() if not np.isfinite(x)]
  dead = [path for path, x in largest.items() if x == 0]
  if wild:
    raise UserError(f"the gradient of {_list(wild)} is not finite before any training")
  if dead:
    raise UserError(
      f"no gradient reaches {_list(dead)}: it would be trained in vain; leave it out of the "
      "method's targets"
    )


def with_noise(deltas: PyTree) -> PyTree:
  """Adds normal noise to every array; numpy draws it, as jax would compile a program per shape."""
  rng = lambda path: np.random.default_rng(zlib.crc32(path.encode()))
  noisy = lambda path, x: x + rng(path).normal(0, 0.02, x.shape).astype(x.dtype)
  flat = tree.flatten(hosts.fetch(deltas))  # whole, also where the mesh splits them
  return tree.unflatten({path: noisy(path, x) for path, x in flat.items()})


def _rows(trial: Trial, trials: Sequence[Trial], shards: int) -> dict:
  """Returns the examples with the largest weights of a trial's first batch that has any.

  Args:
    trials: of its group, which lay out answers alike.
  """
  config = trial.config
  size = config["train"]["batch_size"]
  draw = lambda step: data.batch(trial.dataset.train, config["seed"], step, size)
  weighted = (drawn for drawn in map(draw, range(100)) if np.any(drawn.get("weights", True)))
  batch = answer_rows.example(trials, next(weighted, None) or draw(0), shards)
  weights = batch.get("weights")
  heaviest = np.arange(len(batch["tokens"]))
  if weights is not None and weights.ndim > 1:
    heaviest = np.argsort(-weights.reshape(len(weights), -1).sum(1), kind="stable")
  count = -(-2 // shards) * shards
  return {name: x[heaviest[:count]] for name, x in batch.items()}


def _not_finite(value: float, params: PyTree) -> str:
  floats = {p: x for p, x in tree.flatten(params).items() if jnp.issubdtype(x.dtype, jnp.floating)}
  bad = [path for path, x in floats.items() if not bool(jnp.isfinite(x).all())]
  cause = f"the base's weights are not finite in {_list(bad)}" if bad else "the base's weights are"
  return f"the loss is {value} before any training: {cause}" + ("" if bad else " finite")


def _list(paths: list[str]) -> str:
  more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
  return ", ".join(sorted(paths)[:3]) + more
