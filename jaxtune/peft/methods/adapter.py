"""Bottleneck adapters: ad(h) = s * W_up act(W_down h + b) + b', as in AdapterHub's `adapters`.

Placements, with x the residual stream and f a sublayer's output:
  pfeiffer: x + f + ad(x + f), after the feed-forward only (Pfeiffer et al. 2020)
  houlsby:  x + f + ad(f), after attention and after the feed-forward (Houlsby et al. 2019)
  parallel: x + f + ad(x), beside the feed-forward, s = 4 (He et al. 2022)
  plus:     h + c * ad(h) with h = x + f and a trained scale c of each channel, after the
            feed-forward (AdapterPlus, Steitz & Roth 2024, without their stochastic depth)

Where the model normalises x + f (BERT), `plus` takes h after that norm and its output is not
normalised again; the others add to f before it.

Layers may differ in width: all are padded to the widest, with zeros in both kernels, which get a
zero gradient.

Of two adapters at one residual, the outer reads and adds to what the inner leaves; a pfeiffer
adapter around another computes that one twice.
"""

from __future__ import annotations

from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxtune import peft
from jaxtune.errors import UserError
from jaxtune.models.layers import ACTIVATIONS, lift
from jaxtune.schema import LARGEST, Finite, Positive, Rate, Width

# placement: the sites, and the defaults of adapters 1.3 for activation and scale
PLACEMENTS = {
  "pfeiffer": (("mlp_residual",), "relu", 1.0),
  "houlsby": (("attn_residual", "mlp_residual"), "silu", 1.0),
  "parallel": (("mlp_residual",), "relu", 4.0),
  "plus": (("mlp_residual",), "gelu", 1.0),
}


def method(
  width: Width | tuple[Width, ...] = 16,
  reduction_factor: Positive | tuple[Positive, ...] | None = None,
  placement: Literal[*PLACEMENTS] = "pfeiffer",
  activation: Literal[*ACTIVATIONS] | None = None,
  scale: Finite | None = None,
  channel_scale: bool | None = None,
  dropout: Rate = 0.0,
  ln_before: bool = False,
  ln_after: bool = False,
  gate: bool = False,
  targets: tuple[str, ...] | None = None,
) -> peft.Method:
  """Adds a small feed-forward network at each layer's residual connections.

  Args:
    width: of the bottleneck, at most the model's; or one for each layer.
    reduction_factor: the model's width over the bottleneck's instead, rounded down to a width of
      at least 1; or one for each layer.
    placement: "pfeiffer", "houlsby", "parallel" or "plus".
    activation: by default the placement's own.
    scale: of the adapter's output; by default the placement's own.
    channel_scale: whether a number for each channel, from 1 on, is trained that scales the output
      too; by default with "plus" alone.
    dropout: of the adapter's output, in training.
    ln_before, ln_after: whether a LayerNorm of its own is trained on the adapter's input, and on
      its output. An output that is normalised changes the model from the first step on.
    gate: whether the output is multiplied by sigmoid(w h + b) with trained w and b from zero, so by
      1/2 at the start (UniPELT, Mao et al. 2022). Each token has its own gate; UniPELT averages
      them over the sequence, which would let a decoder's tokens see later ones.
    targets: regular expressions, matched against the end of the path of Residual sites; by default
      the placement's own. "cross_residual" is the one after cross-attention.

  W_down and W_up are drawn from N(0, 0.02^2), as BERT's weights; `parallel` starts W_up at zero,
  and `plus` draws both from N(0, 0.01^2) cut off at two deviations (Houlsby et al. 2019).
  """
  targets, activation, scale = at_placement(placement, targets, activation, scale)
  channel_scale = placement == "plus" if channel_scale is None else channel_scale
  parts = dict(channel_scale=channel_scale, ln_before=ln_before, ln_after=ln_after, gate=gate)
  sizes = dict(width=width, reduction_factor=reduction_factor)
  return peft.Method(
    "adapter",
    init=partial(
      _init, targets=targets, placement=placement, scale=scale, rate=dropout, parts=parts, **sizes
    ),
    intercept=partial(_intercept, placement, ACTIVATIONS[activation]),
    unused=_unused,
    numbers=("width", "reduction_factor", "scale", "dropout"),
    padded={"down_kernel": (-1,), "down_bias": (-1,), "up_kernel": (-2,)},
    patterns=targets,
    options=dict(placement=placement, activation=activation, scale=scale, **sizes, **parts),
  )


def at_placement(placement, targets, activation, scale):
  """Returns targets, activation and scale, by default the placement's own."""
  places, default_activation, default_scale = PLACEMENTS[placement]
  scale = default_scale if scale is None else scale
  return places if targets is None else targets, activation or default_activation, scale


def _numbers(option) -> tuple:
  return tuple(option) if isinstance(option, list | tuple) else (option,)


def _init(key, sites, frozen, *, targets, placement, width, reduction_factor, scale, rate, parts):
  trained, fixed = {}, {}
  for path, site in peft.match(targets, sites, "Residual").items():
    widths = _widths(path, site, width, reduction_factor)
    trained[path] = _draw(peft.site_key(key, path), site, widths, placement)
    features = (*site.lead, site.output)
    if parts["channel_scale"]:
      trained[path]["channel_scale"] = jnp.ones(features)
    for name, array in (("ln_before", "norm"), ("ln_after", "norm_after")):
      if parts[name]:
        trained[path][f"{array}_scale"] = jnp.ones(features)
        trained[path][f"{array}_bias"] = jnp.zeros(features)
    if parts["gate"]:
      trained[path] |= {"gate_kernel": jnp.zeros(features), "gate_bias": jnp.zeros(site.lead)}
    numbers = {"scale": scale, "dropout": rate}
    fixed[path] = {n: jnp.full(site.lead, x, jnp.float32) for n, x in numbers.items()}
  return trained, fixed


def _widths(path, site, width, factor):
  """Returns the width of each layer's bottleneck at a site, (L,)."""
  name, given = ("width", width) if factor is None else ("reduction_factor", factor)
  if len(_numbers(given)) not in (1, site.layers):
    raise UserError(
      f"method.{name} has {len(given)} entries, but {path} is in {site.layers} layers: expected "
      f"one for each of them, or a single number"
    )
  each = np.broadcast_to(np.asarray(_numbers(given)), site.lead)
  widths = each if factor is None else np.clip(site.output // each, 1, LARGEST).astype(int)
  if widths.max() > site.output:
    by = "" if factor is None else f" by method.reduction_factor {factor}"
    raise UserError(
      f"method.width is {widths.max()}{by}, expected at most the model's width {site.output}"
    )
  return widths


def _draw(key, site, widths, placement):
  shape, widest = (*site.lead, site.output), int(widths.max())
  if placement == "plus":
    sample = lambda k: 0.01 * jax.random.truncated_normal(k, -2.0, 2.0, shape)
  else:
    sample = lambda k: 0.02 * jax.random.normal(k, shape)
  live_LW = np.arange(widest) < widths[..., None]
  down = peft.draw_columns(sample, peft.site_key(key, "down"), widest)
  up = peft.draw_columns(sample, peft.site_key(key, "up"), widest).swapaxes(-1, -2)
  return {
    "down_kernel": jnp.where(live_LW[..., None, :], down, 0),
    "down_bias": jnp.zeros((*site.lead, widest)),
    "up_kernel": jnp.where(live_LW[..., None] & (placement != "parallel"), up, 0),
    "up_bias": jnp.zeros(shape),
  }


def _unused(trained, fixed):
  """Counts the numbers of units that only pad a layer: those whose inputs all have weight 0."""
  dead = lambda w: jnp.sum(jnp.all(w["down_kernel"] == 0, -2)) * (2 * w["up_bias"].shape[-1] + 1)
  return sum(dead(arrays) for arrays in trained.values())


def _intercept(placement, activation, module, trained, fixed, next_fn, x, y):
  def adapter(h):
    w = jax.tree.map(lambda p: p.astype(h.dtype), trained)
    z = _normalise(h, trained, "norm") @ w["down_kernel"]
    z = activation(z + lift(w["down_bias"], z)) @ w["up_kernel"]
    z = (z + lift(w["up_bias"], z)) * fixed["scale"].astype(h.dtype)
    if "channel_scale" in w:
      z = (z.astype(jnp.float32) * lift(trained["channel_scale"], z)).astype(z.dtype)
    z = peft.dropout(module, z, fixed["dropout"])
    if "gate_kernel" in w:
      z = z * jax.nn.sigmoid(h @ w["gate_kernel"] + w["gate_bias"])[..., None]
    return _normalise(z, trained, "norm_after")

  return place(placement, adapter, next_fn, x, y)


def _normalise(h, trained, name):
  """Applies a LayerNorm in fp32, where there is one."""
  if f"{name}_scale" not in trained:
    return h
  x = h.astype(jnp.float32)
  x = x - x.mean(-1, keepdims=True)
  x = x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-5)
  x = x * lift(trained[f"{name}_scale"], x) + lift(trained[f"{name}_bias"], x)
  return x.astype(h.dtype)


def place(placement, adapter, next_fn, x, y):
  """Calls a residual connection next_fn(x, y) with an adapter at its placement."""
  if placement == "plus":
    h = next_fn(x, y)
    return h + adapter(h)
  source = {"pfeiffer": lambda: next_fn(x, y), "houlsby": lambda: y, "parallel": lambda: x}
  return next_fn(x, y + adapter(source[placement]()))
