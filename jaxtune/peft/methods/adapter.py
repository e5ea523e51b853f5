"""Bottleneck adapters: ad(h) = s * (W_up act(W_down h + b) + b'), as in AdapterHub's `adapters`.

Placements, with x the residual stream and f a sublayer's output:
  pfeiffer: x + f + ad(x + f), after the feed-forward only (Pfeiffer et al. 2020)
  houlsby:  x + f + ad(f), after attention and after the feed-forward (Houlsby et al. 2019)
  parallel: x + f + ad(x), beside the feed-forward, s = 4 (He et al. 2022)
  plus:     h + c * ad(h) with h = x + f and a trained scale c of each channel, after the
            feed-forward (AdapterPlus, Steitz & Roth 2024, without their stochastic depth)

Where the model normalises x + f (BERT), `pfeiffer` and `plus` read the normalised sum. `plus` adds
to it, and its output is not normalised again; the others add to f before the norm.

Layers may differ in width: all are padded to the widest, with zeros in both kernels, which get a
zero gradient.

Of two adapters at one residual, an outer `plus` reads and adds to the inner one's result. Any other
outer one adds to the f that the inner one is given; if it is a `pfeiffer`, it also reads the inner
one's result, which is thus computed twice.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.nn import initializers
from jaxtyping import Array, Float

from jaxtune import peft
from jaxtune.errors import UserError
from jaxtune.models.layers import ACTIVATIONS, lift, times
from jaxtune.schema import LARGEST, Finite, Positive, Rate, Width

# {placement: (targets, activation, scale)}, with the defaults of adapters 1.3.
PLACEMENTS = {
  "pfeiffer": (("mlp_residual",), "relu", 1.0),
  "houlsby": (("attn_residual", "mlp_residual"), "silu", 1.0),
  "parallel": (("mlp_residual",), "relu", 4.0),
  "plus": (("mlp_residual",), "gelu", 1.0),
}

WIDTH = 16


def method(
  *,
  width: Width | tuple[Width, ...] = WIDTH,
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
    width: number of units of the bottleneck, at most the model's width; a tuple has one number for
      each layer.
    reduction_factor: ratio of the model's width to the bottleneck's, in place of `width`, which is
      not to be given then; the width is rounded down, but at least 1. A tuple has one ratio for
      each layer.
    placement: "pfeiffer", "houlsby", "parallel" or "plus".
    activation: activation function of the bottleneck; by default "silu" with "houlsby", "gelu" with
      "plus", else "relu".
    scale: factor s of the adapter's output; by default 4 with "parallel", else 1.
    channel_scale: whether the output is also multiplied by a trained factor for each channel, which
      starts at 1; by default only with "plus".
    dropout: rate at which entries of the adapter's output are set to zero in training.
    ln_before, ln_after: whether a LayerNorm of its own is trained on the adapter's input, and on
      its output. An output that is normalised changes the model from the first step on.
    gate: whether the output is multiplied by sigmoid(w h + b), where w and b are trained and start
      at zero, so that it starts at 1/2 (UniPELT, Mao et al. 2022). Each token has its own gate;
      UniPELT averages them over the sequence, which would let a decoder's tokens see later ones.
    targets: regular expressions, matched against the end of the path of Residual sites; by default
      the placement's own. "cross_residual" is the one after cross-attention.

  W_down and W_up are drawn from N(0, 0.02^2), as BERT's weights; `parallel` starts W_up at zero,
  and `plus` draws both from N(0, 0.01^2), truncated at two deviations (Houlsby et al. 2019).
  """
  if reduction_factor is not None and width != WIDTH:
    raise UserError(
      f"method.width is {width} and method.reduction_factor {reduction_factor}, expected one alone"
    )
  targets, activation, scale = defaults_of(placement, targets, activation, scale)
  channel_scale = placement == "plus" if channel_scale is None else channel_scale
  extras = dict(channel_scale=channel_scale, ln_before=ln_before, ln_after=ln_after, gate=gate)
  sizes = dict(width=width, reduction_factor=reduction_factor)
  return peft.Method(
    "adapter",
    init=partial(
      _init, targets=targets, placement=placement, scale=scale, rate=dropout, extras=extras, **sizes
    ),
    intercept=partial(
      intercept, network=_bottleneck, placement=placement, activation=ACTIVATIONS[activation]
    ),
    count_unused=_count_unused,
    groupable=("width", "reduction_factor", "scale", "dropout"),
    padded_axes={"down_kernel": (-1,), "down_bias": (-1,), "up_kernel": (-2,)},
    patterns=targets,
    options=dict(placement=placement, activation=activation, scale=scale, **sizes, **extras),
  )


def defaults_of(
  placement: str, targets: Any, activation: str | None, scale: float | None
) -> tuple[tuple[str, ...], str, float]:
  """Returns (targets, activation, scale), with the placement's defaults in place of None."""
  given = (targets, activation, scale)
  choices = zip(given, PLACEMENTS[placement], strict=True)
  return tuple(default if option is None else option for option, default in choices)


def _init(
  key: Array, sites: dict[str, peft.Site], frozen: peft.Frozen, *, targets: tuple[str, ...],
  placement: str, width: Any, reduction_factor: Any, scale: float, rate: float, extras: dict,
) -> tuple[peft.Arrays, peft.Arrays]:  # fmt: skip
  trained, fixed = {}, {}
  for path, site in peft.match(targets, sites, "Residual").items():
    widths_L = _widths(path, site, width, reduction_factor)
    trained[path] = _draw(peft.site_key(key, path), site, widths_L, placement)
    features = (*site.lead, site.output)
    if extras["channel_scale"]:
      trained[path]["channel_scale"] = jnp.ones(features)
    for name, array in (("ln_before", "norm"), ("ln_after", "norm_after")):
      if extras[name]:
        trained[path][f"{array}_scale"] = jnp.ones(features)
        trained[path][f"{array}_bias"] = jnp.zeros(features)
    if extras["gate"]:
      trained[path] |= {"gate_kernel": jnp.zeros(features), "gate_bias": jnp.zeros(site.lead)}
    fixed[path] = site.constants({"scale": scale, "dropout": rate})
  return trained, fixed


def _widths(path: str, site: peft.Site, width: Any, factor: Any) -> np.ndarray:
  """Returns the width of each layer's bottleneck at a site, (L,)."""
  name, option = ("width", width) if factor is None else ("reduction_factor", factor)
  numbers = np.atleast_1d(option)
  if len(numbers) not in (1, site.layers):
    raise UserError(
      f"method.{name} has {len(numbers)} entries, but {path} is in {site.layers} layers: expected "
      f"one for each of them, or a single number"
    )
  widths_L = np.broadcast_to(numbers, site.lead)
  if factor is not None:
    widths_L = np.clip(site.output // widths_L, 1, LARGEST).astype(int)
  if widths_L.max() > site.output:
    by = "" if factor is None else f" by method.reduction_factor {factor}"
    raise UserError(
      f"method.width is {widths_L.max()}{by}, expected at most the model's width {site.output}"
    )
  return widths_L


def _draw(key: Array, site: peft.Site, widths_L: np.ndarray, placement: str) -> dict[str, Array]:
  start = initializers.truncated_normal(0.01) if placement == "plus" else initializers.normal(0.02)
  widest = int(widths_L.max())
  live_LF = np.arange(widest) < widths_L[..., None]
  down_key, up_key = peft.site_key(key, "down"), peft.site_key(key, "up")
  down_LDF = peft.draw(start, down_key, (*site.lead, site.output, widest), axis=-1)
  up_LFD = peft.draw(start, up_key, (*site.lead, widest, site.output), axis=-2)
  return {
    "down_kernel": jnp.where(live_LF[..., None, :], down_LDF, 0),
    "down_bias": jnp.zeros((*site.lead, widest)),
    "up_kernel": jnp.where(live_LF[..., None] & (placement != "parallel"), up_LFD, 0),
    "up_bias": jnp.zeros((*site.lead, site.output)),
  }


def _count_unused(trained: peft.Arrays, fixed: peft.Arrays) -> Array | int:
  """Counts the numbers of units that only pad a layer: those whose input weights are all 0."""
  dead = lambda w: jnp.sum(jnp.all(w["down_kernel"] == 0, -2)) * (2 * w["up_bias"].shape[-1] + 1)
  return sum(dead(arrays) for arrays in trained.values())


def intercept(
  call: peft.Call,
  x_BTD: Float[Array, "B T D"],
  y_BTD: Float[Array, "B T D"],
  *,
  network: Callable,
  placement: str,
  activation: Callable,
) -> Float[Array, "B T D"]:
  """Calls a residual connection with an adapter at its placement.

  Args:
    x_BTD, y_BTD: the residual stream and the sublayer's output, x and f above.
    network: (call, h (B, T, D), activation) -> the adapter's output (B, T, D).
  """
  adapter = lambda h_BTD: network(call, h_BTD, activation)
  if placement == "plus":
    h_BTD = call.next_fn(x_BTD, y_BTD)
    return h_BTD + adapter(h_BTD)
  sources = {
    "pfeiffer": lambda: call.next_fn(x_BTD, y_BTD),
    "houlsby": lambda: y_BTD,
    "parallel": lambda: x_BTD,
  }
  return call.next_fn(x_BTD, y_BTD + adapter(sources[placement]()))


def _bottleneck(
  call: peft.Call, h_BTD: Float[Array, "B T D"], activation: Callable
) -> Float[Array, "B T D"]:
  w = call.cast(h_BTD.dtype)
  z_BTF = _normalise(h_BTD, call.arrays, "norm") @ w["down_kernel"]
  z_BTD = activation(z_BTF + lift(w["down_bias"], z_BTF)) @ w["up_kernel"]
  z_BTD = times(z_BTD + lift(w["up_bias"], z_BTD), call.arrays["scale"])
  if "channel_scale" in w:
    z_BTD = times(z_BTD, call.arrays["channel_scale"])
  z_BTD = call.dropout(z_BTD)
  if "gate_kernel" in w:
    z_BTD = z_BTD * call.gate(h_BTD)
  return _normalise(z_BTD, call.arrays, "norm_after")


def _normalise(
  h_BTD: Float[Array, "B T D"], arrays: dict[str, Array], name: str
) -> Float[Array, "B T D"]:
  """Applies the LayerNorm of this name in fp32, if the arrays have one."""
  if f"{name}_scale" not in arrays:
    return h_BTD
  x_BTD = h_BTD.astype(jnp.float32)
  x_BTD = x_BTD - x_BTD.mean(-1, keepdims=True)
  x_BTD = x_BTD * jax.lax.rsqrt(jnp.mean(x_BTD * x_BTD, -1, keepdims=True) + 1e-5)
  x_BTD = x_BTD * lift(arrays[f"{name}_scale"], x_BTD) + lift(arrays[f"{name}_bias"], x_BTD)
  return x_BTD.astype(h_BTD.dtype)
