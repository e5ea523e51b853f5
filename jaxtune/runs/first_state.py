"""Makes a trial's first state, of arrays that are drawn or that an earlier adapter has trained."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from jaxtune import peft, tree
from jaxtune.runs import start_from
from jaxtune.runs.trial import Trial, tokenizing
from jaxtune.training import optim
from jaxtune.training.step import State


def first_state(trial: Trial) -> tuple[State, PyTree]:
  """Makes a trial's first state, and the base that stays frozen."""
  config, pretrained = trial.config, trial.pretrained
  key = jax.random.key(config["seed"])
  adapted = peft.init(key, trial.methods, trial.sites, pretrained.params, tokenizing(pretrained))
  params = redraw(key, adapted.tuned["params"], pretrained.fresh)
  overlay = start_from.continued(
    trial, peft.Overlay(adapted.tuned | {"params": params}, adapted.hyper)
  )
  numbers = {name: jnp.asarray(config["optim"][name], jnp.float32) for name in optim.NUMBERS}
  make = optim.make(numbers, config["train"]["steps"], **config["optim"])
  step, seed = jnp.zeros((), jnp.int32), jnp.asarray(config["seed"] % 2**31, jnp.int32)
  return State(step, seed, *overlay, numbers, make.init(overlay.tuned)), adapted.base


def redraw(key: Array, params: PyTree, fresh: tuple[str, ...]) -> PyTree:
  """Draws the kernels of a new head anew, so that a trial's seed decides them too."""
  flat = tree.flatten(params)
  for path in fresh:
    if path in flat and path.endswith("kernel"):
      noise = jax.random.normal(peft.site_key(key, path), flat[path].shape)
      flat[path] = noise * jnp.std(flat[path])
  return tree.unflatten(flat)
