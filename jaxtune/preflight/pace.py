"""How long the programs of a group take on this machine, at least, by their matrix products."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jaxtune import sharding
from jaxtune.errors import UserError
from jaxtune.preflight import lowered
from jaxtune.runs import programs
from jaxtune.runs.group import turns_of
from jaxtune.runs.trial import Trial
from jaxtune.training.options import TrainOptions, intervals

PROBED = 0.2  # seconds for which the products of a model are measured
MOST_TOKENS = 4096  # of the batch that they are measured with


def rounds(trial: Trial) -> dict[str, float]:
  """Returns how often each program of a trial runs in training and judging, by a key of LOWER.

  Text that is generated is left out: how many rounds it takes is known only when it has ended.
  """
  options, rows = TrainOptions(**trial.config["train"]), trial.config["evaluate"]["batch_size"]
  dataset = trial.dataset
  batches = lambda split: 0 if split is None else -(-split.examples // rows)
  held = (dataset.validation, dataset.test, dataset.general)
  as_many_of_train = batches(dataset.validation or dataset.test)
  while_training = -(-options.steps // intervals(options)[0]) * batches(dataset.validation)
  judged = while_training + sum(map(batches, held)) + as_many_of_train
  return {"training step": options.steps // programs.updates(trial), "evaluation": judged}


def turns(trials: Sequence[Trial]) -> float:
  """Returns how many steps it takes that each trial takes one, where they take turns; else 1.

  A step whose places are not all taken counts by its share, as what is empty is not computed.
  """
  places = turns_of(trials, TrainOptions(**trials[0].config["train"]))[1]
  return len(trials) / (places or len(trials))


def seconds(trials: Sequence[Trial]) -> float | None:
  """Returns the least time of all trials: that of their matrix products, as this machine does them.

  Everything else that a step does comes on top: on a CPU one to three times as much. The time is
  None where the devices that `train.mesh` needs are not here.
  """
  train = trials[0].config["train"]
  try:
    parallel = sharding.make(train["parallel"], train["mesh"])
  except UserError:
    return None
  group, often = lowered.outline(trials, parallel=parallel), rounds(trials[0])
  often["training step"] *= turns(trials)
  batches = {kind: batch for kind, batch in lowered.batches(group).items() if often.get(kind)}
  work = sum(often[kind] * lowered.flops(group, batch, kind) for kind, batch in batches.items())
  return work / (rate(group) * group.parallel.devices)


def rate(group: lowered.Outline) -> float:
  """Measures the FLOP/s of a device for a product with a matrix of the model's.

  The other factor has the tokens of a trial's batch, or `MOST_TOKENS` of them.
  """
  c, batch = group.trials[0].pretrained.model.config, lowered.step_batch(group)["tokens"]
  tokens = min(math.prod(batch.shape[1:]), MOST_TOKENS)
  left, right = (tokens, c.width), (c.width, 4 * c.width)
  multiply = jax.jit(jnp.matmul)
  arrays = jnp.ones(left, c.dtype), jnp.ones(right, c.dtype)
  multiply(*arrays).block_until_ready()
  count, began = 0, time.perf_counter()
  while (passed := time.perf_counter() - began) < PROBED:
    multiply(*arrays).block_until_ready()
    count += 1
  return 2.0 * left[0] * left[1] * right[1] * count / passed
