"""Attention by cuDNN's kernel for NVIDIA GPUs, which never holds the scores of all pairs.

The kernel hides the keys ahead of a query, those behind its window, and those from a row's length
on. For lengths to say which keys are real, each row's real slots are packed at its beginning. They
stay in order, so that they see the same keys. With a prefix, queries get as many slots in front.

Segments, windows both ways, and windows beside a prefix are given to the kernel as an array, a bias
of scores for each head, of the type of the queries.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax._src.cudnn import fused_attention_stablehlo as kernels
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from jaxtune import sharding
from jaxtune.models.context import Mask
from jaxtune.models.split import axes_of_heads


def attend(
  q_BTNH: Float[Array, "B T N H"],
  k_BSKH: Float[Array, "B S K H"],
  v_BSKH: Float[Array, "B S K H"],
  mask: Mask,
  scale: float,
  softcap: float | None,
  *,
  implementation: str = "cudnn",
) -> Float[Array, "B T N H"] | None:
  """Attends by the kernel; returns None where it has no rules, and for a single query of each row.

  The real keys of a row with a window must stand side by side.

  Args:
    implementation: "xla" emulates the kernel, which any device can do.
  """
  if mask.window is not None and mask.window >= mask.keys.shape[1]:
    mask = mask.replace(window=None)
  if mask.start is not None or softcap is not None or q_BTNH.shape[1] == 1:
    return None
  if not sharding.splits(k_BSKH.shape[2], "tensor"):
    return None
  if implementation == "cudnn" and not _takes(q_BTNH):
    return None
  # Under vmap jax needs a mask of each trial, also where the trials' masks are one.
  some_B1 = q_BTNH[:, :1, 0, 0].astype(jnp.int32)
  mask = mask.replace(keys=mask.keys | (some_B1 != some_B1))
  length, (*qkv, mask) = q_BTNH.shape[1], _even(q_BTNH, k_BSKH, v_BSKH, mask)
  run = partial(_run, *qkv, scale=scale, implementation=implementation)
  near, far = mask.replace(local=None), mask.replace(local=None, window=None)
  if mask.window is None or mask.local is None:
    return run(near)[:, :length]
  return jax.lax.cond(mask.local, lambda: run(near), lambda: run(far))[:, :length]


def on(capability: tuple[int, ...]) -> contextlib.AbstractContextManager[None]:
  """Lets programs be traced for a GPU of a compute capability, whatever this process runs on."""
  takes = lambda least: capability >= tuple(map(int, least.split(".")))
  return _replaced("check_compute_capability", takes)


@contextlib.contextmanager
def _replaced(name: str, function: Callable) -> Iterator[None]:
  """Replaces a function of jax's kernels, if this version of jax has it."""
  of_jax = getattr(kernels, name, None)
  if of_jax is not None:
    setattr(kernels, name, function)
  try:
    yield
  finally:
    if of_jax is not None:
      setattr(kernels, name, of_jax)


def by_rules(mask: Mask) -> bool:
  """Says whether the kernel knows all rules of a mask, so that no array of it is made."""
  window = mask.window is not None and (mask.front is not None or not mask.causal)
  return mask.segments is None and not window


def _takes(q_BTNH: Array) -> bool:
  """Says whether the kernel takes arrays of this type and head size, on the device at hand."""
  largest = 256 if kernels.check_compute_capability("9.0") else 128
  fits = q_BTNH.shape[-1] <= largest and q_BTNH.shape[-1] % 8 == 0
  recent = kernels.check_compute_capability("8.0")
  return recent and fits and q_BTNH.dtype in (jnp.bfloat16, jnp.float16)


def _even(q_BTNH: Array, k_BSKH: Array, v_BSKH: Array, mask: Mask) -> tuple[Any, ...]:
  """Pads queries, keys and a prefix to even numbers, as jax has no gradient of others."""
  pad = lambda x, before, behind: jnp.pad(x, [(0, 0), (before, behind)] + [(0, 0)] * (x.ndim - 2))
  behind, before = mask.keys.shape[1] % 2, 0
  mask = mask.replace(keys=pad(mask.keys, 0, behind))
  if mask.segments is not None:
    mask = mask.replace(segments=pad(mask.segments, 0, behind))
  if mask.front is not None:
    before = len(mask.front) % 2
    mask = mask.replace(front=jnp.pad(mask.front, (before, 0)))
  q_BTNH = pad(q_BTNH, 0, q_BTNH.shape[1] % 2)
  return q_BTNH, pad(k_BSKH, before, behind), pad(v_BSKH, before, behind), mask


def _run(q_BTNH, k_BSKH, v_BSKH, mask: Mask, scale: float, implementation: str) -> Array:
  """Calls the kernel on each device's shards.

  Its causal mask begins at the first key, so that it cannot be given the later queries of a row
  alone. Where "sequence" cannot split the heads, every device computes them all.
  """
  call = partial(jax.nn.dot_product_attention, scale=scale, implementation=implementation)
  split = lambda x, *axes: None if x is None else P(*axes)
  rows = mask.replace(
    keys=P(sharding.ROWS), segments=split(mask.segments, sharding.ROWS), front=split(mask.front)
  )
  heads = P(sharding.ROWS, None, axes_of_heads(k_BSKH.shape[2]))
  attend = partial(_by_rules if by_rules(mask) else _by_array, call)
  return sharding.over_shards(attend, (heads, heads, heads, rows), heads)(
    q_BTNH, k_BSKH, v_BSKH, mask
  )


def _by_array(call, q_BTNH: Array, k_BSKH: Array, v_BSKH: Array, mask: Mask) -> Array:
  (batch, length, heads, _), slots = q_BTNH.shape, k_BSKH.shape[1]
  # jax's rule for vmap knows no bias that heads share.
  seen_BNTS = jnp.broadcast_to(mask.array(length), (batch, heads, length, slots))
  # Until 0.11 jax lets the kernel write a gradient of the mask, which nothing reads.
  with _replaced("should_export_dbias", lambda *_: False):
    return call(q_BTNH, k_BSKH, v_BSKH, mask=seen_BNTS)


def _by_rules(call, q_BTNH: Array, k_BSKH: Array, v_BSKH: Array, mask: Mask) -> Array:
  length, front = q_BTNH.shape[1], 0 if mask.front is None else len(mask.front)
  real_BS = mask.keys
  if front:
    real_BP = jnp.broadcast_to(mask.front, (len(real_BS), front))
    real_BS = jnp.concatenate([real_BP, real_BS], 1)
  count_B = real_BS.sum(1, dtype=jnp.int32)
  # The places of real slots in a packed row, and of the others behind them.
  ranks = lambda of_BS: jnp.cumsum(of_BS, 1, dtype=jnp.int32) - 1
  place_BS = jnp.where(real_BS, ranks(real_BS), count_B[:, None] + ranks(~real_BS))
  slots_S = jnp.arange(real_BS.shape[1], dtype=jnp.int32)
  order_BS = jax.vmap(lambda place: slots_S.at[place].set(slots_S, unique_indices=True))(place_BS)
  packed_BS = slots_S[None] < count_B[:, None]
  pack = lambda x_BSNH: _move(x_BSNH, (order_BS, packed_BS), (place_BS, real_BS))
  unpack = lambda x_BSNH: _move(x_BSNH, (place_BS, real_BS), (order_BS, packed_BS))
  count_B = jnp.maximum(count_B, 1)  # a softmax over nothing is no number
  call = partial(call, key=pack(k_BSKH), value=pack(v_BSKH), key_value_seq_lengths=count_B)
  if not mask.causal:
    return call(q_BTNH, query_seq_lengths=0 * count_B + length)
  y_BSNH = call(
    pack(jnp.pad(q_BTNH, ((0, 0), (front, 0), (0, 0), (0, 0)))),
    query_seq_lengths=count_B,
    is_causal=True,
    local_window_size=None if mask.window is None else (mask.window - 1, 0),
  )
  return unpack(y_BSNH)[:, front:]


@jax.custom_vjp
def _move(x_BSNH: Array, to: tuple[Array, Array], back: tuple[Array, Array]) -> Array:
  """Reorders the slots of each row, and sets those to zero that hold nothing then.

  So nothing depends on what the kernel leaves in the padding of its results and gradients.

  Args:
    to: (B, S) each, the slot that each one's content comes from, and whether it holds any.
    back: the same for the way back, which gradients go.
  """
  order_BS, kept_BS = to
  take = lambda x, order: x.at[order].get(unique_indices=True, mode="promise_in_bounds")
  return jnp.where(kept_BS[..., None, None], jax.vmap(take)(x_BSNH, order_BS), 0)


_move.defvjp(
  lambda x_BSNH, to, back: (_move(x_BSNH, to, back), (back, to)),
  lambda ways, g_BSNH: (_move(g_BSNH, *ways), None, None),
)
