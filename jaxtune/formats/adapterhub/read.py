"""Reads AdapterHub's format (adapters 1.3), whatever the adapter's name: the inverse of the export.

Bottleneck adapters, Compacters, prefixes, unions of these (MAM), and the head beside them. A prefix
behind an MLP is read as the keys and values that the MLP makes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxtune import peft as methods_
from jaxtune import schema, tree
from jaxtune.errors import UserError
from jaxtune.formats import files, options
from jaxtune.formats.adapterhub import configs
from jaxtune.formats.adapterhub import names as layout
from jaxtune.formats.adapterhub.prefix import check_model
from jaxtune.formats.adapterhub.write import FILES
from jaxtune.models import hf
from jaxtune.models.layers import ACTIVATIONS

POOLED_COPY = ".prefix_tuning.pool."  # every layer's view of the prefixes of all


def read(folder: Path, config: dict, pretrained) -> files.Imported:
  """Reads an adapter that AdapterHub, or our own export, wrote.

  Raises:
    UserError: for an adapter of another model, with foreign, missing or misshaped tensors, or that
      jaxtune cannot express.
  """
  layout.check_family(pretrained)
  c, about = pretrained.model.config, config["config"]
  for entry, ours in {"model_type": pretrained.family, "hidden_size": c.width}.items():
    if config.get(entry, ours) != ours:
      raise UserError(
        f"the adapter in {folder} is of a base with {entry} {config[entry]}, expected {ours}"
      )
  union = about.get("architecture") == "union"
  abouts = about.get("configs", []) if union else [about]
  for i, part in enumerate(abouts):
    schema.check(f"the adapter's config {i}", part, options.Part)
  kinds = [part.get("architecture") or "bottleneck" for part in abouts]
  if not kinds or not {*kinds} <= READERS.keys():
    raise UserError(
      f"the adapter in {folder} is a {' + '.join(kinds) or 'union of nothing'}, expected a "
      "bottleneck adapter, a Compacter, a prefix or a union of these; save LoRA in PEFT's format"
    )
  if len({*kinds}) < len(kinds):
    raise UserError(f"the union in {folder} has two parts of one kind: {' + '.join(kinds)}")
  found = files.tensors(folder, *FILES["adapter"][1:])
  base, name = layout.base(pretrained), str(config.get("name"))
  if not any(key.startswith(base) for key in found):  # saved from a model without a head
    found = {base + key: x for key, x in found.items()}
  try:
    each = zip(kinds, abouts, strict=True)
    made = [READERS[kind](pretrained, part, name, found) for kind, part in each]
  except KeyError as error:
    raise UserError(f"the adapter in {folder} lacks {error.args[0]}") from error
  except UserError:
    raise
  except (ValueError, IndexError) as error:  # of NumPy, about shapes
    raise UserError(f"the adapter in {folder} has tensors of wrong shapes: {error}") from error
  if found:
    first = ", ".join(sorted(found)[:3])
    raise UserError(f"{len(found)} foreign tensors in {folder}, which nothing reads: {first}")
  parts = tuple(_part(pretrained, *each) for each in made)
  params, labels = _head(folder, pretrained)
  source = {"format": "adapterhub", "type": " + ".join(kinds), "base": config.get("model_name")}
  source |= {"version": config.get("version"), "name": name}
  return files.Imported(parts, params, labels, source)


def _part(pretrained, section: dict, trained: dict, scales: dict) -> files.Part:
  """Compares shapes with those that the method would make, and adds what it fixes."""
  (method,) = methods_.build(section)
  sites = methods_.find_sites(pretrained.model)
  init = lambda key: method.init(key, sites, methods_.Frozen(lambda path: None))
  made, fixed = jax.eval_shape(init, jax.random.key(0))
  for site, arrays in made.items():
    for name, x in arrays.items():
      if trained[site][name].shape != x.shape:
        raise _misshapen(name, site, trained[site][name].shape, x.shape)
  values = {"mask": True, "offset": 0} | section
  fixed = {
    site: {name: np.full(x.shape, values[name], x.dtype) for name, x in arrays.items()}
    for site, arrays in fixed.items()
  }
  for site, scale in scales.items():
    if scale.shape != fixed[site]["scale"].shape:
      raise _misshapen("scaling", site, scale.shape, fixed[site]["scale"].shape)
    fixed[site]["scale"] = scale
  return files.Part(section, trained, fixed)


def _misshapen(name: str, where: str, given, expected) -> UserError:
  return UserError(f"{name} at {where} has the shape {given}, expected {expected}: another base?")


def _bottleneck(pretrained, config: dict, name: str, found: dict) -> tuple[dict, dict, dict]:
  """Takes an adapter's tensors out of `found`; returns (section, trained, learned scales)."""
  section = configs.section(config)
  every = _arrays(section)
  trained, scales, places = {}, {}, layout.residuals(pretrained)
  for site, place in places.items():
    if not config.get(layout.ENTRIES[site.rpartition("/")[2]], False):
      continue
    layers = layout.halves(pretrained.model.config)[site.split("/")[0]]
    modules = [f"{place.format(i)}.adapters.{name}" for i in range(layers)]
    each = [_layer(module, every, found) for module in modules]
    if config.get("scaling") == "learned":
      scales[site] = np.concatenate([found.pop(f"{module}.scaling") for module in modules])
    trained[site] = {array: _stacked([x[array] for x in each], site, array) for array in every}
  # Of an encoder-decoder's half that is not adapted, the format holds zeros.
  trained = {s: xs for s, xs in trained.items() if any(x.any() for x in xs.values())} or trained
  if not trained:
    raise UserError(
      "the adapter's config asks for no adapter: neither mh_adapter nor output_adapter"
    )
  section |= {"targets": tuple(trained)}
  if section["name"] == "adapter":
    return section | {"width": _widths(trained)}, trained, scales
  arrays = next(iter(trained.values()))
  n, rank = arrays["down_left"].shape[1], arrays["down_left"].shape[3]
  if section["shared"]:
    first = next(iter(trained))  # where the method keeps it
    rule = {"phm_rule": found.pop(layout.shared(pretrained, name))}
    trained[first.partition("/layers/")[0]] = rule
  return section | {"n": n, "rank": rank, "width": arrays["down_bias"][0].size}, trained, scales


def _arrays(section: dict) -> tuple[str, ...]:
  """Lists the arrays that an adapter has at each of its sites."""
  if section["name"] == "compacter":
    left_out = ("down_rule", "up_rule") if section["shared"] else ()
    return tuple(name for name in layout.PHM if name not in left_out)
  parts = {"channel_scale": "channel_scale"}
  parts |= {f"norm_{x}": "ln_before" for x in ("scale", "bias")}
  parts |= {f"norm_after_{x}": "ln_after" for x in ("scale", "bias")}
  return tuple(name for name in layout.ARRAYS if name not in parts or section[parts[name]])


def _layer(module: str, every: tuple[str, ...], found: dict) -> dict[str, np.ndarray]:
  """Takes one layer's arrays out of `found`."""
  made = {}
  for name in every:
    (named, how), *copies = layout.theirs(name, every)
    x = found.pop(f"{module}.{named}")
    made[name] = x.T if how == "transposed" else x
    for copy, _ in copies:
      found.pop(f"{module}.{copy}", None)
    if how == "flat":
      made[name] = x.reshape(len(made["down_left"]), -1)
  if "down_kernel" in made:
    (unit,), (features,) = made["down_bias"].shape, made["up_bias"].shape
    for name, shape in {"down_kernel": (features, unit), "up_kernel": (unit, features)}.items():
      if made[name].shape != shape:
        raise _misshapen(name, module, made[name].shape, shape)
  return made


def _stacked(each: list[np.ndarray], site: str, name: str) -> np.ndarray:
  """Stacks the layers' arrays; where their widths differ, padded with zeros to the widest."""
  shape = np.max([x.shape for x in each], axis=0)
  for x in each if name not in ("down_kernel", "down_bias", "up_kernel") else ():
    if x.shape != tuple(shape):
      raise _misshapen(name, site, x.shape, tuple(map(int, shape)))
  pad = lambda x: np.pad(x, [(0, n - m) for n, m in zip(shape, x.shape, strict=True)])
  return np.stack([pad(x) for x in each])


def _widths(trained: dict) -> int | tuple[int, ...]:
  """Returns the width of all layers, or of each; where trunks differ in them, of the widest."""
  used = [(x["down_kernel"] != 0).any(1) | (x["up_kernel"] != 0).any(2) for x in trained.values()]
  widest = used[0].shape[1]
  each = {tuple(int(np.max(np.nonzero(u)[0], initial=0)) + 1 for u in x) for x in used}
  return widest if len(each) > 1 or {*next(iter(each))} == {widest} else each.pop()


def _prefix(pretrained, config: dict, name: str, found: dict) -> tuple[dict, dict, dict]:
  """Takes a prefix's tensors out of `found`; returns (section, trained, no scales)."""
  check_model(pretrained)
  for entry in ("use_gating", "leave_out"):
    if config.get(entry):
      raise UserError(f"the prefix has {entry} {config[entry]}, which jaxtune's has not")
  for key in [key for key in found if POOLED_COPY in key]:
    del found[key]
  c, length, trained = pretrained.model.config, int(config.get("prefix_length", 30)), {}
  places = {"encoder_prefix": "encoder", "cross_prefix": "cross"}
  chosen = {}
  for site, pool in layout.prefixes(pretrained).items():
    if pool in places:
      chosen[places[pool]] = bool(config.get(pool, True))
      if not chosen[places[pool]]:
        continue
    half = c.encoder if site.startswith("encoder/") else c
    values = _values(config, f"{layout.pool(pretrained, name)}{pool}", found)
    shape = (length, half.layers, 2, half.kv_heads, half.head_size)
    if values.size != np.prod(shape):
      raise UserError(
        f"the prefix at {site} has {values.size} numbers, expected {np.prod(shape)} for {length} "
        f"tokens in {half.layers} layers of {half.kv_heads} x {half.head_size}: another base?"
      )
    pair = values.reshape(shape).transpose(2, 1, 0, 3, 4)
    trained[site] = {"key": np.ascontiguousarray(pair[0]), "value": np.ascontiguousarray(pair[1])}
  return {"name": "prefix", "length": length, "shift": False, **chosen}, trained, {}


def _values(config: dict, place: str, found: dict) -> np.ndarray:
  """Takes the keys and values of one pool, or what the MLP makes of its embeddings."""
  if config.get("flat"):
    return found.pop(f"{place}.control_trans")
  take = lambda name: found.pop(f"{place}.{name}")
  x, act = take("wte.weight"), ACTIVATIONS[configs.activation(config, "tanh")]
  w1, b1, w2, b2 = (take(f"control_trans.{i}.{n}") for i in (0, 2) for n in ("weight", "bias"))
  return np.asarray(act(jnp.asarray(x @ w1.T + b1[None]))) @ w2.T + b2[None]


READERS = {"bottleneck": _bottleneck, "prefix_tuning": _prefix}


def _head(folder: Path, pretrained) -> tuple[dict[str, Any], tuple[str, ...]]:
  """Reads the head beside an adapter: returns ({our path: array}, names of its labels).

  A language model's head is left out where it is the base's own.
  """
  about, safe, pickled = FILES["head"]
  if not (folder / about).exists():
    return {}, ()
  config = schema.read_json(folder / about)
  schema.check(f"{folder / about}: options", config, options.Head)
  c, family = pretrained.model.config, hf.family_module(pretrained.family)
  kind = "lm" if c.head is None else c.head.kind
  if config.get("config") is not None or config.get("model_class") != family.ARCHITECTURES.get(
    kind
  ):
    known = family.ARCHITECTURES
    hint = next((ours for ours in known if known[ours] == config.get("model_class")), None)
    hint = f"load the model with head={hint!r}" if hint else "save it from a class of transformers"
    raise UserError(
      f"the head in {folder} is of {config.get('model_class')}, the model's is {kind!r}: {hint}"
    )
  found, table = files.tensors(folder, safe, pickled), family.names(c)
  flat, params = tree.flatten(pretrained.params), {}
  for row in table:
    for key in [key for key in (row.theirs, *row.also) if key in found]:
      leaf = np.asarray(flat[row.ours], np.float32)
      if found[key].shape != row.their_shape(leaf.shape):
        raise _misshapen(key, str(folder), found[key].shape, row.their_shape(leaf.shape))
      x = np.ascontiguousarray(row.read(found.pop(key)))
      if row.ours in pretrained.fresh or kind != "lm" or not np.array_equal(x, leaf):
        params[row.ours] = x
  tied = np.asarray(flat["embed/embedding"], np.float32)
  found = {key: x for key, x in found.items() if not np.array_equal(x, tied)}
  if found:
    raise UserError(f"foreign tensors in the head in {folder}: {', '.join(sorted(found)[:3])}")
  stated = config.get("label2id") or {}
  named = kind in ("classify", "tokens") and len(stated) == c.head.outputs
  return params, tuple(sorted(stated, key=stated.get)) if named else ()
