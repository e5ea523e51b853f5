"""Bottleneck adapters as AdapterHub has them: their config, and their tensors by layer."""

from __future__ import annotations

import jax
import numpy as np

from jaxtune.errors import UserError
from jaxtune.export.adapterhub import names as layout
from jaxtune.export.adapterhub.configs import bottleneck, reduction_factor


def make(pretrained, method, trained: dict, fixed: dict) -> tuple[dict, dict]:
  """Returns (config, tensors) of a bottleneck adapter."""
  trained = jax.tree.map(np.asarray, trained)
  names = set().union(*trained.values())
  if "gate_kernel" in names:
    raise UserError(
      "AdapterHub's gates are averaged over all tokens of a text, where ours are each token's own: "
      "it cannot express method.gate. Train without it"
    )
  trained, scaling = _scaled(trained, fixed, "channel_scale" in names)
  entries = {
    entry: any(site.endswith(residual) for site in trained)
    for residual, entry in layout.ENTRIES.items()
  }
  trained |= _untrained(pretrained, trained)
  widths = _widths(pretrained, trained)
  places, tensors = layout.residuals(pretrained), {}
  for site, arrays in trained.items():
    for i, width in enumerate(widths[site.split("/")[0]]):
      cut = {name: x[i] for name, x in arrays.items()}
      cut |= {"down_kernel": cut["down_kernel"][:, :width], "down_bias": cut["down_bias"][:width]}
      cut |= {"up_kernel": cut["up_kernel"][:width]}
      tensors |= layout.tensors(f"{places[site].format(i)}.adapters.{layout.NAME}", cut)
  dropout = max(float(np.max(fixed[site]["dropout"])) for site in trained if site in fixed)
  config = bottleneck(method.options, names) | entries
  config |= {"scaling": scaling, "dropout": round(dropout, 6)}
  every = [reduction_factor(pretrained.model.config.width, w)
           for half in layout.halves(pretrained.model.config) for w in widths[half]]  # fmt: skip
  same = len(set(every)) == 1
  config["reduction_factor"] = every[0] if same else {str(i): r for i, r in enumerate(every)}
  return config, tensors


def _scaled(trained: dict, fixed: dict, by_channel: bool) -> tuple[dict, float | str]:
  """Returns the arrays and the scale that the config holds.

  It holds one; scales that differ between sites or layers go into the weights.
  """
  scales = {site: np.asarray(fixed[site]["scale"], np.float32)[:, None] for site in trained}
  first = next(iter(scales.values())).flat[0]
  if all((s == first).all() for s in scales.values()):
    if not by_channel:
      return trained, float(first)  # adapters takes an int for an unknown kind of scaling
    if first == 1:
      return trained, "channel"
  by = {"channel_scale": lambda s: s} if by_channel else {
    "up_kernel": lambda s: s[..., None], "up_bias": lambda s: s}  # fmt: skip
  trained = {
    site: arrays | {name: arrays[name] * lift(scales[site]) for name, lift in by.items()}
    for site, arrays in trained.items()
  }
  return trained, "channel" if by_channel else 1.0


def _untrained(pretrained, trained: dict) -> dict[str, dict]:
  """Makes adapters of zeros, which add nothing, where only one half of an encoder-decoder has any.

  The config asks for those of both halves at once.
  """
  counts, found = layout.halves(pretrained.model.config), {}
  for site, arrays in trained.items() if len(counts) > 1 else ():
    half, _, residual = site.partition("/layers/")
    other = "decoder" if half == "encoder" else "encoder"
    if residual != "cross_residual" and f"{other}/layers/{residual}" not in trained:
      zeros = {name: np.zeros((counts[other], *x.shape[1:])) for name, x in arrays.items()}
      found[f"{other}/layers/{residual}"] = zeros
  return found


def _widths(pretrained, trained: dict) -> dict[str, list[int]]:
  """Returns each trunk's layers' widths, without what pads a layer to the widest.

  All adapters of a layer have one width, as the config states one for each layer. A layer without
  any has the widest.
  """
  found = {}
  for half, layers in layout.halves(pretrained.model.config).items():
    own = [arrays for site, arrays in trained.items() if site.startswith(f"{half}/")]
    widest = max(arrays["down_bias"].shape[-1] for arrays in trained.values())
    used = [(x["down_kernel"] != 0).any(1) | (x["up_kernel"] != 0).any(2) for x in own]
    last = [max((int(np.max(np.nonzero(u[i])[0], initial=-1)) for u in used), default=-1)
            for i in range(layers)]  # fmt: skip
    found[half] = [i + 1 if i >= 0 else widest for i in last]
  return found
