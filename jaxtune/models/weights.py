"""Reads the tensors of a Hugging Face folder, and accounts for every one of them."""

from __future__ import annotations

import math
import os
import re
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from safetensors import SafetensorError, safe_open
from tqdm import tqdm
from typing_extensions import TypedDict

from jaxtune import schema, tree
from jaxtune.errors import UserError
from jaxtune.models import quantize
from jaxtune.models.config import Config
from jaxtune.models.heads import is_head
from jaxtune.models.names import Tensor

FILE_DTYPES = ("F32", "BF16", "F16", "F64")
# In files, but no weights.
BUFFERS = re.compile(
  r".*\.(attn|attention)\.(masked_)?bias|.*\.rotary_emb\.inv_freq|(.*\.)?embeddings\.position_ids"
  r"|.*\.EncDecAttention\.relative_attention_bias\.weight"
)
TIED = re.compile(r"(lm_head|embed_out)\.weight")
# Of heads, in any family: where the model wanted has another head, they are left in the file.
HEADS = re.compile(
  r"(lm_head|embed_out|score|classifier|pre_classifier|qa_outputs|cls|head|vocab_\w+)\..*"
  r"|decoder\.(weight|bias)|((bert|roberta)\.)?pooler\.dense\..*"
)
AUTO = {
  "CausalLM": "ForCausalLM",
  "LMHeadModel": "ForCausalLM",
  "MaskedLM": "ForMaskedLM",
  "PreTraining": "ForPreTraining",
  "SequenceClassification": "ForSequenceClassification",
  "TokenClassification": "ForTokenClassification",
  "QuestionAnswering": "ForQuestionAnswering",
  "ConditionalGeneration": "ForSeq2SeqLM",
}


class Index(TypedDict):
  """What is read of model.safetensors.index.json: which file holds which tensor."""

  __pydantic_config__ = schema.STRICT
  weight_map: dict[str, str]


class Stored(NamedTuple):
  """A tensor in a file: its name there, and its shape."""

  file: Path
  name: str
  shape: tuple[int, ...]


class Plan(NamedTuple):
  """Where each weight comes from.

  Attributes:
    found: the tensors of a folder, under the names of the family's table.
    fresh: paths of our leaves that it lacks: those of a head that it does not have.
    dropped: its tensors that are not read: those of another head.
  """

  found: dict[str, Stored]
  fresh: tuple[str, ...]
  dropped: tuple[str, ...]


def plan(folder: Path, table: list[Tensor], shapes: Any, c: Config, same: bool, hf: dict) -> Plan:
  """Assigns every tensor of a folder, by the files' headers alone.

  Args:
    table: of the family, for the model with its head.
    shapes: of the model's parameters.
    same: whether the checkpoint's head is of the kind that is wanted.
    hf: config.json.

  Raises:
    UserError: tensors that are missing, unexpected or misshaped, by name; damaged files.
  """
  shapes = {path: leaf.shape for path, leaf in tree.flatten(shapes).items()}
  wanted = {n: t.their_shape(shapes[t.ours]) for t in table for n in t.their_names(shapes[t.ours])}
  names, base = {*wanted, *(n for t in table for n in t.also)}, table[0].theirs.split(".")[0]
  stored = [s for s in _stored(folder, hf) if not BUFFERS.fullmatch(s.name)]
  found = _one_of_each({_canonical(s.name, names, base): s for s in stored}, table, wanted)
  fresh = _fresh(table, found, c, same)
  # Tied embeddings may be stored once more, as the scores of a language model.
  others = HEADS if c.head is not None else TIED if c.tied else None
  dropped = {n for n in found if n not in wanted and others and others.fullmatch(n)}
  dropped |= fresh.keys() & found
  found = {name: s for name, s in found.items() if name not in dropped}
  optional = {t.theirs for t in table if t.default is not None} - found.keys()
  _refuse(found, {n: shape for n, shape in wanted.items() if n not in fresh and n not in optional})
  return Plan(found, tuple(sorted(fresh.values())), tuple(sorted(dropped)))


def has_own_head(folder: Path, untied: list[Tensor], hf: dict) -> bool:
  """Says whether the language model's head in a folder is another than its embeddings.

  transformers scores by it then, though config.json says that both are the same.

  Args:
    untied: the family's table for a model with such a head.
  """
  names, base = {row.theirs for row in untied}, untied[0].theirs.split(".")[0]
  ours = {row.theirs: row.ours for row in untied}
  stored = {ours.get(_canonical(s.name, names, base)): s for s in _stored(folder, hf)}
  pair = stored.get("embed/embedding"), stored.get("head/kernel")
  return None not in pair and not np.array_equal(*map(_tensor, pair))


def _canonical(name: str, names: set[str], base: str) -> str:
  """Returns the name in the table: with the model's prefix, and norms as they are called now."""
  name = re.sub(r"\.gamma$", ".weight", re.sub(r"\.beta$", ".bias", name))
  candidates = (name, f"{base}.{name}", f"{base}.{name.partition('.')[2]}")
  return next((n for n in candidates if n in names), name)


def _one_of_each(found: dict[str, Stored], table: list[Tensor], wanted) -> dict[str, Stored]:
  """Takes a tensor under any of its names, and leaves its copies out."""
  found = dict(found)
  for row in table:
    names = [n for n in (row.theirs, *row.also) if n in found]
    for copy in names:
      if copy not in wanted and not np.array_equal(_tensor(found[names[0]]), _tensor(found[copy])):
        raise UserError(
          f"{copy} differs from {names[0]}, though the config.json says that they are the same"
        )
    found |= {row.theirs: found[names[0]]} if names else {}
    found = {n: s for n, s in found.items() if n in wanted or n not in names}
  return found


def _fresh(table: list[Tensor], found: dict, c: Config, same: bool) -> dict[str, str]:
  """Maps the tensors of the head that the folder lacks to our paths.

  A layer of the head is fresh as a whole: where only its bias is missing, the file is damaged. The
  scores of another kind of head are not taken for ours, though they may have their name.
  """
  modules: dict[str, list[Tensor]] = {}
  for row in table:
    if c.head is not None and is_head(row.ours):
      modules.setdefault(row.ours.rpartition("/")[0], []).append(row)
  fresh = {}
  for module, rows in modules.items():
    stored = any(row.theirs in found for row in rows) and (same or module != "head/out")
    fresh |= {} if stored else {row.theirs: row.ours for row in rows}
  return fresh


def _tensor(stored: Stored) -> np.ndarray:
  # Reopened each time: the pages a mapped file has touched count as memory until it closes.
  with safe_open(stored.file, "numpy") as file:
    return file.get_tensor(stored.name)


def _refuse(found: dict[str, Stored], wanted: dict[str, tuple[int, ...]]) -> None:
  missing, extra = sorted(wanted.keys() - found), sorted(found.keys() - wanted)
  wrong = [
    f"{n} {found[n].shape}, expected {wanted[n]}"
    for n in sorted(wanted)
    if n in found and found[n].shape != wanted[n]
  ]
  for label, names in (("missing", missing), ("unexpected", extra), ("misshaped", wrong)):
    if names:
      more = f" and {len(names) - 5} more" if len(names) > 5 else ""
      raise UserError(f"{len(names)} {label} tensors: {'; '.join(names[:5])}{more}")


def check_memory(shapes: Any) -> None:
  """Refuses weights that cannot be: larger than all memory of the machine and its devices."""
  needed = sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(shapes))
  limits = [(device.memory_stats() or {}).get("bytes_limit", 0) for device in jax.local_devices()]
  memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") + sum(limits)
  if needed > memory:
    raise UserError(
      f"the model's weights take {needed / 2**30:,.0f} GiB, more than this machine's memory of "
      f"{memory / 2**30:,.0f} GiB; is its config.json right?"
    )


def read(made: Plan, table: list[Tensor], shapes: Any, c: Config, deviation: float, seed: int):
  """Fills our stacked arrays one tensor at a time: host memory stays near the weights' own.

  Kernels that are to be quantised are so one by one, from fp32.

  Fresh kernels are drawn from N(0, deviation^2), biases are 0 and the scales of norms 1.
  """
  shapes = {path: leaf.shape for path, leaf in tree.flatten(shapes).items()}
  params = {}
  for row in tqdm(table, desc="loading", unit="tensor", leave=False, disable=None):
    chosen = c.quantize and quantize.quantises(row.ours, shapes[row.ours])
    array = _aligned(shapes[row.ours], np.float32 if chosen else c.dtype)
    if row.ours in made.fresh:
      array[...] = _drawn(row.ours, array.shape, deviation, seed)
    elif row.default is not None and row.theirs not in made.found:
      array[...] = row.default
    else:
      array[: row.first] = 1
      for name, index in row.their_names(shapes[row.ours]).items():
        array[index][...] = row.read(_tensor(made.found[name]))
    leaf = jax.device_put(array, may_alias=True)
    params[row.ours] = quantize.store(row.ours, leaf, c.quantize)
  return tree.unflatten(params)


def _drawn(path: str, shape: tuple[int, ...], deviation: float, seed: int):
  """Draws a leaf by its path: the same whatever else is drawn."""
  if not path.endswith("/kernel"):
    return np.full(shape, float(path.endswith("/scale")))
  return deviation * np.random.default_rng([seed, zlib.crc32(path.encode())]).normal(size=shape)


def _aligned(shape, dtype) -> np.ndarray:
  """Allocates an array that jax on a CPU can take over without a copy (64-byte aligned)."""
  size = int(np.prod(shape)) * np.dtype(dtype).itemsize
  raw = np.empty(size + 64, np.uint8)
  start = -raw.ctypes.data % 64
  return raw[start : start + size].view(dtype).reshape(shape)


def _shards(folder: Path) -> list[str]:
  """Lists the names of the files that hold the weights."""
  index = folder / "model.safetensors.index.json"
  if not index.exists():
    return ["model.safetensors"]
  found = schema.read_json(index)
  schema.check(str(index), found, Index)
  shards = sorted(set(found["weight_map"].values()))
  for shard in shards:
    if Path(shard).name != shard or not shard.endswith(".safetensors"):
      raise UserError(f"{index} names {shard!r}: outside its folder, or no safetensors file")
  return shards


def _stored(folder: Path, hf: dict) -> list[Stored]:
  """Lists every tensor, from the safetensors headers."""
  found = []
  for shard in _shards(folder):
    path = folder / shard
    if not path.is_file():
      hint = f"; it holds .bin weights only: {_conversion(folder, hf)}" if _bins(folder) else ""
      raise UserError(f"{folder} lacks {shard}{hint}")
    try:
      with safe_open(path, "numpy") as file:
        headers = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        kinds = {name: header.get_dtype() for name, header in headers.items()}
        found += [Stored(path, name, tuple(h.get_shape())) for name, h in headers.items()]
    except (OSError, SafetensorError) as error:
      raise UserError(f"{path} is damaged or truncated: {error}") from error
    for name, kind in kinds.items():
      if kind not in FILE_DTYPES and not BUFFERS.fullmatch(name):
        raise UserError(
          f"{name} in {path} is stored as {kind}; expected unquantised weights, one of "
          f"{', '.join(FILE_DTYPES)}"
        )
  return found


def _bins(folder: Path) -> bool:
  return any(folder.glob("*.bin")) or (folder / "pytorch_model.bin.index.json").exists()


def _conversion(folder: Path, hf: dict) -> str:
  """Names the command that stores a folder's weights as safetensors."""
  architecture = str((hf.get("architectures") or [""])[0])
  auto = "AutoModel" + next((x for end, x in AUTO.items() if architecture.endswith(end)), "")
  return (
    f'python -c "from transformers import {auto}; '
    f"{auto}.from_pretrained('{folder}').save_pretrained('{folder}')\""
  )
