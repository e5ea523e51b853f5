"""The `train` section of a config."""

from __future__ import annotations

from typing import Literal, NamedTuple

from jaxtune import sharding
from jaxtune.schema import Count


class TrainOptions(NamedTuple):
  """The `train` section of a config.

  Attributes:
    steps: updates.
    batch_size: examples in an update.
    accumulate: parts that a batch is computed in, one after another.
    log_every: steps between two lines of metrics.jsonl.
    eval_every: steps between two evaluations on the validation split; None for ten in all.
    patience: stop a trial after so many evaluations without a better validation loss.
    keep: "best" (by validation loss) or "last": which weights are the result. The weights of a
      method with a budget (AdaLoRA) are candidates once it is reached.
    checkpoint_every: steps between two checkpoints; None for after every evaluation.
    chunk: trials side by side in one vmap; None for `preflight.cost.choose_chunk`'s choice.
    parallel: "jit" or "pmap".
    mesh: sizes of the axes trial, data, fsdp and tensor, for "jit".
  """

  steps: Count = 300
  batch_size: Count = 8
  accumulate: Count = 1
  log_every: Count = 10
  eval_every: Count | None = None
  patience: Count | None = None
  keep: Literal["best", "last"] = "best"
  checkpoint_every: Count | None = None
  chunk: Count | None = None
  parallel: sharding.Kind = "jit"
  mesh: sharding.Sizes | None = None
