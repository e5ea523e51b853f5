"""Declares the `train` section of a config."""

from __future__ import annotations

from typing import Literal, NamedTuple

from jaxtune import sharding
from jaxtune.schema import Count, Text


class TrainOptions(NamedTuple):
  """Declares the `train` section of a config.

  Attributes:
    steps: number of updates.
    batch_size: number of examples in an update; a multiple of `accumulate`.
    accumulate: number of parts of a batch, which are computed one after another.
    log_every: steps between two lines of metrics.jsonl.
    eval_every: steps between two evaluations on the validation split; None for about ten in all.
    patience: number of evaluations in a row without a better validation loss after which a trial
      stops; None for no limit.
    keep: which weights are the result: "best" (by validation loss) or "last". With a method that
      has a budget (AdaLoRA), only weights that have reached it can be the best.
    checkpoint_every: steps between two checkpoints; None for as many as `eval_every`.
    chunk: number of trials that one vmap computes together; None to let
      `preflight.cost.choose_chunk` choose.
    parallel: "jit", or "pmap" for data parallelism over all local devices.
    mesh: sizes of the axes trial, data, fsdp, sequence and tensor, for "jit"; see `sharding.make`.
    compilation_cache: a folder in which compiled programs are kept, so that the next run with the
      same program does not compile it; None for none. A folder that jax was given by itself
      (JAX_COMPILATION_CACHE_DIR) is used in its place.
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
  compilation_cache: Text | None = "~/.cache/jaxtune"
