"""The `evaluate` section of a config."""

from __future__ import annotations

from typing import Annotated, NamedTuple

from annotated_types import Ge, Le

from jaxtune.schema import Count, Natural, NonNegative, Share


class EvaluateOptions(NamedTuple):
  """The `evaluate` section of a config.

  Attributes:
    batch_size: examples at a time.
    metrics: names of the metrics of predictions; None for the objective's own.
    generate: whether the prompts of test (or validation, if there is no test) are completed and
      judged by `metrics`, for objectives of text, such as "sft"; the others always predict. Of
      answers with thumbs, the prompts of those that people liked.
    merge: whether the methods are merged into a copy of the base while text is generated: less work
      for each token, and the memory of one more base for each trial side by side. In bf16 the sum
      is rounded once more.
    max_new_tokens: longest completion. A policy's are as long as those of training,
      `rollout.max_new_tokens`; another number than that and the default is refused.
    limit: complete at most so many prompts: the first ones, of a mixture the first of every task
      in turn; None for all. A policy answers all held-out prompts for their rewards, whatever this
      is; `data.eval_limit` bounds those.
    temperature, top_k, top_p: see `generate.generate`; temperature 0 is greedy.
    shots: demonstrations in front of each test prompt for one more judgement of the untuned base;
      0 for none. See `data.shots`.
    resamples: how many resamples the bootstrap draws for intervals and differences; 0 for neither.
  """

  batch_size: Count = 16
  metrics: tuple[str, ...] | None = None
  generate: bool = False
  merge: bool = False
  max_new_tokens: Count = 64
  limit: Count | None = None
  temperature: NonNegative = 0.0
  top_k: Count | None = None
  top_p: Share | None = None
  shots: Natural = 0
  resamples: Annotated[int, Ge(0), Le(10**6)] = 1000
