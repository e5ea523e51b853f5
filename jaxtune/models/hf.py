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
from safetensors.numpy import save_file

from jaxtune import files, schema, tree
from jaxtune.errors import UserError, nearest
from jaxtune.models import entries, families, heads, hub, weights
from jaxtune.models import tokenizer as tokenizers
from jaxtune.models.config import Config
from jaxtune.models.decoder import Decoder
from jaxtune.models.quantize import FORMS, quantised
from jaxtune.schema import Count, Seed, Text

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


class Pretrained(NamedTuple):
  """A model, its frozen weights and its tokenizer.

  Attributes:
    model: the linen module; `model.config` is its `Config`.
    params: {"params"}-style tree of weights (arrays of the loading dtype).
    tokenizer: a transformers tokenizer, or None for a folder without one.
    family: the `model_type`, the name of the family's module in jaxtune.models.
    hf_config: the folder's `config.json` as it stands.
    folder: where it came from; None for a randomly initialised model.
    fresh: paths of the leaves that were drawn because the folder has none (a new head, and BERT's
      pooler where it lacks one).
    dropped: names of the tensors that were left in the folder: those of another head.
  """

  model: nn.Module
  params: Any
  tokenizer: Any
  family: str
  hf_config: dict
  folder: Path | None
  fresh: tuple[str, ...] = ()
  dropped: tuple[str, ...] = ()


class Source(NamedTuple):
  """What a model is made of: its folder, if it has one, its config.json and its family's module."""

  folder: Path | None
  hf_config: dict
  family: Any


def family_module(name: str, where: str = ""):
  """Imports the module of a family, or says which families there are, and where it was named."""
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
  remat: bool = False,
  quantize: Literal[*FORMS] | None = None,
  unroll: Count = 1,
  attention: Literal["cudnn"] | None = None,
  seed: Seed = 0,
) -> Pretrained:
  """Loads a pretrained model from a folder or the hub, or initialises one at random.

  Args:
    path: a Hugging Face folder (config.json, single or sharded safetensors) or a hub name.
    architecture: instead of `path`: the fields of a config.json, for a random initialisation.
    tokenizer: folder or hub name of the tokenizer, where it is not in `path`.
    head: what the model scores: "lm", or a task's head, see `heads`. Where the folder has another
      head or none, it is drawn anew.
    labels: how many, for the heads "classify" and "tokens"; None: as many as the folder's head has.
    dtype: "float32" or "bfloat16", of the frozen weights and of the computation.
    remat: recompute each block in the backward pass: less memory, and on a CPU often faster.
    quantize: how the frozen kernels of the layers are stored: "int8", "nf4" (QLoRA's 4 bits), or
      None for `dtype`. They are computed with in `dtype`, one layer at a time.
    unroll: layers in one iteration of the layer loop.
    attention: None for plain matrix products, or "cudnn" for jax's fused kernel.
    seed: of the random initialisation, of all or of a new head.

  Raises:
    UserError: an unsupported family, tensors that are missing, unexpected or misshaped, a
      truncated file, a folder that is not a model, no network for a hub name.
  """
  outlined = outline(path, architecture=architecture, tokenizer=tokenizer, head=head,
                     labels=labels, dtype=dtype, remat=remat, quantize=quantize,
                     unroll=unroll, attention=attention)  # fmt: skip
  model, config = outlined.model, outlined.model.config
  weights.check_memory(outlined.params)
  if outlined.folder:
    hf_config, table = outlined.hf_config, family_module(outlined.family).names(config)
    shapes, deviation = abstract(model), hf_config.get("initializer_range", 0.02)
    plan = _plan(outlined.folder, table, shapes, config, hf_config)
    params = weights.read(plan, table, shapes, config, deviation, seed)
  else:
    make = jax.jit(lambda key: model.init(key, **model.trace_inputs())["params"])
    params = make(jax.random.key(seed))
    params = jax.tree.map(lambda x: x.astype(config.dtype), params)
    params = quantised(params, quantize)
  return outlined._replace(params=params)


def outline(
  path: str | None = None,
  *,
  architecture: dict | None = None,
  tokenizer: str | None = None,
  head: str = "lm",
  labels: int | None = None,
  dtype: str = "float32",
  seed: int = 0,
  **computation,
) -> Pretrained:
  """Does all that `load` does but for the weights, whose shapes it returns in their place."""
  source = _source(path, architecture)
  family, hf_config = source.family, source.hf_config
  made = _head(family, hf_config, source.folder, head, labels)
  config = _model_config(family, hf_config, head=made, dtype=DTYPES[dtype], **computation)
  if source.folder and _has_own_head(source, config):
    hf_config = hf_config | {"tie_word_embeddings": False}
    config = replace(config, tied=False)
  model = family.MODEL(config)
  shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, config.dtype), abstract(model))
  fresh, dropped = (), ()
  if source.folder:
    _, fresh, dropped = _plan(source.folder, family.names(config), shapes, config, hf_config)
  tokenizer = tokenizers.load(tokenizer, source.folder)
  shapes = jax.eval_shape(lambda params: quantised(params, config.quantize), shapes)
  name = hf_config["model_type"]
  return Pretrained(model, shapes, tokenizer, name, hf_config, source.folder, fresh, dropped)


def language(
  path: str | None = None,
  *,
  architecture: dict | None = None,
  tokenizer: str | None = None,
  dtype: str = "float32",
  **computation,
) -> tuple[Any, tuple[int, ...], int]:
  """Reads what a model's texts are made of, and checks how the model is to be computed.

  Returns:
    Its tokenizer, the tokens that an encoder-decoder's outputs begin with (() of other models), and
    how many tokens it has embeddings for.
  """
  source = _source(path, architecture)
  config = _model_config(source.family, source.hf_config, dtype=DTYPES[dtype], **computation)
  if config.attention is not None:
    abstract(source.family.MODEL(config))
  return tokenizers.load(tokenizer, source.folder), config.decoder_start, config.vocabulary


def _source(path: str | None, architecture: dict | None) -> Source:
  """Finds what a model is made of, and checks its config.json."""
  if (path is None) == (architecture is None):
    raise UserError("model needs either a path or an architecture, and not both")
  folder = None if path is None else hub.resolve(path)
  hf_config = hub.read_config(folder) if folder else dict(architecture)
  schema.check("config.json" if folder else "model.architecture", hf_config, entries.Entries)
  where = f"{folder / 'config.json'}: " if folder else ""
  return Source(folder, hf_config, family_module(hf_config.get("model_type", ""), where))


def abstract(model) -> Any:
  """Returns the shapes of a model's parameters without making any."""
  return jax.eval_shape(lambda: model.init(jax.random.key(0), **model.trace_inputs())["params"])


def _head(family, hf_config: dict, folder: Path | None, kind: str, labels: int | None):
  """Makes the head that is wanted, with as many labels as the folder's, if that is its own."""
  known, stored = family.ARCHITECTURES, hf_config.get("architectures") or []
  if kind == "lm" and kind in known:
    for architecture in stored:
      if not architecture.endswith(("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")):
        raise UserError(
          f"architecture {architecture!r} has no language model's head, expected {known['lm']}"
        )
  own = folder is None or known.get(kind) in stored
  return heads.choose(known, hf_config, kind, labels, own)


def _has_own_head(source: Source, config: Config) -> bool:
  if source.family.MODEL is not Decoder or config.head is not None or not config.tied:
    return False
  table = source.family.names(replace(config, tied=False))
  return weights.has_own_head(source.folder, table, source.hf_config)


def _plan(folder: Path, table, shapes, config: Config, hf_config: dict) -> weights.Plan:
  stored = hf_config.get("architectures") or []
  kind = "lm" if config.head is None else config.head.kind
  same = not stored or family_module(hf_config["model_type"]).ARCHITECTURES[kind] in stored
  return weights.plan(folder, table, shapes, config, same, hf_config)


def _model_config(family, hf_config: dict, **overrides) -> Config:
  """Reads a checked config.json, and checks what hangs on several of its entries."""
  try:
    config = family.config(hf_config, **overrides)
  except KeyError as error:
    raise UserError(f"config.json lacks the key {error}") from error
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
  return config


def save(
  pretrained: Pretrained,
  params: Any,
  folder: Path,
  dtype: str = "float32",
  labels: tuple[str, ...] | None = None,
) -> Path:
  """Writes params as a plain Hugging Face folder that transformers loads.

  Args:
    params: a full tree of weights; stored in `dtype`.
    folder: made if need be; one that was written so before is replaced when the new one is
      complete, and any other that is not empty is refused.
    labels: names of a head's labels; None keeps those of the config.json.
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
  """Does what `save` does, into a folder that is empty."""
  c, flat, family = pretrained.model.config, tree.flatten(params), family_module(pretrained.family)
  hf_config = heads.write(pretrained.hf_config | {"dtype": dtype}, c.head, labels)
  for name in ("torch_dtype", "_name_or_path"):  # the older name of dtype; where the base lay
    hf_config.pop(name, None)
  architectures = [family.ARCHITECTURES["lm" if c.head is None else c.head.kind]]
  stored = hf_config.get("architectures")
  hf_config["architectures"] = stored if c.head is None and stored else architectures
  tensors: dict[str, np.ndarray] = {}
  for row in family.names(c):
    leaf = np.asarray(flat[row.ours]).astype(DTYPES[dtype])
    for name, index in row.their_names(leaf.shape).items():
      if name not in tensors:
        tensors[name] = np.zeros(row.their_shape(leaf.shape), leaf.dtype)
      row.write(leaf[index], tensors[name])
  save_file(tensors, folder / "model.safetensors", {"format": "pt"})
  (folder / "model.safetensors").chmod(0o644)  # the library makes it readable to its owner alone
  (folder / "config.json").write_text(json.dumps(hf_config, indent=2))
  if pretrained.tokenizer is not None:
    pretrained.tokenizer.save_pretrained(folder)
