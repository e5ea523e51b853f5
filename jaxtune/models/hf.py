"""Loads a Hugging Face folder into flax parameters, tensor by tensor, and writes one back."""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
from pathlib import Path
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from jaxtune import folders, models, tree
from jaxtune.errors import UserError, nearest
from jaxtune.models import heads, weights
from jaxtune.models import tokenizer as tokenizers
from jaxtune.models.config import Config
from jaxtune.models.quantize import FORMS, quantised
from jaxtune.schema import Count, Seed, Text

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
NOT_FAMILIES = (
  "layers", "config", "transformer", "decoder", "encoder", "seq2seq", "heads", "names", "fields",
  "weights", "hf", "table", "quantize", "tokenizer",
)  # fmt: skip


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


def family_module(name: str):
  """Imports the module of a family, or says which families there are."""
  known = [m.name for m in pkgutil.iter_modules(models.__path__) if m.name not in NOT_FAMILIES]
  if name not in known:
    raise UserError(f"model_type {name!r} is not supported. {nearest(name, known)}")
  return importlib.import_module(f"jaxtune.models.{name}")


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
  if (path is None) == (architecture is None):
    raise UserError("model needs either a path or an architecture, and not both")
  folder = resolve(path) if path else None
  hf_config = _read_config(folder) if folder else dict(architecture)
  name = hf_config.get("model_type", "")
  family = family_module(name)
  made = _head(family, hf_config, folder, head, labels)
  config = _model_config(family, hf_config, head=made, dtype=DTYPES[dtype], **computation)
  model = family.MODEL(config)
  shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, config.dtype), abstract(model))
  fresh, dropped = (), ()
  if folder:
    _, fresh, dropped = _plan(folder, family.names(config), shapes, config, hf_config)
  tokenizer = tokenizers.load(tokenizer, folder)
  shapes = jax.eval_shape(lambda params: quantised(params, config.quantize), shapes)
  return Pretrained(model, shapes, tokenizer, name, hf_config, folder, fresh, dropped)


def language(
  path: str | None = None,
  *,
  architecture: dict | None = None,
  tokenizer: str | None = None,
  **computation,
) -> tuple[Any, tuple[int, ...], int]:
  """Reads what a model's texts are made of, and nothing else of the model.

  Returns:
    Its tokenizer, the tokens that an encoder-decoder's outputs begin with (() of other models), and
    how many tokens it has embeddings for.
  """
  if (path is None) == (architecture is None):
    raise UserError("model needs either a path or an architecture, and not both")
  folder = resolve(path) if path else None
  hf_config = _read_config(folder) if folder else dict(architecture)
  config = _model_config(family_module(hf_config.get("model_type", "")), hf_config)
  return tokenizers.load(tokenizer, folder), config.start, config.vocabulary


def abstract(model) -> Any:
  """Returns the shapes of a model's parameters without making any."""
  return jax.eval_shape(lambda: model.init(jax.random.key(0), **model.trace_inputs())["params"])


def resolve(path: str) -> Path:
  """Finds a model's folder: a local one, or a download from the hub."""
  folder = Path(path).expanduser()
  if os.path.isdir(folder):  # which takes names of any length
    return folder
  if os.path.exists(folder) or path.startswith((".", "/", "~")) or path.count("/") > 1:
    raise UserError(f"model path {path!r} is not a folder; expected one with a config.json")
  from huggingface_hub import snapshot_download

  try:
    patterns = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
    return Path(snapshot_download(path, allow_patterns=patterns))
  except Exception as error:
    raise UserError(
      f"model {path!r} is neither a local folder nor a model that the hub gave "
      f"({type(error).__name__}). Check the spelling and the network, or pass a local folder"
    ) from error


def _read_config(folder: Path) -> dict:
  try:
    config = json.loads((folder / "config.json").read_text()) | {}
    generation = folder / "generation_config.json"  # where transformers 5 writes these two
    stated = json.loads(generation.read_text()) if generation.exists() else {}
    starts = ("decoder_start_token_id", "forced_bos_token_id")
    return config | {name: stated[name] for name in starts if stated.get(name) is not None}
  except (OSError, ValueError, TypeError) as error:
    raise UserError(
      f"{folder} is not a model folder: its config.json cannot be read ({error})"
    ) from error


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


def _plan(folder: Path, table, shapes, config: Config, hf_config: dict) -> weights.Plan:
  stored = hf_config.get("architectures") or []
  kind = "lm" if config.head is None else config.head.kind
  same = not stored or family_module(hf_config["model_type"]).ARCHITECTURES[kind] in stored
  return weights.plan(folder, table, shapes, config, same, hf_config)


def _model_config(family, hf_config: dict, **overrides) -> Config:
  try:
    config = family.config(hf_config, **overrides)
  except KeyError as error:
    raise UserError(f"config.json lacks the key {error}") from error
  if config.heads % config.kv_heads:
    raise UserError(
      f"config.json has {config.heads} attention heads and {config.kv_heads} key/value heads; "
      "expected the first to be a multiple of the second"
    )
  if config.attention is not None and config.softcap is not None:
    raise UserError(
      f"attention {config.attention!r} cannot bound the scores of attention, as this model does; "
      "leave model.attention out"
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
  with folders.replacing(folder) as new:
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
