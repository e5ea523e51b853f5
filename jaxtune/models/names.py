"""The table between our parameter paths and the tensor names of a Hugging Face folder."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from jaxtune.models.config import Config

EMBEDDINGS = ("embed", "types", "positions", "relative")  # modules whose leaf is a table of rows


class Part(NamedTuple):
  """Where ours lies in the last axis of a fused tensor.

  The axis is `heads` groups of `total` columns each; ours are `size` columns of every group, from
  `start` on. Parts that follow one another are one group.
  """

  start: int
  size: int
  total: int
  heads: int = 1

  @property
  def columns(self):
    """The index of our columns in theirs: a slice where they are together."""
    if self.heads == 1:
      return slice(self.start, self.start + self.size)
    firsts = np.arange(self.heads)[:, None] * self.total + self.start
    return (firsts + np.arange(self.size)[None]).ravel()


class Tensor(NamedTuple):
  """One row of a family's table.

  Attributes:
    ours: path in our tree, such as "trunk/layers/attn/q_proj/kernel".
    theirs: tensor name; "{}" stands for the layer, and means that ours is stacked over layers.
    transpose: whether theirs is (outputs, inputs) where ours is (inputs, outputs).
    part: which columns of theirs ours are, where theirs is fused.
    first: the first layer that has it; what ours holds of those before is never read.
    also: other names under which a folder may hold it, in its place or beside it as copies.
    default: what ours is filled with where a folder lacks it; None: it must be there.
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

  def their_names(self, shape: tuple[int, ...]) -> dict:
    """Maps their tensors, one a layer, to their index in ours, whose shape is given."""
    if not self.stacked:
      return {self.theirs: ...}
    return {self.theirs.format(i): i for i in range(self.first, shape[0])}

  def their_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the shape of one of their tensors, given the shape of ours."""
    shape = tuple(shape[1:] if self.stacked else shape)
    if self.part:
      shape = (*shape[:-1], self.part.total * self.part.heads)
    return shape[::-1] if self.transpose else shape

  def read(self, array):
    """Returns ours of one of their tensors, as a view where its columns are together."""
    array = array.T if self.transpose else array
    return array[..., self.part.columns] if self.part else array

  def write(self, array, theirs):
    """Writes ours into one of their tensors, in place."""
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

  Modules that share a name in the folder are fused: their columns follow one another in one tensor.

  Args:
    modules: {path in our tree: name in the folder}, each without what it begins with.
    ours, theirs: what all paths and all names begin with.
    transpose: whether the folder has linear layers as (outputs, inputs).
    by_head: whether a fused tensor has the columns of all modules head by head (GPT-NeoX).
  """
  rows = []
  for path, name in modules.items():
    module = path.rpartition("/")[2]
    fused = [p.rpartition("/")[2] for p, other in modules.items() if other == name]
    part = _part(c, module, fused, c.heads if by_head else 1) if len(fused) > 1 else None
    leaf = "embedding" if module in EMBEDDINGS else "scale" if module.endswith("norm") else "kernel"
    turned = transpose and leaf == "kernel"
    rows.append(Tensor(f"{ours}{path}/{leaf}", f"{theirs}{name}.weight", turned, part))
    if _has_bias(c, path):
      rows.append(Tensor(f"{ours}{path}/bias", f"{theirs}{name}.bias", part=part))
  return rows


def _part(c: Config, module: str, fused: list[str], heads: int) -> Part:
  """Finds a module's columns among those of the modules that it is fused with."""
  few = c.kv_heads * c.head_size
  outputs = {"q_proj": c.heads * c.head_size, "k_proj": few, "v_proj": few}
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
