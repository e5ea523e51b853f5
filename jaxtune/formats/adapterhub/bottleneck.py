"""Bottleneck adapters and Compacters as AdapterHub has them: config, and tensors by layer."""

from __future__ import annotations

import jax
import numpy as np

from jaxtune.errors import UserError
from jaxtune.formats.adapterhub import configs
from jaxtune.formats.adapterhub import names as layout


def make(pretrained, method, trained: dict, fixed: dict) -> tuple[dict, dict]:
  """Returns (config, tensors) of an adapter."""
  trained = jax.tree.map(np.asarray, trained)
  rules = [trained.pop(site) for site in list(trained) if "phm_rule" in trained[site]]
  names = set().union(*trained.values())
  if "gate_kernel" in names:
    raise UserError(
      "AdapterHub's gates are averaged over all tokens of a text, where ours are each token's own: "
      "it cannot express method.gate. Train without it"
    )
  entries = {
    entry: any(site.endswith(residual) for site in trained)
    for residual, entry in layout.ENTRIES.items()
  }
  dropout = max(float(np.max(fixed[site]["dropout"])) for site in trained)
  trained, scaling = _scaled(trained, fixed, names)
  trained |= _untrained(pretrained, trained)
  if method.kind == "compacter":
    arrays = next(iter(trained.values()))
    config = configs.compacter(method.options, arrays["down_left"].shape, bool(rules))
    widths = {half: [arrays["down_bias"][0].size] * layers
              for half, layers in layout.halves(pretrained.model.config).items()}  # fmt: skip
  else:
    config, widths = configs.bottleneck(method.options, names), _widths(pretrained, trained)
  places, tensors = layout.residuals(pretrained), {}
  for rule in rules:
    tensors[layout.shared(pretrained, layout.NAME)] = rule["phm_rule"]
  for site, arrays in trained.items():
    for i, width in enumerate(widths[site.split("/")[0]]):
      cut = _cut({name: x[i] for name, x in arrays.items()}, width)
      tensors |= layout.tensors(f"{places[site].format(i)}.adapters.{layout.NAME}", cut)
  every = [configs.reduction_factor(pretrained.model.config.width, w)
           for half in layout.halves(pretrained.model.config) for w in widths[half]]  # fmt: skip
  factor = every[0] if len(set(every)) == 1 else {str(i): r for i, r in enumerate(every)}
  sizes = {"scaling": scaling, "dropout": round(dropout, 6), "reduction_factor": factor}
  return config | entries | sizes, tensors


def _cut(arrays: dict, width: int) -> dict:
  """Returns one layer's arrays without the units beyond a width."""
  if "down_kernel" not in arrays:
    return arrays
  down, bias, up = (arrays[name] for name in ("down_kernel", "down_bias", "up_kernel"))
  return arrays | {
    "down_kernel": down[:, :width],
    "down_bias": bias[:width],
    "up_kernel": up[:width],
  }


def _scaled(trained: dict, fixed: dict, names: set[str]) -> tuple[dict, float | str]:
  """Returns the arrays and the scale that the config holds.

  It holds one; scales that differ between sites or layers go into the weights.
  """
  by_channel = "channel_scale" in names
  scales = {site: np.asarray(fixed[site]["scale"], np.float32) for site in trained}
  first = next(iter(scales.values())).flat[0]
  if all((s == first).all() for s in scales.values()) and (first == 1 or not by_channel):
    return trained, "channel" if by_channel else float(first)  # an int is an unknown kind to them
  scaled = {"channel_scale"} if by_channel else names & {"up_kernel", "up_right", "up_bias"}
  spread = lambda s, x: x * s.reshape(-1, *[1] * (x.ndim - 1))
  trained = {
    site: arrays | {name: spread(scales[site], arrays[name]) for name in scaled}
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
