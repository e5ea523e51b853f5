"""LoRA and its kin: y = W x + s B A x with low-rank A and B (Hu et al. 2021, eq. 3).

flax kernels are (inputs, outputs): below W' = W + s a b, with a (inputs, R) and b (R, outputs).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxtune import peft, tree
from jaxtune.errors import UserError, nearest
from jaxtune.models.layers import Embed, lift
from jaxtune.schema import Finite, Positive, Rate, Width

LEAVES = {"Linear": "kernel", "Embed": "embedding"}
SMALLEST = 1e-30  # of a squared norm: a column of zeros stays zero


def method(
  *,
  rank: Width = 8,
  alpha: Finite = 16.0,
  scale: Finite | None = None,
  rslora: bool = False,
  dropout: Rate = 0.0,
  targets: tuple[str, ...] = ("q_proj", "v_proj"),
  ranks: dict[str, Width] | None = None,
  alphas: dict[str, Finite] | None = None,
  initialise: Literal[*STARTS] = "kaiming",
  dora: bool = False,
  b_rate: Positive = 1.0,
  train_a: bool = True,
  gate: bool = False,
) -> peft.Method:
  r"""Adds a low-rank delta to linear layers and embeddings.

  Args:
    rank: columns of a; at most the smaller side of every target.
    alpha: the delta's scale is alpha / rank, or alpha / sqrt(rank) with `rslora` (Kalajdzievski
      2023). A rank sweep then also changes the scale.
    scale: a fixed scale instead, the same at every rank.
    dropout: of the delta's input, in training; an embedding has none.
    targets: regular expressions, matched against the end of the path of Linear and Embed sites. At
      an embedding the lookup gets s a[id] b; the logits of a model that scores by its embeddings
      stay those of the base, as in PEFT, but `merge` changes the one table that both read.
    ranks, alphas: other values at the targets that a pattern hits, such as {"mlp/\\w+": 4}; where
      two patterns hit one target they must agree. (A ConfigDict takes no key with a dot.)
    initialise: "kaiming": a uniform in +-1/sqrt(inputs), b = 0, as in the authors' code.
      "gaussian": a from N(0, 1 / R^2), b = 0.
      "pissa" (Meng et al. 2024): a0 = U sqrt(S / s), b0 = sqrt(S / s) V^T of the R largest singular
      values of W = U S V^T. "olora" (Buyukakyuz 2024): b0 = Q^T, a0 = R^T of the first R columns
      and rows of W^T = Q R. Both train a and b from there over W - s a0 b0; here W stays whole and
      the delta is s (a b - a0 b0). An embedding always starts with a = 0, b from N(0, 1).
    dora: trains the length of each output's weights apart from their direction (Liu et al. 2024,
      eq. 5): W' = m (W + s a b) / ||W + s a b||, with norms over the inputs and m = ||W|| at first.
      The norm is a constant in the gradient (section 4.3).
    b_rate: learning rate of b over that of a, at linear layers: LoRA+ (Hayou et al. 2024).
    train_a: False keeps a as it was drawn: LoRA-FA (Zhang et al. 2023).
    gate: whether the delta of each token x is multiplied by sigmoid(w x + b) with trained w and b
      from zero, so by 1/2 at first (UniPELT, see `unions`). It then cannot be merged.
  """
  sizes = Sizes(rank, alpha, scale, rslora, dict(ranks or {}), dict(alphas or {}))
  if alphas and scale is not None:
    raise UserError("method.scale fixes the scale of every target: expected no method.alphas")
  if gate and dora:
    raise UserError("method.gate and method.dora are both True: DoRA has no delta to gate")
  init = partial(_init, targets=targets, sizes=sizes, initialise=initialise, dora=dora, gate=gate)
  effective = rank * sizes.scale_at(rank, alpha)
  return peft.Method(
    "lora",
    init=partial(init, dropout=dropout, b_rate=b_rate, train_a=train_a),
    intercept=_intercept,
    merge=None if gate else _merge,
    numbers=("rank", "alpha", "scale", "rslora", "dropout", "ranks", "alphas", "b_rate"),
    padded={"a": (-1,), "b": (-2,), "a0": (-1,), "b0": (-2,)},
    patterns=tuple(targets),
    options=dict(rank=rank, alpha=effective, dropout=dropout)
    | {name: value for name, value in dict(ranks=ranks, alphas=alphas).items() if value}
    | dict(dora=dora, initialise=initialise, b_rate=b_rate, train_a=train_a, gate=gate),
  )


class Sizes(NamedTuple):
  """Ranks and scales: those of all targets, and of the targets that a pattern hits."""

  rank: int
  alpha: float
  scale: float | None
  rslora: bool
  ranks: dict[str, int]
  alphas: dict[str, float]

  def at(self, path: str) -> tuple[int, float]:
    """Returns the rank and the scale of a target."""
    rank = _first("ranks", self.ranks, path, self.rank)
    return rank, self.scale_at(rank, _first("alphas", self.alphas, path, self.alpha))

  def scale_at(self, rank: int, alpha: float) -> float:
    if self.scale is not None:
      return self.scale
    return alpha / (rank**0.5 if self.rslora else rank)


def _first(option: str, values: dict, path: str, default):
  """Returns the value of the patterns that hit a target, of which there must be one."""
  found = {pattern: value for pattern, value in values.items() if peft.hits(pattern, path)}
  if len(set(found.values())) > 1:
    # JSON and ConfigDict sort their keys, so that an order would not survive.
    raise UserError(f"method.{option} gives {path} several values: {found}; expected one")
  return next(iter(found.values()), default)


def _init(key, sites, frozen, *, targets, sizes, dropout, initialise, dora, b_rate, train_a, gate):
  chosen = peft.match(targets, sites, tuple(LEAVES))
  _check_patterns(sizes, chosen)
  trained, fixed = {}, {}
  for path, site in chosen.items():
    rank, scale = sizes.at(path)
    weight = partial(frozen.weight, f"{path}/{LEAVES[site.kind]}")
    shape = jax.eval_shape(weight).shape
    peft.check_rank("method.rank", rank, path, shape[-2:])
    start = _embedding if site.kind == "Embed" else STARTS[initialise]
    a_LIR, b_LRO = start(peft.site_key(key, path), weight, shape, rank, scale)
    full = lambda number, lead=site.lead: jnp.full(lead, number, jnp.float32)
    trained[path], fixed[path] = {"b": b_LRO}, {"scale": full(scale), "dropout": full(dropout)}
    (trained if train_a else fixed)[path]["a"] = a_LIR
    if site.kind == "Linear":
      fixed[path]["rate:b"] = full(b_rate)
      if initialise in AWAY:
        fixed[path] |= {"a0": jnp.copy(a_LIR), "b0": jnp.copy(b_LRO)}  # buffers may be donated
    elif not train_a:
      raise UserError(f"train_a=False leaves {path} at its start: an embedding's a is zero")
    if gate and site.kind == "Embed":
      raise UserError(f"method.gate reads an activation, which {path} has none of: expected False")
    if gate:
      trained[path]["gate_kernel"] = jnp.zeros(shape[:-1])
      trained[path]["gate_bias"] = jnp.zeros(site.lead)
    if dora:
      trained[path]["magnitude"] = jnp.linalg.norm(weight(), axis=-2)
  return trained, fixed


def _check_patterns(sizes: Sizes, chosen: dict) -> None:
  """Finds patterns that hit none of the targets."""
  for option in ("ranks", "alphas"):
    for pattern in getattr(sizes, option):
      if not any(peft.hits(pattern, path) for path in chosen):
        names = [*chosen, *(path.rsplit("/", 1)[-1] for path in chosen)]
        raise UserError(
          f"method.{option} has {pattern!r}, which hits no target; {nearest(pattern, names)}"
        )


def _drawn(sample: Callable, key, shape, rank: int):
  """Draws a, column by column, and leaves b at zero."""
  *lead, inputs, outputs = shape
  a_LIR = peft.draw_columns(partial(sample, shape=(*lead, inputs)), key, rank)
  return a_LIR, jnp.zeros((*lead, rank, outputs))


def _kaiming(key, weight, shape, rank, scale):
  bound = shape[-2] ** -0.5
  return _drawn(partial(jax.random.uniform, minval=-bound, maxval=bound), key, shape, rank)


def _gaussian(key, weight, shape, rank, scale):
  return _drawn(lambda k, shape: jax.random.normal(k, shape) / rank, key, shape, rank)


def _embedding(key, weight, shape, rank, scale):
  b_RO = peft.draw_columns(partial(jax.random.normal, shape=shape[-1:]), key, rank).T
  return jnp.zeros((shape[0], rank)), b_RO


def _pissa(key, weight, shape, rank, scale):
  if scale <= 0:
    raise UserError(f"method.initialise='pissa' divides by the scale {scale}, expected above 0")
  u_LIM, s_LM, v_LMO = jnp.linalg.svd(weight(), full_matrices=False)
  root_LR = jnp.sqrt(s_LM[..., :rank] / scale)
  return u_LIM[..., :rank] * root_LR[..., None, :], root_LR[..., None] * v_LMO[..., :rank, :]


def _olora(key, weight, shape, rank, scale):
  q_LOM, r_LMI = jnp.linalg.qr(weight().swapaxes(-1, -2))
  return r_LMI[..., :rank, :].swapaxes(-1, -2), q_LOM[..., :rank].swapaxes(-1, -2)


STARTS = {"kaiming": _kaiming, "gaussian": _gaussian, "pissa": _pissa, "olora": _olora}
AWAY = ("pissa", "olora")  # start with a product that is not zero


def _factors(arrays: dict[str, Array]) -> tuple[Float[Array, "*L I M"], Float[Array, "*L M O"]]:
  """Returns factors whose product is a b, or a b - a0 b0 = (a - a0) b + a0 (b - b0).

  Differences are taken in fp32: bf16 would lose what training adds to a0 and b0.
  """
  a_LIR, b_LRO = arrays["a"], arrays["b"]
  if "a0" not in arrays:
    return a_LIR, b_LRO
  a0_LIR, b0_LRO = arrays["a0"], arrays["b0"]
  a_LIM = jnp.concatenate([a_LIR - a0_LIR, a0_LIR], -1)
  return a_LIM, jnp.concatenate([b_LRO, b_LRO - b0_LRO], -2)


def _intercept(
  module: nn.Module,
  trained: dict[str, Array],
  fixed: dict[str, Array],
  next_fn: Callable,
  x: Float[Array, "*BT I"] | Int[Array, "*BT"],
) -> Float[Array, "*BT O"]:
  """Adds the delta to the output of a linear layer, or of an embedding, whose x are tokens."""
  arrays = {**fixed, **trained}
  a_IR, b_RO = _factors(arrays)
  embeds = isinstance(module, Embed)
  dropped = x if embeds else peft.dropout(module, x, fixed["dropout"])
  y_BTO = next_fn(x)
  low_BTR = (a_IR[x] if embeds else dropped @ a_IR.astype(x.dtype)).astype(y_BTO.dtype)
  delta_BTO = low_BTR * fixed["scale"].astype(y_BTO.dtype) @ b_RO.astype(y_BTO.dtype)
  if "gate_kernel" in trained:
    kernel_I, bias = (trained[name].astype(x.dtype) for name in ("gate_kernel", "gate_bias"))
    delta_BTO *= jax.nn.sigmoid(x @ kernel_I + bias)[..., None].astype(y_BTO.dtype)
  if "magnitude" not in trained:
    return y_BTO + delta_BTO
  gain_O = _gain(module.get_variable("params", LEAVES[type(module).__name__]), arrays)
  # As in PEFT, both W and the delta see the dropped input where there is dropout.
  product_BTO = next_fn(dropped) if module.has_rng("dropout") and not embeds else y_BTO
  if getattr(module, "use_bias", False):
    bias_O = module.get_variable("params", "bias").astype(y_BTO.dtype)
    product_BTO = product_BTO - lift(bias_O, y_BTO)
  grow, gain = (lift(g_O.astype(y_BTO.dtype), y_BTO) for g_O in (gain_O - 1, gain_O))
  return y_BTO + grow * product_BTO + gain * delta_BTO


def _gain(w_IO: Float[Array, "*L I O"], arrays: dict[str, Array]) -> Float[Array, "*L O"]:
  """Returns DoRA's m / ||W + s a b|| of each output, without making W + s a b."""
  a_IR, b_RO = jax.lax.stop_gradient(_factors(arrays))
  w_IO, b_RO = w_IO.astype(jnp.float32), arrays["scale"][..., None, None] * b_RO
  multiply = partial(jnp.matmul, precision="highest")
  a_RI = a_IR.swapaxes(-1, -2)
  products_RO = 2 * multiply(a_RI, w_IO) + multiply(multiply(a_RI, a_IR), b_RO)
  squares_O = jnp.sum(w_IO * w_IO, -2)
  squares_O += jnp.sum(b_RO * products_RO, -2)
  return arrays["magnitude"] / jnp.sqrt(jnp.maximum(squares_O, SMALLEST))


def _merge(params, trained, fixed):
  flat = tree.flatten(params)
  for site in trained:
    arrays = fixed[site] | trained[site]
    path = next(f"{site}/{leaf}" for leaf in LEAVES.values() if f"{site}/{leaf}" in flat)
    a_LIR, b_LRO = _factors(arrays)
    w_LIO = flat[path] + arrays["scale"][..., None, None] * a_LIR @ b_LRO
    if "magnitude" in arrays:
      w_LIO *= _gain(flat[path], arrays)[..., None, :]
    flat[path] = w_LIO
  return tree.unflatten(flat)
