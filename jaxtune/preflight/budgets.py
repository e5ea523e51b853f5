"""What a trial would cost, from shapes alone, so that several can be given equal budgets."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxtune import hosts, peft, tree
from jaxtune.errors import UserError
from jaxtune.preflight import checks, cost, lowered
from jaxtune.runs import costs, programs
from jaxtune.runs.first_state import first_state
from jaxtune.runs.trial import Trial, tokenizing

MEASURED = 5  # updates


def parameters(trial: Trial) -> int:
  """Counts what a trial will train, as `runs.folder.count_trained` does once it has.

  Raises:
    UserError: a trial that cannot work; see `checks.check`.
  """
  checks.check(trial)

  def make(params):
    overlay = peft.init(
      jax.random.key(0), trial.methods, trial.sites, params, tokenizing(trial.pretrained)
    ).overlay
    unused = sum(m.count_unused(*overlay.arrays_of(m)) for m in trial.methods)
    return overlay, unused

  overlay, _ = jax.eval_shape(make, trial.pretrained.params)
  size = tree.size(overlay.tuned)
  if not _differs_by_layer(trial.config["method"]):
    return size
  like = lambda: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), trial.pretrained.params)
  return size - int(jax.jit(lambda: make(like())[1])())


def _differs_by_layer(section: dict) -> bool:
  """Says whether layers may be padded to the size of others, which only values tell."""
  lists = (x for x in tree.flatten(section).values() if isinstance(x, list | tuple))
  return any(isinstance(item, int) for one in lists for item in one)


def flops(trial: Trial) -> Callable[[int], int]:
  """Returns (number of updates) -> the FLOP of a trial's training; see `costs.counter`."""

  def make(params):
    return first_state(trial._replace(pretrained=trial.pretrained._replace(params=params)))

  return costs.counter(trial, *jax.eval_shape(make, trial.pretrained.params))


def seconds(trial: Trial) -> Callable[[int], float]:
  """Returns (number of updates) -> the seconds that they take on this machine, about.

  A few updates of the trial alone are timed, with made-up numbers and the widest batch. Batches of
  other widths take as much less as their FLOP are fewer.

  Raises:
    UserError: for pmap, whose programs are not compiled beforehand, and for policies.
  """
  if trial.config["train"]["parallel"] == "pmap":
    raise UserError("a budget of seconds needs train.parallel='jit', not 'pmap'")
  if programs.rolls_out(trial):
    name = trial.config["objective"]["name"]
    raise UserError(
      f"a budget of seconds is not for objective {name!r}, whose answers may become longer; "
      "expected a budget of flops"
    )
  alone, work = cost.with_remat([trial]), flops(trial)
  group = lowered.outline(alone)
  program = lowered.lower_step(group, lowered.step_batch(group), 1)
  step, ((carry, base, batch), _) = program.compile(), program.args_info
  # Numbers are 0, and ids and masks are 1, so that some tokens are real.
  value = lambda dtype: 0 if jnp.issubdtype(dtype, jnp.floating) else 1
  fill = lambda x, at: jnp.full(x.shape, value(x.dtype), x.dtype, device=at)
  carry, base, batch = jax.tree.map(fill, (carry, base, batch), step.input_shardings[0])
  taken = []
  for _ in range(1 + MEASURED):
    began = time.perf_counter()
    carry = jax.block_until_ready(step(carry, base, batch))
    taken.append(time.perf_counter() - began)
  # In microseconds, as whole numbers are what processes share. The first batch is the widest.
  pace = 1e-6 * hosts.of_first(max(round(1e6 * statistics.median(taken[1:])), 1)) / work(1)
  return lambda updates: pace * work(updates)
