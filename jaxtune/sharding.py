"""Where arrays live and how a step is compiled: one device, a mesh under jit, or pmap."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxtune.errors import UserError
from jaxtune.schema import Count

AXES = ("trial", "data", "fsdp", "tensor")
Kind = Literal["jit", "pmap"]
Sizes = dict[Literal[*AXES], Literal[-1] | Count]  # -1 is for all devices that are left

# The first rule that matches a path splits its last axes; leading axes (layers) stay whole.
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
  (r"(^|/)(peft|hyper|numbers)/", ()),  # whatever a method trains or fixes, and its moments
  (r"(^|/)(step|seed|count|untuned|sums/\w+|best|best_step|stale|stopped)$", ()),
)


class Parallel(NamedTuple):
  """How this run spreads over its devices.

  Attributes:
    kind: "jit" or "pmap".
    mesh: of the axes trial, data, fsdp and tensor; None on a single device.
    devices: how many.
  """

  kind: str
  mesh: Mesh | None
  devices: int

  @property
  def parts(self) -> int:
    """Into how many parts the examples of a batch are split."""
    return 1 if self.mesh is None else self.mesh.shape["data"] * self.mesh.shape["fsdp"]

  def compile(self, function: Callable, donate: bool = False) -> Callable:
    """Compiles function(trials, shared, batch, axis=None); `batch` leaves are (E, A, B, ...).

    Sums must be reduced over `axis` by the function itself. With `donate` it is a step, whose first
    result takes the place of the first argument's first part and stays where that was.
    """
    if self.kind == "jit" and not donate:
      return jax.jit(function)
    if self.kind == "jit":
      return jax.jit(lambda *args: self._stay(*function(*args)), donate_argnums=0)
    mapped = jax.pmap(
      lambda trials, shared, batch: function(trials, shared, batch, axis="data"),
      axis_name="data",
      in_axes=(None, None, 0),
      out_axes=None,
    )
    return lambda trials, shared, batch: mapped(trials, shared, self._split(batch))

  def _stay(self, state, *others):
    """Keeps a step's state where it was: left to XLA, the second step would be compiled anew."""
    if self.mesh is None:
      return state, *others
    return jax.lax.with_sharding_constraint(state, shardings(self.mesh, state, "trial")), *others

  def _split(self, batch):
    def split(x):
      parts = x.reshape(*x.shape[:2], self.devices, -1, *x.shape[3:])
      return parts.transpose(2, 0, 1, *range(3, parts.ndim))

    return jax.tree.map(split, batch)

  def put_shared(self, tree: Any) -> Any:
    """Places the base by the rules."""
    return tree if self.mesh is None else jax.device_put(tree, shardings(self.mesh, tree))

  def put_trials(self, tree: Any) -> Any:
    """Places stacked trials: by the rules, the first axis over "trial"."""
    return tree if self.mesh is None else jax.device_put(tree, shardings(self.mesh, tree, "trial"))

  def put_batch(self, batch: Any) -> Any:
    """Places a batch (E, A, B, ...): trials over "trial", examples over "data" and "fsdp"."""
    if self.mesh is None or self.kind == "pmap":
      return batch
    count = jax.tree.leaves(batch)[0].shape[0]
    trial = None if count % self.mesh.shape["trial"] else "trial"
    return jax.device_put(batch, NamedSharding(self.mesh, P(trial, None, ("data", "fsdp"))))


def make(kind: Kind = "jit", mesh: Sizes | None = None) -> Parallel:
  """Lays out the devices.

  Args:
    kind: "jit" (any mesh) or "pmap" (data parallel over all local devices).
    mesh: sizes of the axes, such as {"data": 2, "fsdp": 4}; the default is all data. One size may
      be -1, for all devices that are left. Where the sizes need fewer devices than there are, the
      first ones are used, as in `jax.make_mesh`: {"data": 1} is a single device.

  Raises:
    UserError: for sizes that the devices cannot fill.
  """
  count = jax.device_count()
  if kind == "pmap":
    if mesh:
      raise UserError("train.mesh is for parallel='jit'; pmap is data parallel over all devices")
    devices = jax.local_devices()
    sizes = dict.fromkeys(AXES, 1) | {"data": len(devices)}
  else:
    devices, sizes = jax.devices(), _sizes(mesh or {"data": -1}, count)
  total = math.prod(sizes.values())
  if total == 1 and kind == "jit":
    return Parallel(kind, None, 1)
  types = (AxisType.Auto,) * len(AXES)  # make_mesh's own default, Explicit, is not for pmap
  layout = jax.make_mesh(tuple(sizes.values()), AXES, types, devices=devices[:total])
  return Parallel(kind, layout, total)


def _sizes(mesh: dict, count: int) -> dict[str, int]:
  """Compares the sizes of the mesh's axes with `count` devices, and fills in the missing ones."""
  sizes = dict.fromkeys(AXES, 1) | mesh
  open_axes = [axis for axis, size in sizes.items() if size == -1]
  if len(open_axes) > 1:
    raise UserError(f"train.mesh has -1 for {' and '.join(open_axes)}; expected one -1 at most")
  known = math.prod(size for size in sizes.values() if size > 0)
  sizes |= dict.fromkeys(open_axes, max(count // known, 1))
  total = math.prod(sizes.values())
  all_of_them = open_axes or jax.process_count() > 1
  if total > count or (all_of_them and total != count):
    needs = f"a multiple of {known}" if open_axes else total
    raise UserError(f"train.mesh {mesh} needs {needs} devices, but there are {count}")
  return sizes


def shardings(mesh: Mesh, tree: Any, first: str | None = None) -> Any:
  """Gives every leaf its sharding by RULES, with axis 0 over `first`.

  An axis that does not divide by its mesh axis stays whole (a vocabulary of 50,257, say).

  Raises:
    UserError: naming the leaves that no rule covers.
  """
  uncovered = []

  def place(path, leaf):
    name = "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)
    rule = next((axes for pattern, axes in RULES if re.search(pattern, name)), None)
    if rule is None:
      uncovered.append(name)
      rule = ()
    leading = leaf.ndim - len(rule)
    spec = [None] * leading + list(rule)
    if first and leaf.ndim:
      spec[0] = first
    whole = lambda axis, size: axis is None or size % mesh.shape[axis]
    spec = [None if whole(a, n) else a for a, n in zip(spec, leaf.shape, strict=True)]
    return NamedSharding(mesh, P(*spec))

  placed = jax.tree_util.tree_map_with_path(place, tree)
  if uncovered:
    raise UserError(f"no sharding rule covers {', '.join(uncovered)}")
  return placed


def over(function: Callable, chunk: int) -> Callable:
  """Maps function(trial, shared, batch) over the first axis of trial and batch.

  Args:
    function: of one trial's arrays, the arrays that all trials share, and one trial's batch.
    chunk: how many trials run side by side, as one vmap; the chunks follow one another in a loop of
      the same program. 1 suits a CPU, as many as fit suit an accelerator.
  """

  def run(trials, shared, batches):
    count = jax.tree.leaves(trials)[0].shape[0]
    if count == 1:
      squeeze = lambda x: jax.tree.map(lambda leaf: leaf[0], x)
      out = function(squeeze(trials), shared, squeeze(batches))
      return jax.tree.map(lambda leaf: leaf[None], out)
    one = lambda pair: function(pair[0], shared, pair[1])
    if chunk >= count:
      return jax.vmap(one)((trials, batches))
    return jax.lax.map(one, (trials, batches), batch_size=chunk if chunk > 1 else None)

  return run
