"""Bottleneck adapters: ad(h) = s * W_up act(W_down h + b) + b', as in AdapterHub's `adapters`.

Placements, with x the residual stream and f a sublayer's output:
  pfeiffer: x + f + ad(x + f), after the feed-forward only (Pfeiffer et al. 2020)
  houlsby:  x + f + ad(f), after attention and after the feed-forward (Houlsby et al. 2019)
  parallel: x + f + ad(x), beside the feed-forward, s = 4 (He et al. 2022)
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from jaxtune import peft
from jaxtune.errors import UserError, nearest
from jaxtune.models.layers import ACTIVATIONS, lift

# placement: the sites, and the defaults of adapters 1.3 for activation and scale
PLACEMENTS = {
  "pfeiffer": (("mlp_residual",), "relu", 1.0),
  "houlsby": (("attn_residual", "mlp_residual"), "silu", 1.0),
  "parallel": (("mlp_residual",), "relu", 4.0),
}


def method(
  width: int = 16,
  placement: str = "pfeiffer",
  activation: str | None = None,
  scale: float | None = None,
  dropout: float = 0.0,
  targets: tuple[str, ...] | None = None,
) -> peft.Method:
  """Adds a small feed-forward network at each layer's residual connections.

  Args:
    width: of the bottleneck; at most the model's.
    placement: "pfeiffer", "houlsby" or "parallel".
    activation: by default the placement's own.
    scale: of the adapter's output; by default the placement's own.
    dropout: of the adapter's output, in training.
    targets: regular expressions, matched against the end of the path of Residual sites; by default
      the placement's own. "cross_residual" is the one after cross-attention.

  W_down and W_up are drawn from N(0, 0.02^2), as BERT's weights; `parallel` starts W_up at zero.
  """
  if placement not in PLACEMENTS:
    raise UserError(f"unknown placement {placement!r}. {nearest(placement, PLACEMENTS)}")
  places, default_activation, default_scale = PLACEMENTS[placement]
  targets = places if targets is None else targets
  activation = activation or default_activation
  if activation not in ACTIVATIONS:
    raise UserError(f"unknown activation {activation!r}. {nearest(activation, ACTIVATIONS)}")
  if width < 1:
    raise UserError(f"method.width is {width}, expected at least 1")
  if not 0 <= dropout < 1:
    raise UserError(f"method.dropout is {dropout}, expected 0 <= dropout < 1")
  scale = default_scale if scale is None else scale
  numbers = dict(width=width, scale=scale, rate=dropout)
  return peft.Method(
    "adapter",
    init=partial(_init, targets=targets, zero_up=placement == "parallel", **numbers),
    intercept=partial(_intercept, placement, ACTIVATIONS[activation]),
    numbers=("width", "scale", "dropout"),
    patterns=targets,
    options=dict(width=width, placement=placement, activation=activation, scale=scale),
  )


def _init(key, sites, frozen, *, targets, width, scale, rate, zero_up):
  trained, fixed = {}, {}
  for path, site in peft.match(targets, sites, "Residual").items():
    features = site.output
    if width > features:
      raise UserError(f"method.width is {width}, expected at most the model's width {features}")
    shape, key_site = (*site.lead, features), peft.site_key(key, path)
    sample = lambda k, shape=shape: 0.02 * jax.random.normal(k, shape)
    down = peft.draw_columns(sample, peft.site_key(key_site, "down"), width)
    up = peft.draw_columns(sample, peft.site_key(key_site, "up"), width).swapaxes(-1, -2)
    trained[path] = {
      "down_kernel": down,
      "down_bias": jnp.zeros((*site.lead, width)),
      "up_kernel": jnp.zeros_like(up) if zero_up else up,
      "up_bias": jnp.zeros(shape),
    }
    fixed[path] = {"scale": jnp.full(site.lead, scale), "dropout": jnp.full(site.lead, rate)}
  return trained, fixed


def _intercept(placement, activation, module, trained, fixed, next_fn, x, y):
  def adapter(h):
    w = jax.tree.map(lambda p: p.astype(h.dtype), trained)
    h = h @ w["down_kernel"]
    h = activation(h + lift(w["down_bias"], h)) @ w["up_kernel"]
    h = h + lift(w["up_bias"], h)
    return peft.dropout(module, h * fixed["scale"].astype(h.dtype), fixed["dropout"])

  source = {"pfeiffer": lambda: next_fn(x, y), "houlsby": lambda: y, "parallel": lambda: x}
  return next_fn(x, y + adapter(source[placement]()))
