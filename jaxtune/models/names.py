"""Maps the paths of our parameters to the tensor names of a Hugging Face folder.

In this file and in those of families, "ours" is an array of our tree and "theirs" a tensor there.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from jaxtune.models.config import Config

EMBEDDINGS = ("embed", "types", "positions", "relative")  # modules whose leaf is called "embedding"


class Part(NamedTuple):
  """Describes which columns of a fused tensor's last axis are ours.

  The axis consists of `heads` groups of `total` columns; ours are `size` columns of each group,
  from `start` on. Modules stored one after another, and not head by head, form a single group.
  """

  start: int
  size: int
  total: int
  heads: int = 1

  @property
  def columns(self) -> slice | np.ndarray:
    """Returns the index of our columns in theirs, as a slice if they are contiguous."""
    if self.heads == 1:
      return slice(self.start, self.start + self.size)
    firsts = np.arange(self.heads)[:, None] * self.total + self.start
    return (firsts + np.arange(self.size)[None]).ravel()


class Tensor(NamedTuple):
  """Describes one weight: a row of a family's table.

  Attributes:
    ours: path in our tree, such as "trunk/layers/attn/q_proj/kernel".
    theirs: tensor name; "{}" stands for the layer, and means that ours is stacked over layers.
    transpose: whether theirs is (outputs, inputs), while ours is (inputs, outputs).
    part: which columns of theirs are ours, if theirs is fused.
    first: the first layer that has this weight; our array is not read at those before.
    also: other names under which a folder may hold it, instead of `theirs` or as copies.
    default: the value that fills ours if a folder lacks it; None: it must be there.
  """

  ours: str
  theirs: str
  transpose: bool = False
  part: Part | None = None
  first: int = 0
  also: tuple[str, ...] = ()
  default: float | None = None

  @property
  def stacked(self) -> bool:
    return "{}" in self.theirs

  def their_names(self, shape: tuple[int, ...]) -> dict[str, Any]:
    """Returns {name of a tensor: its index in ours}, given the shape of ours."""
    if not self.stacked:
      return {self.theirs: ...}
    return {self.theirs.format(i): i for i in range(self.first, shape[0])}

  def their_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the shape of each of their tensors, given the shape of ours."""
    shape = tuple(shape[1:] if self.stacked else shape)
    if self.part:
      shape = (*shape[:-1], self.part.total * self.part.heads)
    return shape[::-1] if self.transpose else shape

  def read(self, theirs: np.ndarray) -> np.ndarray:
    """Returns our values in one of their tensors, as a view if our columns are contiguous."""
    theirs = theirs.T if self.transpose else theirs
    return theirs[..., self.part.columns] if self.part else theirs

  def write(self, array: np.ndarray, theirs: np.ndarray) -> None:
    """Writes our values of one layer into one of their tensors, in place."""
    theirs = theirs.T if self.transpose else theirs
    theirs[..., self.part.columns if self.part else slice(None)] = array


def tensors(
  c: Config,
  modules: dict[str, str],
  ours: str = "",
  theirs: str = "",
  *,
  transpose: bool = True,
  by_head: bool = False,
) -> list[Tensor]:
  """Lists the weight of every module, and its bias where the model has one.

  Modules that share a name in the folder are fused: one tensor holds the columns of all of them.

  Args:
    modules: {path in our tree: name in the folder}, without the prefixes `ours` and `theirs`.
    ours, theirs: the prefixes of all paths and of all names.
    transpose: whether the folder stores linear layers as (outputs, inputs).
    by_head: whether fused modules alternate head by head (GPT-NeoX), or follow one another.
  """
  rows = []
  for path, name in modules.items():
    module = path.rpartition("/")[2]
    fused = [p.rpartition("/")[2] for p, other in modules.items() if other == name]
    part = _part(c, module, fused, c.heads if by_head else 1) if len(fused) > 1 else None
    leaf = "embedding" if module in EMBEDDINGS else "scale" if module.endswith("norm") else "kernel"
    swapped = transpose and leaf == "kernel"
    rows.append(Tensor(f"{ours}{path}/{leaf}", f"{theirs}{name}.weight", swapped, part))
    if _has_bias(c, path):
      rows.append(Tensor(f"{ours}{path}/bias", f"{theirs}{name}.bias", part=part))
  return rows


def _part(c: Config, module: str, fused: list[str], heads: int) -> Part:
  """Returns a module's columns among those of all the modules that it is fused with, in order."""
  kv_outputs = c.kv_heads * c.head_size
  outputs = {"q_proj": c.heads * c.head_size, "k_proj": kv_outputs, "v_proj": kv_outputs}
  sizes = [outputs.get(name, c.ffn) // heads for name in fused]
  i = fused.index(module)
  return Part(sum(sizes[:i]), sizes[i], sum(sizes), heads)


def _has_bias(c: Config, path: str) -> bool:
  """Says whether a module has a bias in models of this configuration."""
  group, _, module = path.rpartition("/")
  if module in ("q_norm", "k_norm"):
    return False
  if module.endswith("norm"):
    return c.centre_norm and c.norm_bias
  if group in ("head", "pooler"):
    return {"head/dense": c.head.hidden_bias, "head/out": c.head.bias}.get(path, True)
  attention = {"q_proj": c.qkv_bias, "k_proj": c.qkv_bias, "v_proj": c.qkv_bias, "o_proj": c.o_bias}
  return attention.get(module, module.endswith("_proj") and c.ffn_bias)
