"""Classification by a language model, which chooses the likeliest of several answers.

The model scores each of an example's C possible answers after the same prompt, and is trained to
prefer the right one; the untuned model can be judged the same way, since nothing new is added to it
(Brown et al. 2020 score answers so; Schick & Schuetze 2021 train so).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxtune.data import Data, Split, reading, views
from jaxtune.data.encode import choices
from jaxtune.objectives import Batch, Forward, Sums, cross_entropy, sft, weigh

HEAD = "lm"
MEASURES = ("loss",)
METRICS = ("accuracy", "balanced_accuracy", "macro_f1", "matthews")
VIEW = views.CHOICES

read = reading.read_prompts
encode = choices.encode


def loss(
  forward: Forward, batch: Batch, normalise: bool = False
) -> tuple[Float[Array, " B"], Sums]:
  """Returns -log p(right answer | one of the answers) of each row in nats.

  Args:
    forward: as for `sft.loss`.
    batch: tokens, mask and weights, each (B, C, T), with weights on the tokens of the answer; and
      labels (B,), the number of the right answer. Answers without weights fill up an example that
      has fewer. Where every answer is one token: answers (B, C, 1), the tokens + 1 and 0 for none,
      and tokens, mask and weights (B, 1, T) of the right answer alone.
    normalise: score answers by their mean log-probability a token, not by its sum.
  """
  scores_BC = _scores(forward, batch, normalise)
  losses_B, correct_B = cross_entropy(scores_BC, batch["labels"])
  weights_B = (batch["weights"].sum((1, 2)) > 0).astype(jnp.float32)
  return weigh(losses_B, correct_B, weights_B)


def predict(forward: Forward, batch: Batch, normalise: bool = False) -> Batch:
  """Returns "labels" (B,), the numbers of the likeliest answers."""
  return {"labels": _scores(forward, batch, normalise).argmax(-1)}


def decode(dataset: Data, split: Split, arrays: dict[str, np.ndarray]) -> list[str]:
  """Returns the text of the chosen answers."""
  chosen = zip(arrays["labels"], split.choices or (), strict=True)
  return [answers[label] for label, answers in chosen]


def log_probabilities(
  forward: Forward, batch: Batch
) -> tuple[Float[Array, "B C"], Float[Array, "B C"]]:
  """Returns log p(answer | prompt) of each answer in nats, and how many tokens it has.

  Args:
    forward: as for `sft.loss`.
    batch: tokens, mask and weights, each (B, C, T), with weights on the tokens of the answer. All
      answers run in one forward pass.
  """
  count = batch["tokens"].shape[1]
  losses, sums = sft.loss(forward, flat(batch))
  return -losses.reshape(-1, count), sums["weight"].reshape(-1, count)


def flat(batch: Batch) -> Batch:
  """Returns the arrays (B, C, T) of a batch as (B * C, T), so that all answers run together."""
  return {name: x.reshape(-1, x.shape[2]) for name, x in batch.items() if x.ndim == 3}


def _scores(forward: Forward, batch: Batch, normalise: bool) -> Float[Array, "B C"]:
  if "answers" in batch:
    return _scores_of_tokens(forward, batch)
  scores_BC, weights_BC = log_probabilities(forward, batch)
  if normalise:
    scores_BC = scores_BC / jnp.maximum(weights_BC, 1.0)
  return jnp.where(weights_BC > 0, scores_BC, -1e9)


def _scores_of_tokens(forward: Forward, batch: Batch) -> Float[Array, "B C"]:
  """Scores answers of one token each, all of them by one pass over the prompt."""
  flat = {name: x[:, 0] for name, x in batch.items() if name not in ("labels", "answers")}
  before_B1 = flat["weights"].argmax(-1)[:, None] - 1
  answers_B1C = batch["answers"].swapaxes(1, 2) - 1
  chosen = jnp.maximum(answers_B1C, 0)
  score = lambda logits_B1V, chosen: jnp.take_along_axis(jax.nn.log_softmax(logits_B1V), chosen, 2)
  scores_B1C = forward(flat, score=score, targets=chosen, places=before_B1)
  return jnp.where(answers_B1C >= 0, scores_B1C, -1e9)[:, 0]


def references(dataset: Data, split: Split) -> list[str]:
  """Returns the texts of the right answers."""
  return decode(dataset, split, split.arrays)
