"""Loads a Hugging Face folder into flax parameters, tensor by tensor, and writes one back."""

from __future__ import annotations

import importlib
import json
import pkgutil
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxtune import files, schema, sharding, tree
from jaxtune.errors import UserError, nearest
from jaxtune.models import drawn, entries, families, heads, hub, weights
from jaxtune.models import tokenizer as tokenizers
from jaxtune.models.config import Config
from jaxtune.models.decoder import Decoder
from jaxtune.models.encoder import Encoder
from jaxtune.models.fields import only
from jaxtune.models.layers import check_attention
from jaxtune.models.quantize import FORMS, quantised
from jaxtune.models.seq2seq import Seq2Seq
from jaxtune.schema import Count, Seed, Text

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


class Pretrained(NamedTuple):
  """Holds a model, its frozen weights and its tokenizer.

  Attributes:
    model: the linen module; `model.config` is its `Config`.
    params: nested dicts of weights in the loading dtype, or quantised (see `quantize`); from
      `outline`, their shapes.
    tokenizer: a transformers tokenizer, or None for a folder without one.
    family: the `model_type`, the name of the family's module in jaxtune.models.families.
    hf_config: config.json, with the start tokens of generation_config.json, and untied if the
      folder holds a language model's head that differs from its embeddings.
    folder: where the model came from; None for a randomly initialised one.
    fresh: paths of the leaves that are drawn because the folder lacks them (a new head, and BERT's
      pooler if it has none).
    dropped: names of the tensors in the folder that are not read: those of another head.
  """

  model: nn.Module
  params: Any
  tokenizer: Any
  family: str
  hf_config: dict
  folder: Path | None
  fresh: tuple[str, ...] = ()
  dropped: tuple[str, ...] = ()


def family_module(name: str, where: str = "") -> Any:
  """Imports the module of a family; raises UserError if it is not supported.

  Args:
    where: the beginning of that error, such as the name of a file.
  """
  known = [m.name for m in pkgutil.iter_modules(families.__path__)]
  if name not in known:
    raise UserError(f"{where}model_type {name!r} is not supported; {nearest(name, known)}")
  return importlib.import_module(f"jaxtune.models.families.{name}")


def load(
  path: Text | None = None,
  *,
  architecture: dict | None = None,
  tokenizer: Text | None = None,
  head: str = "lm",
  labels: Count | None = None,
  dtype: Literal[*DTYPES] = "float32",
  remat: bool | Literal["linear", "auto"] = "linear",
  quantize: Literal[*FORMS] | None = None,
  unroll: Count = 1,
  attention: Literal["plain", "splash", "cudnn"] | None = None,
  scored_tokens: Count | None = None,
  seed: Seed = 0,
  parallel: sharding.Parallel = sharding.ALONE,
) -> Pretrained:
  """Loads a pretrained model from a folder or the hub, or initialises one at random.

  Args:
    path: a Hugging Face folder (config.json, single or sharded safetensors) or a hub name.
    architecture: instead of `path`: the fields of a config.json, for a random initialisation.
    tokenizer: folder or hub name of the tokenizer, if it is not in `path`.
    head: what the model predicts: "lm", or the kind of a task's head (see `heads`). It is drawn if
      the folder has no head of this kind.
    labels: their number, for the heads "classify" and "tokens"; None: that of the folder's head.
    dtype: "float32" or "bfloat16", of the frozen weights and of the computation.
    remat: what the backward pass recomputes of each block. "linear" stores queries, keys, values
      and the feed-forward's hidden layers, no more: on a CPU as fast as False, which stores all, or
      faster (experiments/speed). True recomputes the block: least memory. "auto" computes as little
      twice as the memory of the device allows (`preflight.cost.with_remat`).
    quantize: how the frozen kernels of the layers are stored: "int8", "nf4" (QLoRA's 4 bits), or
      None for `dtype`. They are dequantised to `dtype`, one layer at a time.
    unroll: number of layers in one iteration of the layer loop.
    attention: how attention is computed: "plain" matrix products, or jax's fused kernels "splash"
      (TPU) and "cudnn" (NVIDIA GPU); None chooses by the device. See `layers.Attend`.
    scored_tokens: for how many tokens a device computes logits at a time where it scores targets;
      None chooses by the vocabulary. Fewer take less memory.
    seed: seed of the random initialisation, of the whole model or of a new head.
    parallel: the devices, each of which gets its shards alone; default the first one.

  Raises:
    UserError: for a family that is not supported, tensors that are missing, unexpected or
      misshaped, a truncated file, a folder that is not a model, a hub name that cannot be loaded.
  """
  outlined = outline(path, architecture=architecture, tokenizer=tokenizer, head=head,
                     labels=labels, dtype=dtype, remat=remat, quantize=quantize,
                     unroll=unroll, attention=attention, scored_tokens=scored_tokens)  # fmt: skip
  check_attention(attention, jax.default_backend())
  model, folder, hf_config = outlined.model, outlined.folder, outlined.hf_config
  weights.check_memory(outlined.params)
  deviation = hf_config.get("initializer_range", drawn.DEVIATION)
  if folder is None:
    return outlined._replace(params=drawn.weights(model, deviation, seed, parallel))
  plan = _plan(model, abstract(model), folder, hf_config)
  return outlined._replace(params=weights.read(plan, model.config, deviation, seed, parallel))


def outline(
  path: str | None = None,
  *,
  architecture: dict | None = None,
  tokenizer: str | None = None,
  head: str = "lm",
  labels: int | None = None,
  dtype: str = "float32",
  seed: int = 0,
  **computation: Any,
) -> Pretrained:
  """Returns what `load` returns, with the weights' shapes in `params`.

  Weights are read only to compare copies of one tensor that the folder may hold.
  """
  folder, hf_config, family = _source(path, architecture)
  chosen = heads.choose(family.ARCHITECTURES, hf_config, head, labels, random=folder is None)
  config = _model_config(family, hf_config, head=chosen, dtype=DTYPES[dtype], **computation)
  if folder and config.encoder is None and config.head is None and config.tied:
    untied = replace(config, tied=False)
    if weights.has_own_head(folder, family.names(untied), hf_config):
      config, hf_config = untied, hf_config | {"tie_word_embeddings": False}
  model = make_model(config)
  shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, config.dtype), abstract(model))
  fresh, dropped = (), ()
  if folder:
    plan = _plan(model, shapes, folder, hf_config)
    fresh, dropped = plan.fresh, plan.dropped
  tokenizer = tokenizers.load(tokenizer, folder)
  shapes = jax.eval_shape(lambda params: quantised(params, config.quantize), shapes)
  name = hf_config["model_type"]
  return Pretrained(model, shapes, tokenizer, name, hf_config, folder, fresh, dropped)


def language(
  path: str | None = None,
  *,
  architecture: dict | None = None,
  tokenizer: str | None = None,
  head: str = "lm",
  dtype: str = "float32",
  **computation: Any,
) -> tuple[Any, Config, tuple[str, ...]]:
  """Loads a model's tokenizer and checks the model's options, without reading weights.

  Returns:
    The tokenizer or None; the model's `Config`, without its head; the classes of the folder's own
    head.
  """
  folder, hf_config, family = _source(path, architecture)
  config = _model_config(family, hf_config, dtype=DTYPES[dtype], **computation)
  classes = heads.classes(family.ARCHITECTURES, hf_config, head) if folder else ()
  return tokenizers.load(tokenizer, folder), config, classes


def _source(path: str | None, architecture: dict | None) -> tuple[Path | None, dict, Any]:
  """Returns a model's folder, if it has one, its checked config.json and its family's module."""
  if (path is None) == (architecture is None):
    raise UserError("model needs either a path or an architecture, and not both")
  folder = None if path is None else hub.resolve(path)
  hf_config = hub.read_config(folder) if folder else dict(architecture)
  schema.check("config.json" if folder else "model.architecture", hf_config, entries.Entries)
  where = f"{folder / 'config.json'}: " if folder else ""
  return folder, hf_config, family_module(hf_config.get("model_type", ""), where)


def make_model(config: Config) -> nn.Module:
  """Makes the module that a configuration describes."""
  if config.encoder is not None:
    return Seq2Seq(config)
  return Decoder(config) if config.causal else Encoder(config)


def abstract(model: Any) -> Any:
  """Returns the shapes of a model's parameters, without allocating them."""
  return jax.eval_shape(lambda: model.init(jax.random.key(0), **model.trace_inputs())["params"])


def _plan(model: nn.Module, shapes: Any, folder: Path, hf_config: dict) -> weights.Plan:
  """Returns where each weight of a model is in its folder."""
  family, config = family_module(hf_config["model_type"]), model.config
  stored = hf_config.get("architectures") or []
  same_head = not stored or family.ARCHITECTURES[config.head_kind] in stored
  return weights.plan(folder, family.names(config), shapes, config, same_head, hf_config)


def _model_config(family: Any, hf_config: dict, **overrides: Any) -> Config:
  """Makes a `Config` from a checked config.json, and checks the entries that depend on others."""
  try:
    config = family.config(hf_config, **overrides)
  except KeyError as error:
    raise UserError(f"config.json lacks the key {error}") from error
  if config.causal or config.encoder is not None:  # transformers reads it wherever a mask is causal
    only(hf_config, is_causal=True)
  if config.heads % config.kv_heads:
    raise UserError(
      f"config.json has {config.heads} attention heads and {config.kv_heads} key/value heads; "
      "expected the first to be a multiple of the second"
    )
  if config.positions < 1:
    raise UserError(f"config.json: the model has {config.positions} positions, expected 1 or more")
  if max(config.decoder_start, default=0) >= config.vocabulary:
    raise UserError(
      f"config.json: outputs begin with the tokens {config.decoder_start}, beyond the vocabulary "
      f"of {config.vocabulary}"
    )
  fused = "model.attention is 'cudnn', expected None: the kernel"
  if config.attention == "cudnn" and config.softcap is not None:
    raise UserError(f"{fused} does not bound the scores of attention, as this model does")
  if config.attention == "cudnn" and config.dtype != jnp.bfloat16:
    raise UserError(f"{fused} is for model.dtype = 'bfloat16', on a GPU")
  return config


def save(
  pretrained: Pretrained,
  params: Any,
  folder: Path,
  dtype: str = "float32",
  labels: tuple[str, ...] | None = None,
) -> Path:
  """Writes weights as a plain Hugging Face folder that transformers loads; returns the folder.

  Args:
    params: a full tree of weights, none of them quantised; stored in `dtype`.
    folder: created if it does not exist. A folder that `save` wrote before is replaced once the new
      one is complete; any other folder that is not empty is refused.
    labels: names of a head's labels; None keeps those of config.json.
  """
  with files.replacing(folder) as new:
    write(pretrained, params, new, dtype, labels)
  return folder


def write(
  pretrained: Pretrained,
  params: Any,
  folder: Path,
  dtype: str = "float32",
  labels: tuple[str, ...] | None = None,
) -> None:
  """Writes what `save` writes into an empty folder."""
  c, flat, family = pretrained.model.config, tree.flatten(params), family_module(pretrained.family)
  hf_config = heads.write(pretrained.hf_config | {"dtype": dtype}, c.head, labels)
  # An older name of dtype; the folder of the base; the base's Python files, which are not written.
  for name in ("torch_dtype", "_name_or_path", "auto_map"):
    hf_config.pop(name, None)
  hf_config["architectures"] = [family.ARCHITECTURES[c.head_kind]]
  tensors: dict[str, np.ndarray] = {}
  for row in family.names(c):
    leaf = np.asarray(flat[row.ours]).astype(DTYPES[dtype])
    for name, index in row.their_names(leaf.shape).items():
      if name not in tensors:
        tensors[name] = np.zeros(row.their_shape(leaf.shape), leaf.dtype)
      row.write(leaf[index], tensors[name])
  files.write_tensors(folder / "model.safetensors", tensors)
  (folder / "config.json").write_text(json.dumps(hf_config, indent=2))
  if pretrained.tokenizer is not None:
    pretrained.tokenizer.save_pretrained(folder)
