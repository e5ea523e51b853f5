"""Attention by jax's kernel for TPUs, which never holds the scores of all queries and keys."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from jaxtune import sharding
from jaxtune.models.context import Mask
from jaxtune.models.split import axes_of_heads

LANES = 128  # of a TPU's vector registers: tiles of queries, and of keys, are multiples
TILES = (512, 384, 256, 128)


class Visible(masks._ComputableMask):
  """The rules of a `Mask` that are known when a program is compiled, for the TPU's kernel."""

  def __init__(self, shape: tuple[int, int], front: int, causal: bool, window: int | None):
    self.rules = shape, front, causal, window

    def sees(queries, keys):
      keys = keys - front
      seen = queries >= keys if causal else queries > -1
      if window is not None:
        seen = seen & (keys > queries - window) & (keys < queries + window)
      return seen | (keys < 0) if front else seen & (keys > -1)

    super().__init__(shape, sees)

  def __getitem__(self, idx: tuple[slice, slice]) -> np.ndarray:
    """Returns which queries of a tile see which of its keys.

    Most tiles of a long text are seen by all of their queries or by none; only others are computed.
    """
    queries, keys = idx
    least, most, behind, ahead = self._distances(queries, keys)
    alike = least > ahead or most < -behind or (least >= -behind and most <= ahead)
    if keys.start < self.rules[1] or not alike:
      return super().__getitem__(idx)
    return np.full((queries.stop - queries.start, keys.stop - keys.start), -behind <= most <= ahead)

  def _distances(self, queries: Any, keys: Any) -> tuple:
    """Returns by how many tokens keys are ahead of queries, from-to, and may be behind and ahead.

    Args:
      queries, keys: slices, or arrays of their starts and stops.
    """
    _, front, causal, window = self.rules
    behind = math.inf if window is None else window - 1
    least, most = keys.start - front - queries.stop + 1, keys.stop - front - queries.start - 1
    return least, most, behind, 0 if causal else behind

  def visited(self, q: int, k: int, parts: int) -> float:
    """Returns the share of tiles (q, k) that the kernel visits, in the part that visits the most.

    Args:
      parts: how many the queries are split into.
    """
    (queries, keys), front, *_ = self.rules
    starts = np.arange(0, queries, q)[:, None], np.arange(0, keys, k)[None]
    tiles = [slice(start, start + size) for start, size in zip(starts, (q, k), strict=True)]
    least, most, behind, ahead = self._distances(*tiles)
    seen = (least <= ahead) & (most >= -behind) | (starts[1] < front)
    return float(seen.reshape(parts, -1).mean(1).max())

  def __eq__(self, other: object) -> bool:
    return isinstance(other, Visible) and self.rules == other.rules

  def __hash__(self) -> int:
    return hash(self.rules)


def attend(
  q_BTNH: Float[Array, "B T N H"],
  k_BSKH: Float[Array, "B S K H"],
  v_BSKH: Float[Array, "B S K H"],
  mask: Mask,
  scale: float,
  softcap: float | None,
  *,
  interpret: bool = False,
) -> Float[Array, "B T N H"] | None:
  """Attends by the kernel; returns None for a mask or a mesh that it has no rules for.

  Args:
    interpret: whether the kernel is emulated, which any device can do.
  """
  _, slots, kv_heads, _ = k_BSKH.shape
  mixed = mask.segments is not None and (mask.open or mask.front is not None)
  if mask.start is not None or mixed or not sharding.splits(kv_heads, "tensor"):
    return None
  if mask.window is not None and mask.window >= slots:
    mask = mask.replace(window=None, local=None)
  if mask.window is not None and mask.local is not None:
    call = lambda mask: attend(q_BTNH, k_BSKH, v_BSKH, mask, scale, softcap, interpret=interpret)
    near, far = mask.replace(local=None), mask.replace(local=None, window=None)
    return jax.lax.cond(mask.local, lambda: call(near), lambda: call(far))
  return _run(q_BTNH, k_BSKH, v_BSKH, mask, scale, softcap=softcap, interpret=interpret)


def _run(
  q_BTNH: Array, k_BSKH: Array, v_BSKH: Array, mask: Mask, scale: float, *,
  softcap: float | None, interpret: bool,
) -> Array:  # fmt: skip
  """Calls the kernel on each device's shards: of heads, or of queries if the heads are too few."""
  (_, length, heads, _), (_, slots, kv_heads, _) = q_BTNH.shape, k_BSKH.shape
  by_heads = axes_of_heads(kv_heads)
  by_queries = () if "sequence" in by_heads else ("sequence",)
  shards = sharding.size(*by_queries)
  q, k = tile(-(-length // shards)), tile(-(-slots // shards))
  queries, keys = -(-length // (shards * q)) * shards * q, -(-slots // (shards * k)) * shards * k
  front = 0 if mask.front is None else len(mask.front)
  parts = shards if mask.causal or mask.window is not None else 1  # that see different keys
  rules = Visible((queries // shards * parts, keys), front, mask.causal, mask.window)
  kernel = kernels.make_splash_mha(
    masks.MultiHeadMask([rules] * heads), block_sizes=_blocks(q, k),
    head_shards=1, q_seq_shards=parts, attn_logits_soft_cap=softcap, interpret=interpret,
  )  # fmt: skip
  by_head = lambda x, count: jnp.pad(
    x.transpose(0, 2, 1, 3), ((0, 0), (0, 0), (0, count - x.shape[1]), (0, 0))
  )
  of_queries, of_keys = P(sharding.ROWS, by_heads, by_queries), P(sharding.ROWS, by_heads)
  segments = kernels.SegmentIds(P(sharding.ROWS, by_queries), P(sharding.ROWS))
  run = sharding.over_shards(
    lambda kernel, *arrays: jax.vmap(kernel)(*arrays),
    (_places(kernel, parts), of_queries, of_keys, of_keys, segments),
    of_queries,
  )
  scaled_BTNH = (q_BTNH.astype(jnp.float32) * scale).astype(q_BTNH.dtype)
  with jax.named_scope(f"visits_{rules.visited(q, k, parts):.4f}"):  # which `preflight` reads
    y_BNTH = run(
      kernel, by_head(scaled_BTNH, queries), by_head(k_BSKH, keys), by_head(v_BSKH, keys),
      _segments(mask, length, queries, keys),
    )  # fmt: skip
  return y_BNTH.transpose(0, 2, 1, 3)[:, :length]


def _places(kernel: kernels.SplashAttentionKernel, parts: int) -> Any:
  """Returns what splits a kernel's own arrays, which say what the queries of each part see."""
  if parts == 1:
    return P()
  by_queries = NamedSharding(jax.sharding.get_abstract_mesh(), P(None, "sequence"))
  return kernel.manual_sharding_spec(by_queries)


def _segments(mask: Mask, length: int, queries: int, keys: int) -> kernels.SegmentIds:
  """Returns the segments of padded queries and keys; without segments, those of real keys are 1."""
  if mask.segments is None:
    rows, front = len(mask.keys), [] if mask.front is None else [mask.front]
    front = [jnp.broadcast_to(real_P, (rows, len(real_P))) for real_P in front]
    of_keys_BS = jnp.concatenate([*front, mask.keys], 1).astype(jnp.int32)
    of_queries_BT = jnp.ones((rows, length), jnp.int32)
  else:
    of_keys_BS = of_queries_BT = mask.segments
  pad = lambda x, count: jnp.pad(x, ((0, 0), (0, count - x.shape[1])))
  return kernels.SegmentIds(pad(of_queries_BT, queries), pad(of_keys_BS, keys))


def tile(count: int) -> int:
  """Chooses the size of tiles that a count of queries or keys is padded to a multiple of.

  Large tiles take less time a token, and small ones need less padding.
  """
  return min(TILES, key=lambda size: -(-count // size) * (size + LANES))


def _blocks(q: int, k: int) -> kernels.BlockSizes:
  """Returns the sizes of the kernel's tiles, the same ones forward and backward."""
  return kernels.BlockSizes(
    block_q=q, block_kv=k, block_kv_compute=k,
    block_q_dkv=q, block_kv_dkv=k, block_kv_dkv_compute=k, block_q_dq=q, block_kv_dq=k,
  )  # fmt: skip
