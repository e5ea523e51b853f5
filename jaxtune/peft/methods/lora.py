"""LoRA and its variants: y = W x + s B A x with low-rank A and B (Hu et al. 2021, eq. 3).

flax kernels are (inputs, outputs): below W' = W + s a b, with a (inputs, R) and b (R, outputs).
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxtune import peft
from jaxtune.errors import UserError
from jaxtune.models.layers import Embed, lift, times
from jaxtune.schema import Finite, Positive, Rate, Width

Factors = tuple[Float[Array, "*L I R"], Float[Array, "*L R O"]]
Shape = tuple[int, ...]
LEAVES = {"Linear": "kernel", "Embed": "embedding"}


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
  initialise: Literal[*INITIALISERS] = "kaiming",
  dora: bool = False,
  b_rate: Positive = 1.0,
  train_a: bool = True,
  gate: bool = False,
) -> peft.Method:
  r"""Adds a low-rank delta to linear layers and embeddings.

  Args:
    rank: number of columns of a; at most the smaller side of every target.
    alpha: numerator of the delta's scale s, alpha / rank, or alpha / sqrt(rank) with `rslora`
      (Kalajdzievski 2023). A rank sweep then also changes the scale.
    scale: the delta's scale itself, the same at every rank; it excludes `alphas` and `rslora`.
    dropout: rate at which entries of the delta's input are set to zero in training; an embedding
      has none.
    targets: regular expressions, matched against the end of the path of Linear and Embed sites. At
      an embedding, s a[id] b is added to the vector of a token. Where the logits are computed with
      the same table, they use the base's, as in PEFT, but `merge` changes the table for both.
    ranks, alphas: {pattern: value}, such as {"mlp/\\w+": 4}, in place of rank and alpha at the
      targets that a pattern hits. Every pattern must hit one, and two that hit the same must agree.
      (A ConfigDict takes keys with dots if it is made with allow_dotted_keys=True.)
    initialise: how a and b start. "kaiming": a uniform in +-1/sqrt(inputs), b = 0, as in the
      authors' code. "gaussian": a from N(0, 1 / R^2), b = 0.
      "pissa" (Meng et al. 2024): a0 = U sqrt(S / s), b0 = sqrt(S / s) V^T of the R largest singular
      values of W = U S V^T, for s > 0. "olora" (Buyukakyuz 2024): b0 = Q^T, a0 = Z^T of the first R
      columns of Q and rows of Z in W^T = Q Z (QR). Both papers train a and b from there over
      W - s a0 b0; here W stays as it is and the delta is s (a b - a0 b0), whose a0 b0 sees the
      dropout of the delta too.
      An embedding always starts with a = 0, b from N(0, 1).
    dora: whether the norm of each output's weights is trained apart from their direction (Liu et
      al. 2024, eq. 5): W' = m (W + s a b) / ||W + s a b||, with norms over the inputs and m = ||W||
      at first. The gradient takes ||W + s a b|| as a constant (section 4.3).
    b_rate: ratio of b's learning rate to a's, at linear layers: LoRA+ (Hayou et al. 2024).
    train_a: whether a is trained; False keeps a as it was drawn, at linear layers only: LoRA-FA
      (Zhang et al. 2023).
    gate: whether the delta of each token x is multiplied by sigmoid(w x + c), where w and c are
      trained and start at zero, so that it starts at 1/2 (UniPELT, see `unions`). The delta cannot
      be merged then. A gate excludes `dora` and embeddings.
  """
  if alphas and scale is not None:
    raise UserError("method.scale fixes the scale of every target: expected no method.alphas")
  if rslora and scale is not None:
    raise UserError("method.scale fixes the scale at every rank: expected no method.rslora")
  if gate and dora:
    raise UserError("method.gate and method.dora are both True: DoRA has no delta to gate")
  ranks, alphas = dict(ranks or {}), dict(alphas or {})
  scale_of = partial(_scale, fixed=scale, rslora=rslora)
  flags = dict(dora=dora, initialise=initialise, b_rate=b_rate, train_a=train_a, gate=gate)
  sizes = dict(rank=rank, alpha=alpha, ranks=ranks, alphas=alphas, scale_of=scale_of)
  return peft.Method(
    "lora",
    init=partial(_init, targets=targets, dropout=dropout, **sizes, **flags),
    intercept=_intercept,
    merge=None if gate else _merge,
    factors=None if gate or dora else _scaled_factors,
    groupable=("rank", "alpha", "scale", "rslora", "dropout", "ranks", "alphas", "b_rate"),
    padded_axes={"a": (-1,), "b": (-2,), "a0": (-1,), "b0": (-2,)},
    patterns=tuple(targets),
    options=dict(rank=rank, alpha=rank * scale_of(rank, alpha), dropout=dropout)
    | {name: values for name, values in dict(ranks=ranks, alphas=alphas).items() if values}
    | flags,
  )


def _scale(rank: int, alpha: float, fixed: float | None, rslora: bool) -> float:
  if fixed is not None:
    return fixed
  return alpha / (rank**0.5 if rslora else rank)


def _by_target(option: str, default: float, overrides: dict, paths: Collection[str]) -> dict:
  """Returns {target: value}: that of the patterns that hit it, or else the default."""
  for pattern in overrides:
    peft.check_hits(pattern, paths, f"method.{option} has {pattern!r}, which hits no target")
  values = {}
  for path in paths:
    given = {pattern: value for pattern, value in overrides.items() if peft.hits(pattern, path)}
    if len(set(given.values())) > 1:
      # Their order cannot decide: JSON and ConfigDict sort their keys.
      raise UserError(f"method.{option} gives {path} several values: {given}; expected one")
    values[path] = next(iter(given.values()), default)
  return values


def _init(
  key: Array, sites: dict[str, peft.Site], frozen: peft.Frozen, *, targets: tuple[str, ...],
  rank: int, alpha: float, ranks: dict[str, int], alphas: dict[str, float], scale_of: Callable,
  dropout: float, initialise: str, dora: bool, b_rate: float, train_a: bool, gate: bool,
) -> tuple[peft.Arrays, peft.Arrays]:  # fmt: skip
  chosen = peft.match(targets, sites, tuple(LEAVES))
  default, ranks = rank, _by_target("ranks", rank, ranks, chosen)
  alphas = _by_target("alphas", alpha, alphas, chosen)
  trained, fixed = {}, {}
  for path, site in chosen.items():
    rank, scale = ranks[path], scale_of(ranks[path], alphas[path])
    weight = partial(frozen.weight, f"{path}/{LEAVES[site.kind]}")
    shape = jax.eval_shape(weight).shape
    option = "method.rank" if rank == default else "method.ranks"
    peft.check_rank(option, rank, path, shape[-2:])
    start = _embedding if site.kind == "Embed" else INITIALISERS[initialise]
    a_LIR, b_LRO = start(peft.site_key(key, path), weight, shape, rank, scale)
    trained[path] = {"b": b_LRO}
    fixed[path] = site.constants({"scale": scale, "dropout": dropout})
    (trained if train_a else fixed)[path]["a"] = a_LIR
    if site.kind == "Linear":
      fixed[path] |= site.constants({"rate:b": b_rate})
      if initialise in ("pissa", "olora"):  # a b is not zero at the start
        # Copies, because the buffers of trained arrays may be donated.
        fixed[path] |= {"a0": jnp.copy(a_LIR), "b0": jnp.copy(b_LRO)}
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


def _random(initializer: Callable, key: Array, shape: Shape, rank: int) -> Factors:
  """Draws a with an initializer, and sets b to zero."""
  *lead, inputs, outputs = shape
  a_LIR = peft.draw(initializer, key, (*lead, inputs, rank), axis=-1)
  return a_LIR, jnp.zeros((*lead, rank, outputs))


def _kaiming(key: Array, weight: Callable, shape: Shape, rank: int, scale: float) -> Factors:
  return _random(peft.uniform(shape[-2] ** -0.5), key, shape, rank)


def _gaussian(key: Array, weight: Callable, shape: Shape, rank: int, scale: float) -> Factors:
  return _random(lambda k, shape: jax.random.normal(k, shape) / rank, key, shape, rank)


def _embedding(key: Array, weight: Callable, shape: Shape, rank: int, scale: float) -> Factors:
  inputs, outputs = shape
  b_RO = peft.draw(jax.random.normal, key, (rank, outputs), axis=0)
  return jnp.zeros((inputs, rank)), b_RO


def _pissa(key: Array, weight: Callable, shape: Shape, rank: int, scale: float) -> Factors:
  if scale <= 0:
    raise UserError(f"method.initialise='pissa' divides by the scale {scale}, expected above 0")
  u_LIM, s_LM, v_LMO = jnp.linalg.svd(weight(), full_matrices=False)
  root_LR = jnp.sqrt(s_LM[..., :rank] / scale)
  return u_LIM[..., :rank] * root_LR[..., None, :], root_LR[..., None] * v_LMO[..., :rank, :]


def _olora(key: Array, weight: Callable, shape: Shape, rank: int, scale: float) -> Factors:
  q_LOM, r_LMI = jnp.linalg.qr(weight().swapaxes(-1, -2))
  return r_LMI[..., :rank, :].swapaxes(-1, -2), q_LOM[..., :rank].swapaxes(-1, -2)


INITIALISERS = {"kaiming": _kaiming, "gaussian": _gaussian, "pissa": _pissa, "olora": _olora}


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
  call: peft.Call, x: Float[Array, "*BT I"] | Int[Array, "*BT"]
) -> Float[Array, "*BT O"]:
  """Adds the delta to the output of a linear layer, or of an embedding, whose x are tokens."""
  module, arrays = call.module, call.arrays
  a_IR, b_RO = _factors(arrays)
  embeds = isinstance(module, Embed)
  dropped = x if embeds else call.dropout(x)
  y_BTO = call.next_fn(x)
  low_BTR = (a_IR[x] if embeds else dropped @ a_IR.astype(x.dtype)).astype(y_BTO.dtype)
  delta_BTO = times(low_BTR, arrays["scale"]) @ b_RO.astype(y_BTO.dtype)
  if "gate_kernel" in arrays:
    delta_BTO *= call.gate(x).astype(y_BTO.dtype)
  if "magnitude" not in arrays:
    return y_BTO + delta_BTO
  gain_O = _gain(module.get_variable("params", LEAVES[type(module).__name__]), arrays)
  # As in PEFT, both W and the delta see the dropped input where there is dropout.
  product_BTO = call.next_fn(dropped) if module.has_rng("dropout") and not embeds else y_BTO
  if getattr(module, "use_bias", False):
    bias_O = module.get_variable("params", "bias").astype(y_BTO.dtype)
    product_BTO = product_BTO - lift(bias_O, y_BTO)
  grow, gain = (lift(g_O.astype(y_BTO.dtype), y_BTO) for g_O in (gain_O - 1, gain_O))
  return y_BTO + grow * product_BTO + gain * delta_BTO


def _gain(w_IO: Float[Array, "*L I O"], arrays: dict[str, Array]) -> Float[Array, "*L O"]:
  """Returns DoRA's m / ||W + s a b|| of each output, without computing W + s a b."""
  a_IR, b_RO = jax.lax.stop_gradient(_factors(arrays))
  w_IO, b_RO = w_IO.astype(jnp.float32), arrays["scale"][..., None, None] * b_RO
  multiply = partial(jnp.matmul, precision="highest")
  a_RI = a_IR.swapaxes(-1, -2)
  products_RO = 2 * multiply(a_RI, w_IO) + multiply(multiply(a_RI, a_IR), b_RO)
  squares_O = jnp.sum(w_IO * w_IO, -2) + jnp.sum(b_RO * products_RO, -2)
  # Bounded, so that a column of zeros stays zero.
  return arrays["magnitude"] / jnp.sqrt(jnp.maximum(squares_O, 1e-30))


def _scaled_factors(arrays: dict[str, Array]) -> Factors:
  a_LIM, b_LMO = _factors(arrays)
  return arrays["scale"][..., None, None] * a_LIM, b_LMO


def _merge(leaves: dict[str, Array], arrays: dict[str, Array]) -> dict[str, Array]:
  name = "kernel" if "kernel" in leaves else "embedding"
  a_LIM, b_LMO = _scaled_factors(arrays)
  w_LIO = leaves[name] + a_LIM @ b_LMO
  if "magnitude" in arrays:
    w_LIO *= _gain(leaves[name], arrays)[..., None, :]
  return {name: w_LIO}
