"""Reads the weights of a Hugging Face folder: each of its tensors is read, skipped or refused."""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Container
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from safetensors import SafetensorError, safe_open
from tqdm import tqdm

from jaxtune import hosts, schema, sharding, tree
from jaxtune.errors import UserError
from jaxtune.models import quantize
from jaxtune.models.config import Config
from jaxtune.models.heads import is_head
from jaxtune.models.names import Tensor

FILE_DTYPES = ("F32", "BF16", "F16", "F64")
# Tensors that files may hold beside the weights.
BUFFERS = re.compile(
  r".*\.(attn|attention)\.(masked_)?bias|.*\.rotary_emb\.inv_freq|(.*\.)?embeddings\.position_ids"
  r"|.*\.EncDecAttention\.relative_attention_bias\.weight"
)
# The tensors of heads, in any family. They are skipped if the model is to have another head.
HEADS = re.compile(
  r"(lm_head|embed_out|score|classifier|pre_classifier|qa_outputs|cls|head|vocab_\w+)\..*"
  r"|decoder\.(weight|bias)|((bert|roberta)\.)?pooler\.dense\..*"
)


class Stored(NamedTuple):
  """Describes a tensor in a file: its name there, and its shape."""

  file: Path
  name: str
  shape: tuple[int, ...]


class Plan(NamedTuple):
  """Says where each weight comes from.

  Attributes:
    table: the family's names of all weights, those of the model's head included.
    shapes: {path of a leaf in our tree: its shape}.
    stored: the tensors of the folder that are read, by their names in the table.
    fresh: paths of the leaves that the folder lacks: those of a head that it does not have.
    dropped: names of the folder's tensors that are not read: those of another head.
  """

  table: list[Tensor]
  shapes: dict[str, tuple[int, ...]]
  stored: dict[str, Stored]
  fresh: tuple[str, ...]
  dropped: tuple[str, ...]


def plan(
  folder: Path, table: list[Tensor], shapes: Any, c: Config, same_head: bool, hf: dict
) -> Plan:
  """Decides for every tensor of a folder whether it is read.

  Only the headers of the files are read, and copies of one tensor, to compare them.

  Args:
    table: the family's names of all weights, those of the model's head included.
    shapes: the model's parameters, or their shapes.
    same_head: whether the head in the folder is of the kind that the model has.
    hf: config.json.

  Raises:
    UserError: for tensors that are missing, unexpected or misshaped, by name; for copies that
      differ; for damaged files.
  """
  shapes = {path: leaf.shape for path, leaf in tree.flatten(shapes).items()}
  wanted = {n: t.their_shape(shapes[t.ours]) for t in table for n in t.their_names(shapes[t.ours])}
  names, base = {*wanted, *(n for t in table for n in t.also)}, table[0].theirs.split(".")[0]
  weights = [s for s in _tensors(folder, hf) if not BUFFERS.fullmatch(s.name)]
  stored = _without_copies({_canonical(s.name, names, base): s for s in weights}, table, wanted)
  fresh = _fresh(table, stored, c, same_head)
  others = stored.keys() - wanted if c.head is not None else ()
  dropped = {*filter(HEADS.fullmatch, others)} | (fresh.keys() & stored)
  stored = {name: s for name, s in stored.items() if name not in dropped}
  optional = {t.theirs for t in table if t.default is not None} - stored.keys()
  _check(stored, {n: shape for n, shape in wanted.items() if n not in fresh and n not in optional})
  return Plan(table, shapes, stored, tuple(sorted(fresh.values())), tuple(sorted(dropped)))


def has_own_head(folder: Path, untied: list[Tensor], hf: dict) -> bool:
  """Says whether a folder holds a language model's head that differs from its embeddings.

  transformers uses such a head even if config.json says that it is tied to the embeddings.

  Args:
    untied: the family's table for a model whose head is not tied.
  """
  names, base = {row.theirs for row in untied}, untied[0].theirs.split(".")[0]
  ours = {row.theirs: row.ours for row in untied}
  stored = {ours.get(_canonical(s.name, names, base)): s for s in _tensors(folder, hf)}
  pair = stored.get("embed/embedding"), stored.get("head/kernel")
  return None not in pair and not np.array_equal(*map(_tensor, pair))


def _canonical(name: str, names: set[str], base: str) -> str:
  """Returns a tensor's name in the table. Older files may lack the prefix, or say gamma, beta."""
  name = re.sub(r"\.gamma$", ".weight", re.sub(r"\.beta$", ".bias", name))
  candidates = (name, f"{base}.{name}", f"{base}.{name.partition('.')[2]}")
  return next((n for n in candidates if n in names), name)


def _without_copies(
  stored: dict[str, Stored], table: list[Tensor], wanted: Container[str]
) -> dict[str, Stored]:
  """Keeps one of several copies of a tensor, under its name in the table.

  Raises:
    UserError: if copies differ.
  """
  stored, ours = dict(stored), {row.theirs: row.ours for row in table}
  for row in table:
    names = [name for name in (row.theirs, *row.also) if name in stored]
    if not names:
      continue
    stored[row.theirs] = first = stored[names[0]]
    for copy in names:
      other = stored[copy] if copy in wanted else stored.pop(copy)
      if other is first or ours.get(copy, row.ours) != row.ours:
        continue
      if not np.array_equal(_tensor(first), _tensor(other)):
        raise UserError(f"{copy} differs from {names[0]}, expected copies of one tensor")
  return stored


def _fresh(table: list[Tensor], stored: dict, c: Config, same_head: bool) -> dict[str, str]:
  """Maps the tensors of the head that the folder lacks to our paths.

  A layer of the head is fresh only as a whole: if just its bias is missing, the file is damaged.
  The last layer of another kind of head is fresh, even if the folder has one of the same name.
  """
  modules: dict[str, list[Tensor]] = {}
  for row in table:
    if c.head is not None and is_head(row.ours):
      modules.setdefault(row.ours.rpartition("/")[0], []).append(row)
  fresh = {}
  for module, rows in modules.items():
    is_stored = any(row.theirs in stored for row in rows) and (same_head or module != "head/out")
    fresh |= {} if is_stored else {row.theirs: row.ours for row in rows}
  return fresh


def _tensor(stored: Stored) -> np.ndarray:
  # Opened for each tensor, because all that was read counts as used memory until the file closes.
  with safe_open(stored.file, "numpy") as file:
    return file.get_tensor(stored.name)


def _check(stored: dict[str, Stored], wanted: dict[str, tuple[int, ...]]) -> None:
  """Raises UserError for tensors that are missing, unexpected or misshaped."""
  missing, extra = sorted(wanted.keys() - stored), sorted(stored.keys() - wanted)
  wrong = [
    f"{n} {stored[n].shape}, expected {wanted[n]}"
    for n in sorted(wanted)
    if n in stored and stored[n].shape != wanted[n]
  ]
  for label, names in (("missing", missing), ("unexpected", extra), ("misshaped", wrong)):
    if names:
      more = f" and {len(names) - 5} more" if len(names) > 5 else ""
      raise UserError(f"{len(names)} {label} tensors: {'; '.join(names[:5])}{more}")


def check_memory(shapes: Any) -> None:
  """Raises UserError for weights larger than the memory of this machine plus its devices.

  Several processes are taken to have as much each.
  """
  needed = sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(shapes))
  limits = [(device.memory_stats() or {}).get("bytes_limit", 0) for device in jax.local_devices()]
  here = hosts.memory() + sum(limits)
  memory = here * jax.process_count()
  if needed > memory:
    raise UserError(
      f"the model's weights take {needed / 2**30:,.0f} GiB, more than this machine's memory of "
      f"{memory / 2**30:,.0f} GiB; is its config.json right?"
    )


def read(
  plan: Plan, c: Config, deviation: float, seed: int, parallel: sharding.Parallel = sharding.ALONE
) -> dict:
  """Returns the weights as a tree, stacked over layers, each on its devices.

  Beside them, one tensor at a time is in memory. Kernels to be quantised are read in fp32 and
  quantised layer by layer. Fresh kernels are drawn from N(0, deviation^2); fresh biases are 0 and
  fresh scales of norms 1.
  """
  params: dict[str, Any] = {}
  put = parallel.put if parallel.mesh else partial(jax.device_put, may_alias=True)
  for row in tqdm(plan.table, desc="loading", unit="tensor", leave=False, disable=hosts.bars()):
    shape = plan.shapes[row.ours]
    if c.quantize and quantize.quantises(row.ours, shape):
      layers = (row.read(_tensor(plan.stored[name])) for name in row.their_names(shape))
      params |= put({row.ours: quantize.by_layer(layers, c.quantize)})
      continue
    array = _aligned(shape, c.dtype)
    if row.ours in plan.fresh:
      array[...] = _drawn(row.ours, shape, deviation, seed)
    elif row.default is not None and row.theirs not in plan.stored:
      array[...] = row.default
    else:
      array[: row.first] = 1
      for name, index in row.their_names(shape).items():
        array[index][...] = row.read(_tensor(plan.stored[name]))
    params |= put({row.ours: array})
  return tree.unflatten(params)


def _drawn(path: str, shape: tuple[int, ...], deviation: float, seed: int) -> np.ndarray:
  """Draws a leaf with a generator seeded by its path too, so that no other leaf changes it."""
  if not path.endswith("/kernel"):
    return np.full(shape, float(path.endswith("/scale")))
  return deviation * np.random.default_rng([seed, zlib.crc32(path.encode())]).normal(size=shape)


def _aligned(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
  """Allocates an array aligned to 64 bytes, which jax can use on a CPU without a copy."""
  size = int(np.prod(shape)) * np.dtype(dtype).itemsize
  raw = np.empty(size + 64, np.uint8)
  start = -raw.ctypes.data % 64
  return raw[start : start + size].view(dtype).reshape(shape)


def _shards(folder: Path) -> list[str]:
  """Lists the names of the files that hold the weights."""
  index = folder / "model.safetensors.index.json"
  # transformers reads the single file first, and leaves an old index beside it where it saves.
  if (folder / "model.safetensors").exists() or not index.exists():
    return ["model.safetensors"]
  entries = schema.read_json(index)
  schema.check(str(index), entries, dict)
  schema.check(f"{index}: weight_map", entries.get("weight_map"), dict[str, str])
  shards = sorted(set(entries["weight_map"].values()))
  for shard in shards:
    if Path(shard).name != shard or not shard.endswith(".safetensors"):
      raise UserError(f"{index} names {shard!r}: outside its folder, or no safetensors file")
  return shards


def _tensors(folder: Path, hf: dict) -> list[Stored]:
  """Lists every tensor of a folder, from the headers of its safetensors files.

  Raises:
    UserError: for files that are missing or damaged, and for types that are not in FILE_DTYPES.
  """
  tensors = []
  for shard in _shards(folder):
    path = folder / shard
    if not path.is_file():
      raise UserError(f"{folder} lacks {shard}{_conversion(folder, hf)}")
    try:
      with safe_open(path, "numpy") as file:
        headers = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        dtypes = {name: header.get_dtype() for name, header in headers.items()}
        tensors += [Stored(path, name, tuple(h.get_shape())) for name, h in headers.items()]
    except (OSError, SafetensorError) as error:
      raise UserError(f"{path} is damaged or truncated: {error}") from error
    for name, dtype in dtypes.items():
      if dtype not in FILE_DTYPES and not BUFFERS.fullmatch(name):
        raise UserError(
          f"{name} in {path} is stored as {dtype}; expected unquantised weights, one of "
          f"{', '.join(FILE_DTYPES)}"
        )
  return tensors


def _conversion(folder: Path, hf: dict) -> str:
  """Returns the end of an error: the command that stores weights of .bin as safetensors, if any."""
  of_hub = next((part for part in folder.parts if part.startswith("models--")), None)
  if of_hub is None and not any(folder.glob("*.bin")):
    return ""
  source = "/".join(of_hub.split("--", 2)[1:]) if of_hub else folder
  target = Path(source).name if of_hub else folder  # no .bin of the hub is here
  then = f", then set model.path='{target}' and model.tokenizer='{source}'" if of_hub else ""
  architecture = str((hf.get("architectures") or [""])[0])
  head = "".join(architecture.partition("For")[1:])
  if architecture.endswith("LMHeadModel"):
    head = "ForCausalLM"
  elif head == "ForConditionalGeneration":
    head = "ForSeq2SeqLM"
  return (
    f'; store its .bin weights as safetensors in {target}: python -c "from transformers import '
    f"AutoModel{head}; AutoModel{head}.from_pretrained('{source}').save_pretrained('{target}')\""
    f"{then}"
  )
