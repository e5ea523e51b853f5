"""Rotary positions (Su et al. 2021): the frequencies of their kinds, and the turning.

Four ways of reaching beyond the length that a model was pretrained on divide the frequencies: by
one number ("linear"); the low ones alone ("llama3", "yarn"); each by a number of its own, one for
short and one for long sequences ("longrope"); and by more, the longer a sequence is ("dynamic").

For the last two, a sequence's own length decides, whatever else is in its batch, and while text is
generated it is the prompt's length and that of all tokens that may be drawn: a cached key cannot
turn any more. transformers goes by the longest row of a batch and by the tokens that are there.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np


class Rope(NamedTuple):
  """How the features of a head turn with a token's position.

  Attributes:
    theta: base period: feature pair i of n turns by theta^(-i / n) a position.
    size: how many features of a head are rotated, the first ones (GPT-NeoX); None: all.
    kind: "default", or one of the above.
    factor: what frequencies are divided by; of "dynamic", how fast they fall with the length.
    original_length: that the model was pretrained on.
    low, high: the kinds that keep the fast frequencies go by the turns that a pair makes in
      `original_length`: above `high` it keeps its frequency, below `low` it is divided.
    whole: whether YaRN's bounds are rounded to pairs.
    scale: of cos and sin, so that longer texts do not blur attention (YaRN and longrope).
    short, long: longrope's divisors of sequences up to `original_length`, and beyond.
  """

  theta: float = 10_000.0
  size: int | None = None
  kind: str = "default"
  factor: float = 1.0
  original_length: int = 1
  low: float = 1.0
  high: float = 4.0
  whole: bool = True
  scale: float = 1.0
  short: tuple[float, ...] = ()
  long: tuple[float, ...] = ()

  @property
  def by_length(self) -> bool:
    """Says whether the frequencies depend on a sequence's length."""
    return self.kind in ("longrope", "dynamic")

  def reach(self, positions: int) -> int:
    """Returns the longest sequence, given config.json's number of positions.

    That is the length of the pretraining in files of "dynamic" models, and in some of "yarn".
    """
    stretched = {"yarn": self.original_length, "dynamic": positions}.get(self.kind, 0)
    return max(positions, int(min(stretched * self.factor, 2**31 - 1)))


def rope_tables(rope: Rope, head_size: int, positions_BT, lengths_BT=None):
  """Returns cos and sin (B, T, 1, H/2) in fp32 of each position's rotation angles.

  `lengths_BT`, of the sequence that each token belongs to, is read where `rope.by_length`.
  """
  up = lambda x_BT: x_BT[:, :, None, None].astype(jnp.float32)
  lengths_BT11 = up(lengths_BT) if rope.by_length else None
  angles = up(positions_BT) * _frequencies(rope, rope.size or head_size, lengths_BT11)
  if rope.scale == 1:
    return jnp.cos(angles), jnp.sin(angles)
  return jnp.cos(angles) * rope.scale, jnp.sin(angles) * rope.scale


def _frequencies(rope: Rope, size: int, lengths_BT11):
  """Returns (1, 1, 1, H/2), or (B, T, 1, H/2) where they depend on the length."""
  exponents = -jnp.arange(0, size, 2, dtype=jnp.float32)[None, None, None] / size
  if rope.kind == "dynamic":  # NTK-aware: a larger base slows the low frequencies most
    longer = jnp.maximum(lengths_BT11 / rope.original_length, 1.0)
    growth = rope.factor * longer - (rope.factor - 1)
    return (rope.theta * growth ** (size / (size - 2))) ** exponents
  frequencies = rope.theta**exponents
  if rope.kind == "linear":
    return frequencies / rope.factor
  if rope.kind == "longrope":
    short, long = (jnp.asarray(x, jnp.float32)[None, None, None] for x in (rope.short, rope.long))
    return frequencies / jnp.where(lengths_BT11 > rope.original_length, long, short)
  if rope.kind == "llama3":
    turns = rope.original_length * frequencies / (2 * jnp.pi)
    keep = jnp.clip((turns - rope.low) / (rope.high - rope.low), 0.0, 1.0)
    return frequencies * (keep + (1 - keep) / rope.factor)
  if rope.kind == "yarn":
    keep = jnp.asarray(_kept(rope, size), jnp.float32)[None, None, None]
    return frequencies * (keep + (1 - keep) / rope.factor)
  return frequencies


def _kept(rope: Rope, size: int) -> np.ndarray:
  """Returns how much of each frequency YaRN keeps (Peng et al. 2023, section 3.2).

  1 before the pair that makes `high` turns, 0 behind the one that makes `low`, linear between.
  """
  pair = lambda turns: (
    size * math.log(rope.original_length / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))
  )
  first, last = pair(rope.high), pair(rope.low)
  if rope.whole:
    first, last = math.floor(first), math.ceil(last)
  first, last = max(first, 0), min(last, size - 1)
  width = last - first or 0.001
  return 1 - np.clip((np.arange(size // 2) - first) / width, 0, 1)


def rotate(x_BTNH, tables):
  """Rotates each half-split pair of head features by its position's angle."""
  cos, sin = tables
  size = 2 * cos.shape[-1]
  a, b = jnp.split(x_BTNH[..., :size].astype(jnp.float32), 2, axis=-1)
  turned = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1).astype(x_BTNH.dtype)
  return jnp.concatenate([turned, x_BTNH[..., size:]], -1) if size < x_BTNH.shape[-1] else turned
