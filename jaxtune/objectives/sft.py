"""Supervised fine-tuning: next-token cross-entropy on the tokens that carry a weight."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxtune.data import Data, EncodeOptions, Split, reading, views
from jaxtune.data.encode import chat, text
from jaxtune.data.templates import Example
from jaxtune.data.tokenizer import Tokenizer
from jaxtune.objectives import Batch, Forward, Sums, cross_entropy, weigh
from jaxtune.schema import Rate

HEAD = "lm"
MEASURES = ("loss", "perplexity", "accuracy")
METRICS = ("exact_match", "bleu", "rougeL")
VIEW = views.TEXT

read = reading.read_text


def encode(
  tokenizer: Tokenizer, examples: Sequence[Example], options: EncodeOptions
) -> tuple[Split, dict]:
  """Encodes conversations by their chat template, and all other text as it is."""
  conversations = bool(examples) and examples[0].conversation
  return (chat if conversations else text).encode(tokenizer, examples, options)


def loss(
  forward: Forward, batch: Batch, label_smoothing: Rate = 0.0
) -> tuple[Float[Array, " B"], Sums]:
  """Sums -log p(token | tokens before it) of each row, in nats.

  Args:
    forward: (batch, score=, targets=) -> score(logits (B, T, V) in fp32, targets (B, T)).
    batch: tokens and weights, each (B, T); the weight at t is that of token t as a target.
    label_smoothing: share of the target's probability that is spread over the vocabulary.
  """
  # Targets are shifted, not the logits, which are much larger. The last position predicts nothing.
  targets_BT = jnp.roll(batch["tokens"], -1, 1)
  weights_BT = jnp.roll(batch["weights"], -1, 1).at[:, -1].set(0.0)
  score = partial(cross_entropy, label_smoothing=label_smoothing)
  losses_BT, correct_BT = forward(batch, score=score, targets=targets_BT)
  return weigh(losses_BT, correct_BT, weights_BT)


def references(dataset: Data, split: Split) -> list[list[str]]:
  """Returns the accepted answers of each example; of packed ones, the answer that is trained on."""
  if "segments" in split.arrays:
    return [[answer] for answers in split.references for answer in answers]
  return split.references
