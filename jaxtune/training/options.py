"""Declares the `train`, the `search` and the `rollout` section of a config."""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple

from annotated_types import Gt, Le

from jaxtune import sharding
from jaxtune.schema import Count, Finite, Seed, Share, Text


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
    chunk: number of trials that each device computes together, by one vmap; None to let
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


def intervals(options: TrainOptions) -> tuple[int, int]:
  """Returns the steps between two evaluations, and between two checkpoints."""
  eval_every = options.eval_every or max(options.steps // 10, 1)
  return eval_every, options.checkpoint_every or eval_every


class SearchOptions(NamedTuple):
  """Declares the `search` section of a config: how the trials of a sweep share its time.

  Attributes:
    early_exit: which configurations are left out before their last step, by their validation loss
      among those of the same compiled program: "halving", all but the best `keep` of them at each
      rung (successive halving, Jamieson and Talwalkar 2016); "median", those whose best loss so far
      is above the median of the others' mean losses so far (Golovin et al. 2017); None, none. A
      configuration that could not be judged stays.
    rungs: shares of the steps after which configurations are compared, each at the next evaluation.
    keep: the share of configurations that "halving" keeps at a rung, rounded up.
    tune_seeds: seeds of the trials by which a learning rate is chosen, which no result may have.
    places: how many trials of a program are trained side by side, while the others wait for a free
      place; None for all, and where `train.patience` meets data.buckets.
  """

  early_exit: Literal["halving", "median"] | None = None
  rungs: tuple[Share, ...] = (0.25, 0.5)
  keep: Share = 0.5
  tune_seeds: tuple[Seed, ...] = (1000,)
  places: Count | None = None


class RolloutOptions(NamedTuple):
  """Declares the `rollout` section of a config: how a policy's own answers are drawn and judged.

  A rollout draws answers to prompts of the training data by the weights of that moment, and judges
  them. Its answers make the batches of the updates that follow: `train.batch_size` answers each.

  Attributes:
    samples: the number of answers to each prompt.
    minibatches: the number of batches that the answers of a rollout are divided into.
    epochs: how often the updates go through these. A rollout makes minibatches * epochs updates, of
      which `train.steps` is a multiple.
    max_new_tokens: the most tokens of an answer.
    rewards: the names of what answers are judged by; see `evaluation.rewards`.
    weights: of these rewards; 0 for one that is reported and not trained on. None: all are 1.
    timeout: the seconds that one call of a reward may take, at most a day.
    on_error: what happens where a reward fails: "stop", or "skip" the answers that it fails on.
  """

  samples: Count = 8
  minibatches: Count = 1
  epochs: Count = 1
  max_new_tokens: Count = 32
  rewards: tuple[str, ...] = ()
  weights: tuple[Finite, ...] | None = None
  timeout: Annotated[float, Gt(0), Le(86_400)] = 60.0
  on_error: Literal["stop", "skip"] = "stop"

  @property
  def updates(self) -> int:
    """The number of updates that a rollout makes."""
    return self.minibatches * self.epochs
