"""Computes rotary positions (Su et al. 2021): the frequencies of each kind, and the rotation.

Models extend their context by lower frequencies. "linear" divides all by one number; "llama3" and
"yarn" divide only the low ones; "longrope" divides each by its own number, of which there is one
for short and one for long sequences; "dynamic" lowers them more, the longer the sequence is.

"longrope" and "dynamic" depend here on the length of each sequence, and not on others in its batch.
During generation, that is the length of the prompt plus all tokens that may be generated, because
keys in the cache are not rotated again. transformers uses the longest row of the batch, and the
tokens present so far.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


class Rope(NamedTuple):
  """Describes how the features of a head are rotated by a token's position.

  Attributes:
    theta: base of the frequencies: pair i of n features turns theta^(-2i / n) radians by position.
    size: n, how many of a head's first features are rotated (GPT-NeoX: a share); None: all.
    kind: "default", or one of the above.
    factor: divisor of frequencies; for "dynamic", how fast they fall with the length. "longrope"
      only derives `scale` from it.
    original_length: the length that the model was pretrained on.
    low, high: bounds for "llama3" and "yarn", in turns that a pair makes in `original_length`: with
      more than `high` it keeps its frequency, with fewer than `low` the frequency is divided by
      `factor`, and between them it is interpolated.
    truncate: whether YaRN's bounds are rounded outwards to whole pairs.
    scale: factor of cos and sin, which sharpens attention over longer texts ("yarn", "longrope").
    short, long: longrope's divisors for sequences up to `original_length`, and for longer ones.
  """

  theta: float = 10_000.0
  size: int | None = None
  kind: str = "default"
  factor: float = 1.0
  original_length: int = 1
  low: float = 1.0
  high: float = 4.0
  truncate: bool = True
  scale: float = 1.0
  short: tuple[float, ...] = ()
  long: tuple[float, ...] = ()

  @property
  def by_length(self) -> bool:
    """Says whether the frequencies depend on a sequence's length."""
    return self.kind in ("longrope", "dynamic")

  def reach(self, positions: int) -> int:
    """Returns the longest sequence that the model is made for.

    Args:
      positions: max_position_embeddings of config.json. "dynamic" files, and some "linear" and
        "yarn" ones, give the length of the pretraining there, which `factor` multiplies.
    """
    stretched = self.kind in ("linear", "dynamic", "yarn")
    longest = self.original_length * self.factor if stretched else 0
    return max(positions, int(min(longest, 2**31 - 1)))


def rope_tables(
  rope: Rope,
  head_size: int,
  positions_BT: Int[Array, "B T"],
  lengths_BT: Int[Array, "B T"] | None = None,
) -> tuple[Float[Array, "B T 1 h"], Float[Array, "B T 1 h"]]:
  """Returns the fp32 cos and sin, times `rope.scale`, of each pair's angle at each position.

  `lengths_BT`, the length of the sequence of each token, is read only if `rope.by_length`.
  """
  lift = lambda x_BT: x_BT[:, :, None, None].astype(jnp.float32)
  lengths_BT11 = lift(lengths_BT) if rope.by_length else None
  angles_BT1h = lift(positions_BT) * _frequencies(rope, rope.size or head_size, lengths_BT11)
  cos_BT1h, sin_BT1h = jnp.cos(angles_BT1h), jnp.sin(angles_BT1h)
  return (cos_BT1h, sin_BT1h) if rope.scale == 1 else (cos_BT1h * rope.scale, sin_BT1h * rope.scale)


def _frequencies(
  rope: Rope, size: int, lengths_BT11: Float[Array, "B T 1 1"] | None
) -> Float[Array, "#B #T 1 h"]:
  """Returns the radians that each pair turns by position, for each token if lengths matter."""
  exponents_111h = -jnp.arange(0, size, 2, dtype=jnp.float32)[None, None, None] / size
  if rope.kind == "dynamic":  # NTK-aware: a larger base lowers the low frequencies most
    longer_BT11 = jnp.maximum(lengths_BT11 / rope.original_length, 1.0)
    growth_BT11 = rope.factor * longer_BT11 - (rope.factor - 1)
    return (rope.theta * growth_BT11 ** (size / (size - 2))) ** exponents_111h
  frequencies_111h = rope.theta**exponents_111h
  if rope.kind == "linear":
    return frequencies_111h / rope.factor
  if rope.kind == "longrope":
    short_h, long_h = jnp.asarray(rope.short, jnp.float32), jnp.asarray(rope.long, jnp.float32)
    is_long_BT11 = lengths_BT11 > rope.original_length
    return frequencies_111h / jnp.where(
      is_long_BT11, long_h[None, None, None], short_h[None, None, None]
    )
  if rope.kind == "llama3":
    turns_111h = rope.original_length * frequencies_111h / (2 * jnp.pi)
    keep_111h = jnp.clip((turns_111h - rope.low) / (rope.high - rope.low), 0.0, 1.0)
  elif rope.kind == "yarn":
    keep_111h = jnp.asarray(_yarn_kept(rope, size), jnp.float32)[None, None, None]
  else:
    return frequencies_111h
  return frequencies_111h * (keep_111h + (1 - keep_111h) / rope.factor)


def _yarn_kept(rope: Rope, size: int) -> np.ndarray:
  """Returns the share of each pair's frequency that YaRN keeps (Peng et al. 2023, section 3.2).

  It is 1 up to the pair that makes `high` turns, 0 from the one that makes `low` on, and falls
  linearly between them.
  """
  pair = lambda turns: (
    size * math.log(rope.original_length / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))
  )
  first, last = pair(rope.high), pair(rope.low)
  if rope.truncate:
    first, last = math.floor(first), math.ceil(last)
  first, last = max(first, 0), min(last, size - 1)
  width = last - first or 0.001
  return 1 - np.clip((np.arange(size // 2) - first) / width, 0, 1)


def rotate(
  x_BTNH: Float[Array, "B T N H"], tables: tuple[Float[Array, "B T 1 h"], Float[Array, "B T 1 h"]]
) -> Float[Array, "B T N H"]:
  """Rotates feature i of the first n and feature i + n / 2 as a pair; features beyond n stay."""
  cos_BT1h, sin_BT1h = tables
  size = 2 * cos_BT1h.shape[-1]
  turned_BTNR = jax.lax.platform_dependent(
    x_BTNH[..., :size], cos_BT1h, sin_BT1h, tpu=_rotate_heads, default=_rotate_halves
  )
  if size == x_BTNH.shape[-1]:
    return turned_BTNR
  return jnp.concatenate([turned_BTNR, x_BTNH[..., size:]], -1)


def _rotate_halves(
  x_BTNR: Float[Array, "B T N R"], cos_BT1h: Float[Array, "B T 1 h"], sin_BT1h: Array
) -> Float[Array, "B T N R"]:
  a_BTNh, b_BTNh = jnp.split(x_BTNR.astype(jnp.float32), 2, axis=-1)
  halves = a_BTNh * cos_BT1h - b_BTNh * sin_BT1h, b_BTNh * cos_BT1h + a_BTNh * sin_BT1h
  return jnp.concatenate(halves, -1).astype(x_BTNR.dtype)


def _rotate_heads(
  x_BTNR: Float[Array, "B T N R"], cos_BT1h: Float[Array, "B T 1 h"], sin_BT1h: Array
) -> Float[Array, "B T N R"]:
  """Does the same on whole heads, whose halves a product with a permutation swaps, exactly.

  A TPU's compiler moves halves of a vector register through memory, which takes much longer.
  """
  size = x_BTNR.shape[-1]
  swap_RR = jnp.roll(jnp.eye(size, dtype=x_BTNR.dtype), size // 2, 0)
  swapped_BTNR = jnp.matmul(
    x_BTNR, swap_RR, precision="highest", preferred_element_type=jnp.float32
  )
  cos_BT1R = jnp.concatenate([cos_BT1h, cos_BT1h], -1)
  sin_BT1R = jnp.concatenate([-sin_BT1h, sin_BT1h], -1)
  turned_BTNR = x_BTNR.astype(jnp.float32) * cos_BT1R + swapped_BTNR * sin_BT1R
  return turned_BTNR.astype(x_BTNR.dtype)
