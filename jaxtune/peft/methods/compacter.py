"""Compacter: adapters of few numbers, by sums of Kronecker products (Karimi Mahabadi et al. 2021).

  ad(h) = s * PHM_up(act(PHM_down(h))),  PHM(x) = x (sum_i kron(A_i, W_i)) + b,
  W_i = left_i right_i

for i < n, eqs. 4 to 6, with A_i of (n, n) and W_i of rank R. Placed after attention and after the
feed-forward it is Compacter ("houlsby"); after the feed-forward alone, Compacter++ ("pfeiffer").

Arrays, for D features and a bottleneck of F = n * f units. kron is that of numpy: A_i[a, b] times
W_i[p, q] is at row a * rows(W_i) + p and column b * columns(W_i) + q.
  down_left (L, n, D/n, R), down_right (L, n, R, f), down_bias (L, n, f)
  up_left (L, n, f, R), up_right (L, n, R, D/n), up_bias (L, D)
  shared:      phm_rule (n, n, n), all A_i, once, at the trunk of the first site
  not shared:  down_rule, up_rule (L, n, n, n), at every site
In `adapters`, they are `W_left`, `W_right`, `b` (down_bias flattened to F) and `phm_rule` of a
PHMLayer.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

import jax.numpy as jnp
from jax.nn import initializers
from jaxtyping import Array, Float

from jaxtune import peft
from jaxtune.errors import UserError
from jaxtune.models.layers import ACTIVATIONS, lift, times
from jaxtune.peft.methods import adapter
from jaxtune.schema import Finite, Rate, Width


def method(
  *,
  width: Width = 24,
  n: Width = 4,
  rank: Width = 1,
  shared: bool = True,
  placement: Literal[*adapter.PLACEMENTS] = "houlsby",
  activation: Literal[*ACTIVATIONS] = "gelu",
  scale: Finite | None = None,
  dropout: Rate = 0.0,
  targets: tuple[str, ...] | None = None,
) -> peft.Method:
  """Adds adapters of a few thousand numbers at each layer's residual connections.

  Args:
    width: number of units of the bottleneck; a multiple of n, at most the model's width.
    n: how many Kronecker products are summed; divides the model's width.
    rank: rank of each W_i.
    shared: whether all layers, and both projections, read the same A_i.
    placement: one of `adapter`'s: "houlsby" (Compacter) or "pfeiffer" (Compacter++), for example.
    activation: activation function of the bottleneck.
    scale: factor s of the adapter's output; by default the placement's own.
    dropout: rate at which entries of the adapter's output are set to zero in training.
    targets: regular expressions, matched against the end of the path of Residual sites; by default
      the placement's own.

  As in adapters 1.3, left and right are drawn from Glorot's normal distribution, A_i from
  N(0, 0.0001^2) where they are shared, else from N(0, 0.01^2); so the model is hardly changed at
  first.
  """
  targets, activation, scale = adapter.defaults_of(placement, targets, activation, scale)
  if width % n:
    raise UserError(f"method.width is {width}, expected a multiple of method.n, which is {n}")
  sizes = dict(width=width, n=n, rank=rank, shared=shared)
  return peft.Method(
    "compacter",
    init=partial(_init, targets=targets, scale=scale, rate=dropout, **sizes),
    intercept=partial(
      adapter.intercept, network=_network, placement=placement, activation=ACTIVATIONS[activation]
    ),
    reparametrise=_reparametrise,
    groupable=("width", "rank", "scale", "dropout"),
    padded_axes=dict(
      down_left=(-1,), down_right=(-2, -1), down_bias=(-1,), up_left=(-2, -1), up_right=(-2,)
    ),
    patterns=targets,
    options=dict(placement=placement, activation=activation, scale=scale, **sizes),
  )


def _init(
  key: Array, sites: dict[str, peft.Site], frozen: peft.Frozen, *, targets: tuple[str, ...],
  width: int, n: int, rank: int, shared: bool, scale: float, rate: float,
) -> tuple[peft.Arrays, peft.Arrays]:  # fmt: skip
  trained, fixed = {}, {}
  chosen = peft.match(targets, sites, "Residual")
  for path, site in chosen.items():
    features, lead, place_key = site.output, site.lead, peft.site_key(key, path)
    if width > features or features % n:
      raise UserError(
        f"method.width is {width} and method.n is {n}, but {path} has {features} features: "
        f"expected a width of at most that, and an n that divides it"
      )
    down_bias, up_bias = jnp.zeros((*lead, n, width // n)), jnp.zeros((*lead, features))
    trained[path] = {"down_bias": down_bias, "up_bias": up_bias}
    for name, inputs, outputs in (("down", features, width), ("up", width, features)):
      left_key, right_key = (peft.site_key(place_key, name, side) for side in ("left", "right"))
      left_LGIR = _draw(left_key, (*lead, n, inputs // n, rank))
      right_LGOR = _draw(right_key, (*lead, n, outputs // n, rank))
      trained[path] |= {f"{name}_left": left_LGIR, f"{name}_right": right_LGOR.swapaxes(-1, -2)}
      if not shared:
        rule_key = peft.site_key(place_key, f"{name}_rule")
        trained[path][f"{name}_rule"] = initializers.normal(0.01)(rule_key, (*lead, n, n, n))
    fixed[path] = site.constants({"scale": scale, "dropout": rate})
  if shared:
    rule_GGG = initializers.normal(1e-4)(peft.site_key(key, "phm_rule"), (n, n, n))
    trained[next(iter(chosen)).partition("/layers/")[0]] = {"phm_rule": rule_GGG}
  return trained, fixed


def _draw(key: Array, shape: tuple[int, ...]) -> Float[Array, "*L G M R"]:
  """Draws a factor from Glorot's normal distribution, with a random key for each row and rank."""
  normal = initializers.normal((2 / (shape[-1] + shape[-2])) ** 0.5)
  return peft.draw(partial(peft.draw, normal, axis=-1), key, shape, axis=-1)


def _reparametrise(trained: peft.Arrays) -> peft.Arrays:
  """Copies the A_i that all layers share to each of them."""
  rules = [arrays["phm_rule"] for arrays in trained.values() if "phm_rule" in arrays]
  if not rules:
    return trained
  reparametrised = {}
  for path, arrays in trained.items():
    if "phm_rule" not in arrays:
      lead = arrays["up_bias"].shape[:-1]
      rule_LGGG = jnp.broadcast_to(rules[0], (*lead, *rules[0].shape))
      reparametrised[path] = {**arrays, "down_rule": rule_LGGG, "up_rule": rule_LGGG}
  return reparametrised


def _phm(
  x_BTGI: Float[Array, "*BT G I"],
  rule_GGG: Float[Array, "G G G"],
  left_GIR: Float[Array, "G I R"],
  right_GRO: Float[Array, "G R O"],
) -> Float[Array, "*BT G O"]:
  """Multiplies x, whose features are in n groups, by sum_i kron(A_i, left_i right_i)."""
  z_BTGGR = jnp.einsum("...ap,ipr->...air", x_BTGI, left_GIR)
  z_BTGGR = jnp.einsum("...air,iab->...bir", z_BTGGR, rule_GGG)
  return jnp.einsum("...bir,irq->...bq", z_BTGGR, right_GRO)


def _network(
  call: peft.Call, h_BTD: Float[Array, "B T D"], activation: Callable
) -> Float[Array, "B T D"]:
  w = call.cast(h_BTD.dtype)
  n = w["down_rule"].shape[0]
  z_BTGM = h_BTD.reshape(*h_BTD.shape[:-1], n, -1)
  z_BTGM = _phm(z_BTGM, w["down_rule"], w["down_left"], w["down_right"])
  z_BTGM = activation(z_BTGM + lift(w["down_bias"], z_BTGM))
  z_BTGM = _phm(z_BTGM, w["up_rule"], w["up_left"], w["up_right"])
  z_BTD = z_BTGM.reshape(h_BTD.shape)
  return call.dropout(times(z_BTD + lift(w["up_bias"], z_BTD), call.arrays["scale"]))
