"""Bottleneck adapters and Compacters in AdapterHub's format: written and read."""

from __future__ import annotations

import jax
import numpy as np

from jaxtune import tree
from jaxtune.errors import UserError
from jaxtune.formats.adapterhub import configs, layout
from jaxtune.formats.files import check_shape
from jaxtune.models import hf
from jaxtune.peft import Method


def write(
  pretrained: hf.Pretrained, method: Method, trained: dict, fixed: dict
) -> tuple[dict, dict]:
  """Returns (config, tensors) of an adapter."""
  trained = jax.tree.map(np.asarray, trained)
  rules = [trained.pop(site) for site in list(trained) if "phm_rule" in trained[site]]
  names = set().union(*trained.values())
  if "gate_kernel" in names:
    raise UserError(
      "AdapterHub's gates are averaged over all tokens of a text, where ours are each token's own: "
      "it cannot express method.gate; train without it"
    )
  entries = {
    entry: any(site.endswith(residual) for site in trained)
    for residual, (entry, _) in layout.RESIDUALS.items()
  }
  dropout = max(float(np.max(fixed[site]["dropout"])) for site in trained)
  trained, scaling = _scaled(trained, fixed, names)
  trained |= _untrained(pretrained, trained)
  config = configs.bottleneck(method.options, names)
  if method.kind == "compacter":
    arrays = next(iter(trained.values()))
    _, n, _, rank = arrays["down_left"].shape
    config |= configs.PHM | {"phm_dim": n, "phm_rank": rank, "shared_phm_rule": bool(rules)}
    widths = {half: [arrays["down_bias"][0].size] * layers
              for half, layers in layout.halves(pretrained.model.config).items()}  # fmt: skip
  else:
    widths = _widths(pretrained, trained)
  modules, tensors = layout.residuals(pretrained), {}
  for rule in rules:
    tensors[layout.shared(pretrained, layout.NAME)] = rule["phm_rule"]
  for site, arrays in trained.items():
    for i, width in enumerate(widths[site.split("/")[0]]):
      layer = _cut({name: x[i] for name, x in arrays.items()}, width)
      tensors |= layout.tensors(f"{modules[site].format(i)}.adapters.{layout.NAME}", layer)
  every = [configs.reduction_factor(pretrained.model.config.width, w)
           for half in layout.halves(pretrained.model.config) for w in widths[half]]  # fmt: skip
  factor = every[0] if len(set(every)) == 1 else {str(i): r for i, r in enumerate(every)}
  sizes = {"scaling": scaling, "dropout": round(dropout, 6), "reduction_factor": factor}
  return config | entries | sizes, tensors


def _cut(layer: dict, width: int) -> dict:
  """Returns one layer's arrays without the padding beyond its width; a Compacter has none."""
  if "down_kernel" not in layer:
    return layer
  units = {name: layer[name][:width] for name in ("down_bias", "up_kernel")}
  return layer | units | {"down_kernel": layer["down_kernel"][:, :width]}


def _scaled(trained: dict, fixed: dict, names: set[str]) -> tuple[dict, float | str]:
  """Returns the arrays, and the one scale that the config can hold.

  Where sites or layers differ in scale, the arrays are multiplied by it, and the config's is 1.
  """
  by_channel = "channel_scale" in names
  scales = {site: np.asarray(fixed[site]["scale"], np.float32) for site in trained}
  first = next(iter(scales.values())).flat[0]
  if all((s == first).all() for s in scales.values()) and (first == 1 or not by_channel):
    return trained, "channel" if by_channel else float(first)  # adapters refuses an int
  scaled = {"channel_scale"} if by_channel else names & {"up_kernel", "up_right", "up_bias"}
  spread = lambda s, x: x * s.reshape(-1, *[1] * (x.ndim - 1))
  trained = {
    site: arrays | {name: spread(scales[site], arrays[name]) for name in scaled}
    for site, arrays in trained.items()
  }
  return trained, "channel" if by_channel else 1.0


def _untrained(pretrained: hf.Pretrained, trained: dict) -> dict[str, dict]:
  """Makes adapters of zeros, which add nothing, for the untrained half of an encoder-decoder.

  The config cannot ask for the adapters of one half alone.
  """
  counts, added = layout.halves(pretrained.model.config), {}
  for site, arrays in trained.items() if len(counts) > 1 else ():
    half, _, residual = site.partition("/layers/")
    other = "decoder" if half == "encoder" else "encoder"
    if residual != "cross_residual" and f"{other}/layers/{residual}" not in trained:
      zeros = {name: np.zeros((counts[other], *x.shape[1:])) for name, x in arrays.items()}
      added[f"{other}/layers/{residual}"] = zeros
  return added


def _live_units(arrays: dict) -> np.ndarray:
  """Says which units (L, F) of a site's bottleneck are more than padding."""
  return (arrays["down_kernel"] != 0).any(1) | (arrays["up_kernel"] != 0).any(2)


def _widths(pretrained: hf.Pretrained, trained: dict) -> dict[str, list[int]]:
  """Returns {trunk: the width of each layer}, without the padding to the widest layer.

  All adapters of a layer have one width, as the config has one number for each layer. A layer whose
  adapters are all zero gets the widest.
  """
  widths = {}
  for half, layers in layout.halves(pretrained.model.config).items():
    sites = [arrays for site, arrays in trained.items() if site.startswith(f"{half}/")]
    widest = max(arrays["down_bias"].shape[-1] for arrays in trained.values())
    used = [_live_units(arrays) for arrays in sites]
    last = [max((int(np.max(np.nonzero(u[i])[0], initial=-1)) for u in used), default=-1)
            for i in range(layers)]  # fmt: skip
    widths[half] = [i + 1 if i >= 0 else widest for i in last]
  return widths


def read(
  pretrained: hf.Pretrained, config: dict, adapter: str, tensors: dict
) -> tuple[dict, dict, dict]:
  """Removes an adapter's tensors from `tensors`: returns (section, trained, learned scales).

  Layers may differ in width: zeros pad their arrays to the widest.
  """
  section = configs.section(config)
  names = _arrays(section)
  trained, scales = {}, {}
  for site, place in layout.residuals(pretrained).items():
    entry, _ = layout.RESIDUALS[site.rpartition("/")[2]]
    if not config.get(entry, False):
      continue
    count = layout.halves(pretrained.model.config)[site.split("/")[0]]
    modules = [f"{place.format(i)}.adapters.{adapter}" for i in range(count)]
    layers = [_layer(module, names, tensors) for module in modules]
    if config.get("scaling") == "learned":
      scales[site] = np.concatenate([tensors.pop(f"{module}.scaling") for module in modules])
    for name in set(names) - {"down_kernel", "down_bias", "up_kernel"}:  # those have the width
      for arrays in layers:
        check_shape(f"{name} at {site}", arrays[name].shape, layers[0][name].shape)
    trained[site] = jax.tree.map(np.asarray, tree.stack(layers))
  # Of an encoder-decoder's half that is not adapted, the format holds zeros.
  trained = {s: xs for s, xs in trained.items() if any(x.any() for x in xs.values())} or trained
  if not trained:
    raise UserError(
      "the adapter's config asks for no adapter: neither mh_adapter nor output_adapter"
    )
  section |= {"targets": tuple(trained)}
  if section["name"] == "adapter":
    return section | {"width": _used_widths(trained)}, trained, scales
  arrays = next(iter(trained.values()))
  n, rank = arrays["down_left"].shape[1], arrays["down_left"].shape[3]
  if section["shared"]:
    first = next(iter(trained))  # where the method keeps it
    rule = {"phm_rule": tensors.pop(layout.shared(pretrained, adapter))}
    trained[first.partition("/layers/")[0]] = rule
  return section | {"n": n, "rank": rank, "width": arrays["down_bias"][0].size}, trained, scales


def _arrays(section: dict) -> tuple[str, ...]:
  """Lists the arrays that an adapter has at each of its sites."""
  if section["name"] == "compacter":
    left_out = ("down_rule", "up_rule") if section["shared"] else ()
    return tuple(name for name in layout.PHM if name not in left_out)
  options = {"channel_scale": "channel_scale"}
  options |= {f"norm_{x}": "ln_before" for x in ("scale", "bias")}
  options |= {f"norm_after_{x}": "ln_after" for x in ("scale", "bias")}
  return tuple(name for name in layout.ARRAYS if name not in options or section[options[name]])


def _layer(module: str, names: tuple[str, ...], tensors: dict) -> dict[str, np.ndarray]:
  """Removes one layer's arrays from `tensors` and returns them as ours."""
  arrays = {}
  for name in names:
    (theirs, how), *copies = layout.theirs(name, names)
    x = tensors.pop(f"{module}.{theirs}")
    arrays[name] = x.T if how == "transposed" else x
    for copy, _ in copies:
      tensors.pop(f"{module}.{copy}", None)
    if how == "flat":
      arrays[name] = x.reshape(len(arrays["down_left"]), -1)
  if "down_kernel" in arrays:
    (unit,), (features,) = arrays["down_bias"].shape, arrays["up_bias"].shape
    check_shape(f"down_kernel at {module}", arrays["down_kernel"].shape, (features, unit))
    check_shape(f"up_kernel at {module}", arrays["up_kernel"].shape, (unit, features))
  return arrays


def _used_widths(trained: dict) -> int | tuple[int, ...]:
  """Returns one width for all layers, or one for each; the widest if sites differ in widths."""
  used = [_live_units(arrays) for arrays in trained.values()]
  widest = used[0].shape[1]
  layers = {tuple(int(np.max(np.nonzero(u)[0], initial=0)) + 1 for u in x) for x in used}
  return widest if len(layers) > 1 or {*next(iter(layers))} == {widest} else layers.pop()
