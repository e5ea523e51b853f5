"""Defines the layers that every model is built from, and that fine-tuning methods can wrap.

The name of an array ends in its axes, x_BTD for (B, T, D), by one key for the whole package:

  B batch, T tokens, S key tokens, D model width, F width of a feed-forward or a bottleneck,
  N heads, K key/value heads, H head size, h pairs of features of a head, V vocabulary, L layers,
  R rank, P prompt, E trials;
  I inputs and O outputs of a linear layer, G groups or blocks of an axis, M members of a group;
  X examples, C classes or answer choices, U variants of an example, W windows or data sets,
  J statistics of an example, Z resamples; a digit is the size of an axis.

Leading axes may be missing where a function does not need them: a head's linear layer reads x_BI.

The modules are plain `flax.linen` and know nothing of methods. A method chooses the calls that it
wraps by the class of the module: `Linear`, `Embed`, `Norm`, `Attend` or `Residual`, or `Block` or
`Trunk` of `transformer`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxtune.errors import UserError
from jaxtune.models.context import Mask

ACTIVATIONS = {
  "silu": jax.nn.silu,
  "gelu": lambda x: jax.nn.gelu(x, approximate=False),
  "gelu_new": lambda x: jax.nn.gelu(x, approximate=True),
  "gelu_fast": lambda x: jax.nn.gelu(x, approximate=True),
  "gelu_pytorch_tanh": lambda x: jax.nn.gelu(x, approximate=True),
  "relu": jax.nn.relu,
  "tanh": jnp.tanh,
  "mish": jax.nn.mish,
}
# For each fused kernel of attention, what has it, and the platforms of that.
FUSED = {"splash": ("a TPU", ("tpu",)), "cudnn": ("a GPU", ("gpu", "cuda"))}


def choose_attention(platform: str, length: int) -> str:
  """Returns how attention of rows of this length is computed by default: see `Attend`.

  Rows of less than 512 tokens would mostly be padding of the tiles of TPUs' kernel.
  """
  if platform in ("gpu", "cuda"):
    return "cudnn"
  return "splash" if platform == "tpu" and length >= 512 else "plain"


def check_attention(attention: str | None, platform: str) -> None:
  """Raises UserError for a fused kernel of attention that is none of the platform's."""
  name, platforms = FUSED.get(attention, ("", (platform,)))
  if platform not in platforms:
    raise UserError(
      f"model.attention is {attention!r}, expected {name}; this is a {platform}: leave it at None"
    )


def lift(array: jax.Array, like: jax.Array) -> jax.Array:
  """Prepends axes of size 1 until an array has the rank of `like`.

  The tests forbid jax's implicit rank promotion, which hides mistakes in shapes.
  """
  return jnp.expand_dims(array, tuple(range(like.ndim - array.ndim)))


def times(x: jax.Array, factor: jax.Array | float) -> jax.Array:
  """Multiplies in fp32 and returns x's type: bfloat16's next number above one is 1.008."""
  wide = x.astype(jnp.float32)
  return (wide * lift(jnp.asarray(factor, jnp.float32), wide)).astype(x.dtype)


class Linear(nn.Module):
  """Computes x @ kernel, plus a bias with `use_bias`: (..., inputs) -> (..., outputs)."""

  inputs: int
  outputs: int
  use_bias: bool = False
  dtype: Any = jnp.float32

  def setup(self):
    self.kernel = self.param("kernel", nn.initializers.normal(0.02), (self.inputs, self.outputs))
    if self.use_bias:
      self.bias = self.param("bias", nn.initializers.zeros, (self.outputs,))

  def __call__(self, x_BTI: Float[Array, "*BT I"]) -> Float[Array, "*BT O"]:
    y_BTO = x_BTI @ self.kernel.astype(self.dtype)
    return y_BTO + lift(self.bias.astype(self.dtype), y_BTO) if self.use_bias else y_BTO


class Embed(nn.Module):
  """Looks up rows of a (count, features) table; `attend` multiplies states by every row."""

  count: int
  features: int
  dtype: Any = jnp.float32

  def setup(self):
    shape = (self.count, self.features)
    self.embedding = self.param("embedding", nn.initializers.normal(0.02), shape)

  def __call__(self, ids_BT: Int[Array, "*BT"]) -> Float[Array, "*BT D"]:
    # A cast of the whole table would sum the gradients of a row in bf16, where sums stand still.
    return self.embedding[ids_BT].astype(self.dtype)

  def attend(self, x_BTD: Float[Array, "*BT D"]) -> Float[Array, "*BT V"]:
    return x_BTD @ self.embedding.astype(self.dtype).T


class Norm(nn.Module):
  """Normalises the last axis in fp32: LayerNorm where `centre`, else RMSNorm.

  The result is multiplied by scale + `offset` (Gemma stores its scales around 0); `use_bias` then
  adds a bias.
  """

  features: int
  epsilon: float
  centre: bool
  use_bias: bool = False
  offset: float = 0.0
  dtype: Any = jnp.float32

  def setup(self):
    start = nn.initializers.constant(1.0 - self.offset)
    self.scale = self.param("scale", start, (self.features,))
    if self.use_bias:
      self.bias = self.param("bias", nn.initializers.zeros, (self.features,))

  def __call__(self, x_BTD: Float[Array, "*BT D"]) -> Float[Array, "*BT D"]:
    x_BTD = x_BTD.astype(jnp.float32)
    if self.centre:
      x_BTD = x_BTD - x_BTD.mean(-1, keepdims=True)
    x_BTD = x_BTD * jax.lax.rsqrt(jnp.mean(x_BTD * x_BTD, -1, keepdims=True) + self.epsilon)
    x_BTD = x_BTD * lift(self.scale.astype(jnp.float32) + self.offset, x_BTD)
    return (x_BTD + lift(self.bias, x_BTD) if self.use_bias else x_BTD).astype(self.dtype)


class Attend(nn.Module):
  """Computes the attention of queries to the keys that the mask names.

  N is a multiple of K (grouped-query attention).
  Scores are multiplied by `scale` (None: H**-0.5), then bounded to c tanh(s / c) if there is a
  `softcap` c, then the bias is added.

  `implementation` is "plain" for matrix products with a softmax in fp32, on any device; "splash"
  for jax's kernel for TPUs, and "cudnn" for that for NVIDIA GPUs (bf16 or fp16), each with plain
  products for what it does not take. None is "splash" on a TPU, where rows are long enough to gain
  by it, "cudnn" on a GPU, and "plain" on other devices. `platform` is that of the device; None
  stands for this process's.
  """

  implementation: str | None = None
  scale: float | None = None
  softcap: float | None = None
  platform: str | None = None

  def __call__(
    self,
    q_BTNH: Float[Array, "B T N H"],
    k_BSKH: Float[Array, "B S K H"],
    v_BSKH: Float[Array, "B S K H"],
    mask: Mask,
    bias_1NTS: Float[Array, "1 N T S"] | None = None,
  ) -> Float[Array, "B T N H"]:
    batch, length, heads, size = q_BTNH.shape
    scale = size**-0.5 if self.scale is None else self.scale
    here = self.platform or jax.default_backend()
    kernel = self.implementation or choose_attention(here, length)
    if bias_1NTS is None and kernel != "plain":
      from jaxtune.models import cudnn, splash  # not before: other devices do without their kernels

      fused = splash if kernel == "splash" else cudnn
      y_BTNH = fused.attend(q_BTNH, k_BSKH, v_BSKH, mask, scale, self.softcap)
      if y_BTNH is not None:
        return y_BTNH
    groups = k_BSKH.shape[2]
    # One product for all queries of a key/value head is faster than one each: experiments/speed.
    q_BTKGH = q_BTNH.reshape(batch, length, groups, heads // groups, size)
    q_BKMH = q_BTKGH.transpose(0, 2, 1, 3, 4).reshape(batch, groups, -1, size)
    k_BKSH, v_BKSH = k_BSKH.transpose(0, 2, 1, 3), v_BSKH.transpose(0, 2, 1, 3)
    scores_BKMS = jnp.einsum("bkmh,bksh->bkms", q_BKMH, k_BKSH).astype(jnp.float32) * scale
    if self.softcap is not None:
      scores_BKMS = self.softcap * jnp.tanh(scores_BKMS / self.softcap)
    scores_BKTGS = scores_BKMS.reshape(batch, groups, length, heads // groups, -1)
    if bias_1NTS is not None:
      bias_1KGTS = bias_1NTS.reshape(1, groups, heads // groups, *bias_1NTS.shape[2:])
      scores_BKTGS += bias_1KGTS.swapaxes(2, 3)
    seen_B1T1S = mask.array(length)[:, :, :, None]
    scores_BKTGS = jnp.where(seen_B1T1S, scores_BKTGS, jnp.finfo(jnp.float32).min)
    weights_BKTGS = jax.nn.softmax(scores_BKTGS).astype(v_BSKH.dtype)
    weights_BKMS = weights_BKTGS.reshape(batch, groups, -1, scores_BKTGS.shape[-1])
    y_BKTGH = (weights_BKMS @ v_BKSH).reshape(batch, groups, length, -1, size)
    return y_BKTGH.transpose(0, 2, 1, 3, 4).reshape(batch, length, heads, size)


class Residual(nn.Module):
  """Adds a sublayer's output y to the residual stream x. Bottleneck adapters wrap this module.

  With `make_norm`, the sum is normalised, as in Vaswani et al. 2017, BERT and BART.
  """

  make_norm: Callable[[], Norm] | None = None

  def setup(self):
    if self.make_norm is not None:
      self.norm = self.make_norm()

  def __call__(
    self, x_BTD: Float[Array, "B T D"], y_BTD: Float[Array, "B T D"]
  ) -> Float[Array, "B T D"]:
    return x_BTD + y_BTD if self.make_norm is None else self.norm(x_BTD + y_BTD)


class RelativeBias(nn.Module):
  """Looks up T5's learned bias of attention scores by head and distance (Raffel et al. 2020).

  With `both_ways`, half of the buckets are for keys ahead of the query and half for keys behind it;
  otherwise keys ahead count as distance 0. In each direction, half of the buckets hold a single
  distance, and the others widen logarithmically up to `longest`. The last one holds all beyond.
  """

  buckets: int
  longest: int
  heads: int
  both_ways: bool

  def setup(self):
    shape = (self.buckets, self.heads)
    self.embedding = self.param("embedding", nn.initializers.normal(0.02), shape)

  def __call__(self, ahead_TS: Int[Array, "T S"]) -> Float[Array, "1 N T S"]:
    """Returns the biases of keys that are `ahead_TS` slots ahead of their queries."""
    count = self.buckets // 2 if self.both_ways else self.buckets
    distance_TS = jnp.abs(ahead_TS) if self.both_ways else jnp.maximum(-ahead_TS, 0)
    bucket_TS = jnp.asarray(self._by_distance(count))[jnp.minimum(distance_TS, self.longest)]
    if self.both_ways:
      bucket_TS = bucket_TS + count * (ahead_TS > 0)
    return self.embedding.astype(jnp.float32)[bucket_TS].transpose(2, 0, 1)[None]

  def _by_distance(self, count: int) -> np.ndarray:
    """Returns the bucket of each distance from 0 to `longest`, for `count` buckets.

    It is computed with numpy because devices round logarithms differently.
    """
    exact, distance = count // 2, np.arange(self.longest + 1)
    steps = np.log(np.maximum(distance, 1).astype(np.float32) / exact)
    far = exact + (steps / math.log(self.longest / exact) * (count - exact)).astype(np.int32)
    return np.where(distance < exact, distance, np.minimum(far, count - 1))
