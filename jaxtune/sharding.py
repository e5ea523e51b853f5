"""Puts arrays on devices and compiles a step: for one device, for a mesh under jit, or for pmap."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxtune import hosts
from jaxtune.errors import UserError
from jaxtune.schema import Count

AXES = ("trial", "data", "fsdp", "sequence", "tensor")
Kind = Literal["jit", "pmap"]
ROWS = ("data", "fsdp")  # the axes that split a batch's rows
TOKENS = (ROWS, "sequence")  # those that split activations (B, T, ...)
Sizes = dict[Literal[*AXES], Literal[-1] | Count]  # -1 stands for all devices that are left
BY_SIZE = ("by size",)  # in place of the axes of a rule; see `_by_size`
LARGE = 2**23  # bytes of an array that are worth its being split

# The first rule that matches a path splits the last axes of its leaf; other axes stay whole.
RULES = (
  (r"(q_proj|k_proj|v_proj|gate_proj|up_proj|head)/kernel(/int8|/nf4)?$", ("fsdp", "tensor")),
  (r"(o_proj|down_proj)/kernel(/int8|/nf4)?$", ("tensor", "fsdp")),
  (r"kernel/scale(_step|_mean)?$", ()),
  (r"(q_proj|k_proj|v_proj|gate_proj|up_proj)/bias$", ("tensor",)),
  (r"(o_proj|down_proj)/bias$", ()),
  (r"relative/embedding$", ()),
  (r"embedding$", ("tensor", "fsdp")),
  (r"logit_bias$", ("tensor",)),
  (r"norm/(scale|bias)$", ()),
  (r"(head/(dense|out)|pooler/dense)/kernel$", ("fsdp", "tensor")),
  (r"(head/(dense|out)|pooler/dense)/bias$", ()),
  (r"head/bias$", ("tensor",)),
  (r"(^|/)peft/", BY_SIZE),  # the arrays of methods, and their optimizer moments
  (r"(^|/)(hyper|numbers)/", ()),
  (r"(^|/)(step|seed|count|untuned|sums/\w+|best|best_step|stale|stopped|exited|losses)$", ()),
)


class Parallel(NamedTuple):
  """Describes how a run is spread over its devices.

  Attributes:
    kind: "jit" or "pmap".
    mesh: with the axes AXES; None for a single device under "jit".
    devices: the number of devices.
  """

  kind: str
  mesh: Mesh | None
  devices: int

  @property
  def batch_shards(self) -> int:
    """Returns the number of shards into which the examples of a batch are split."""
    return 1 if self.mesh is None else self.mesh.shape["data"] * self.mesh.shape["fsdp"]

  @property
  def trial_shards(self) -> int:
    """Returns the number of shards into which the trials of a group are split."""
    return 1 if self.mesh is None else self.mesh.shape["trial"]

  def compile(self, function: Callable, donate: bool = False) -> Callable:
    """Compiles function(trials, shared, batch, axis=None).

    Args:
      function: takes a batch with leaves (E, A, B, ...). Under pmap it gets a shard of the batch,
        and must sum its results over the devices by the name `axis`.
      donate: whether the function is a training step, whose first result has the memory and the
        shardings of the first argument (under "jit" alone). Others are whole on every device.
    """
    if self.kind == "jit" and not donate:
      whole = None if self.mesh is None else NamedSharding(self.mesh, P())
      return jax.jit(self.within(function), out_shardings=whole)
    if self.kind == "jit":
      return jax.jit(self.within(lambda *args: self._stay(*function(*args))), donate_argnums=0)
    mapped = jax.pmap(
      lambda trials, shared, batch: function(trials, shared, batch, axis="data"), "data",
      in_axes=(None, None, 0), out_axes=None, devices=list(self.mesh.devices.flat),
    )  # fmt: skip
    run = lambda trials, shared, batch: mapped(trials, shared, self.split(batch))
    return functools.wraps(mapped)(run)  # with its attribute `lower`

  def within(self, function: Callable) -> Callable:
    """Returns a function that is traced under the mesh, so that `constrain` knows its axes."""

    def run(*args: Any) -> Any:
      with jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh):
        return function(*args)

    return function if self.mesh is None else run

  def _stay(self, state: Any, *others: Any) -> tuple:
    """Fixes the shardings of a step's state; if XLA changed them, step 2 would compile again."""
    if self.mesh is None:
      return state, *others
    return jax.lax.with_sharding_constraint(state, shardings(self.mesh, state, "trial")), *others

  def split(self, batch: Any) -> Any:
    """Turns leaves (E, A, B, ...) into (devices, E, A, B / devices, ...), as pmap expects them."""

    def split(x: Any) -> Any:
      shards = x.reshape(*x.shape[:2], self.devices, -1, *x.shape[3:])
      return shards.transpose(2, 0, 1, *range(3, shards.ndim))

    return jax.tree.map(split, batch)

  def outline(self, tree: Any, first: str | None = None) -> Any:
    """Returns the shapes of arrays, with their places by RULES, to compile a program from."""
    place = lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at)
    return jax.tree.map(place, tree, shardings(self.mesh, tree, first))

  def put(self, tree: Any, first: str | None = None) -> Any:
    """Puts arrays on their devices by RULES; `first` is "trial" for arrays of stacked trials."""
    if self.mesh is None:
      return tree
    return jax.tree.map(hosts.put, tree, shardings(self.mesh, tree, first))

  def put_batch(self, batch: Any) -> Any:
    """Puts a batch (E, A, B, ...) on its devices; see `spread`. For pmap it stays as it is."""
    part = lambda trials, rows: {name: x[trials, :, rows] for name, x in batch.items()}
    return self.spread(next(iter(batch.values())).shape[:3], part)

  def spread(self, shape: tuple[int, int, int], make: Callable[[slice, slice], dict]) -> dict:
    """Makes a batch (E, A, B, ...) on its devices: E over "trial", B over "data" and "fsdp".

    E stays whole if it is no multiple of its axis. For pmap the batch is whole, and in numpy.

    Args:
      shape: (E, A, B).
      make: (trials, rows) -> that part of the batch; each process makes those of its devices.
    """
    if self.mesh is None or self.kind == "pmap":
      batch = make(slice(None), slice(None))
      return batch if self.mesh else jax.device_put(batch)
    at = self.batch_sharding(shape[0])
    key = lambda index: (index[0].start, index[2].start)
    mine = {key(index): index for index in at.addressable_devices_indices_map(shape).values()}
    parts = {start: make(index[0], index[2]) for start, index in mine.items()}
    place = lambda name, x: jax.make_array_from_callback(
      (*shape, *x.shape[3:]), at, lambda index: parts[key(index)][name]
    )
    return {name: place(name, x) for name, x in next(iter(parts.values())).items()}

  def batch_sharding(self, trials: int) -> NamedSharding:
    """Returns the sharding of a batch (E, A, B, ...) of E trials."""
    return NamedSharding(self.mesh, P(None if trials % self.trial_shards else "trial", None, ROWS))


ALONE = Parallel("jit", None, 1)  # one device


def make(
  kind: Kind = "jit", mesh: Sizes | None = None, devices: Sequence[Any] | None = None
) -> Parallel:
  """Arranges the devices.

  Args:
    kind: "jit" (any mesh) or "pmap" (data parallel over all local devices).
    mesh: sizes of the axes, such as {"data": 2, "fsdp": 4}; by default all are on the axis "data".
      "sequence" splits the tokens of each row. One size may be -1, for all devices that are left.
      If fewer are needed than there are, the first ones are used: {"data": 1} is one device.
    devices: those to use; default all of this process's backend.

  Raises:
    UserError: for sizes that do not fit the number of devices.
  """
  if kind == "pmap":
    if mesh:
      raise UserError("train.mesh is for parallel='jit'; pmap is data parallel over all devices")
    if jax.distributed.is_initialized():
      raise UserError("train.parallel is 'pmap', expected 'jit' for a run of several processes")
    devices = devices or jax.local_devices()
    sizes = dict.fromkeys(AXES, 1) | {"data": len(devices)}
  else:
    devices = devices or jax.devices()
    sizes = _sizes(mesh or {"data": -1}, len(devices))
  total = math.prod(sizes.values())
  if total == 1 and kind == "jit":
    return ALONE
  shape, devices = tuple(sizes.values()), devices[:total]
  try:  # those that exchange most are near to each other
    layout = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
  except AssertionError:  # a part of a TPU's slice that is no cuboid stays in its order
    layout = np.asarray(devices).reshape(shape)
  types = (AxisType.Auto,) * len(AXES)  # pmap does not work with the default, Explicit
  return Parallel(kind, Mesh(layout, AXES, axis_types=types), total)


def _sizes(mesh: dict, count: int) -> dict[str, int]:
  """Completes the sizes of the mesh's axes, and checks that they fit `count` devices."""
  sizes = dict.fromkeys(AXES, 1) | mesh
  open_axes = [axis for axis, size in sizes.items() if size == -1]
  if len(open_axes) > 1:
    raise UserError(f"train.mesh has -1 for {' and '.join(open_axes)}; expected one -1 at most")
  known = math.prod(size for size in sizes.values() if size > 0)
  sizes |= dict.fromkeys(open_axes, max(count // known, 1))
  total = math.prod(sizes.values())
  if total > count or ((open_axes or jax.process_count() > 1) and total != count):
    needs = f"a multiple of {known}" if open_axes else total
    raise UserError(f"train.mesh is {mesh}; the number of devices is {count}, expected {needs}")
  return sizes


def shardings(mesh: Mesh, tree: Any, first: str | None = None) -> Any:
  """Returns the sharding of every leaf by RULES, with axis 0 over the mesh axis `first`.

  An axis whose size is no multiple of its mesh axis stays whole: a vocabulary of 50,257, say.

  Raises:
    UserError: if no rule covers some leaves, with their names.
  """
  uncovered = []

  def sharding(path: tuple, leaf: Any) -> NamedSharding:
    rule = _rule(path)
    if rule is None:
      uncovered.append(jax.tree_util.keystr(path, simple=True, separator="/"))
      rule = ()
    rule = _by_size(leaf.shape[1:] if first else leaf.shape) if rule == BY_SIZE else rule
    spec = [None] * (leaf.ndim - len(rule)) + list(rule)
    if first and leaf.ndim:
      spec[0] = first
    unsplit = lambda axis, size: axis is None or size % mesh.shape[axis]
    spec = [None if unsplit(a, n) else a for a, n in zip(spec, leaf.shape, strict=True)]
    return NamedSharding(mesh, P(*spec))

  by_leaf = jax.tree_util.tree_map_with_path(sharding, tree)
  if uncovered:
    raise UserError(f"no sharding rule covers {', '.join(uncovered)}")
  return by_leaf


def constrain(x: jax.Array, *axes: Any) -> jax.Array:
  """Splits an activation's axes over those of the mesh; returns it as it is outside of a mesh."""
  return x if _mesh() is None else jax.lax.with_sharding_constraint(x, P(*axes))


def size(*axes: str) -> int:
  """Returns into how many parts axes of the mesh split an array; 1 outside of a mesh."""
  return 1 if _mesh() is None else math.prod(_mesh().shape[axis] for axis in axes)


def splits(count: int, *axes: str) -> bool:
  """Says whether axes of the mesh divide a number; true outside of a mesh."""
  return count % size(*axes) == 0


def over_shards(function: Callable, inputs: tuple, output: P) -> Callable:
  """Calls a function on each device's shards, which a kernel needs: jax cannot split one by itself.

  Args:
    inputs, output: the axes of the mesh that split each argument and the result.
  """
  if _mesh() is None:
    return function
  return jax.shard_map(function, in_specs=inputs, out_specs=output, check_vma=False)


def gathers() -> bool:
  """Says whether the function that is traced runs on a mesh that splits weights by "fsdp"."""
  return size("fsdp") > 1


def gathered(params: Any) -> Any:
  """Gathers the parts of weights that are split by "fsdp"; "tensor" goes on to split them."""

  def gather(path: tuple, leaf: jax.Array) -> jax.Array:
    spec = [None if axis == "fsdp" else axis for axis in _rule(path) or ()]
    return constrain(leaf, *[None] * (leaf.ndim - len(spec)), *spec)

  return jax.tree_util.tree_map_with_path(gather, params) if gathers() else params


def _mesh() -> AbstractMesh | None:
  """Returns the mesh that `Parallel.compile` traces a function for; None without one."""
  mesh = jax.sharding.get_abstract_mesh()
  return mesh if mesh.axis_names == AXES else None


def _rule(path: tuple) -> tuple | None:
  """Returns the mesh axes that split the last axes of a leaf; None if no rule covers it."""
  name = jax.tree_util.keystr(path, simple=True, separator="/")
  return next((axes for pattern, axes in RULES if re.search(pattern, name)), None)


def _by_size(shape: tuple[int, ...]) -> tuple:
  """Returns the axes that split a method's array: of a large one, the longer of its last two."""
  if len(shape) < 2 or 4 * math.prod(shape) < LARGE:
    return ()
  return ("fsdp", None) if shape[-2] > shape[-1] else (None, "fsdp")
