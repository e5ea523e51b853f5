"""Finds how much of a group fits a device, and the settings with which it would fit."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax

from jaxtune import peft
from jaxtune.errors import UserError
from jaxtune.models import quantize
from jaxtune.preflight import devices, lowered
from jaxtune.preflight.devices import Device
from jaxtune.preflight.lowered import Outline
from jaxtune.runs import costs

SHARE = 0.75  # of a GPU's memory, which jax takes by default
MOST = 64  # trials, or rows of a batch: for more of them nothing is compiled
FEW_TOKENS = 128  # whose logits are computed together


def room(device: Device | None = None) -> float:
  """Returns the bytes of a device for which a run chooses its chunk and what it computes twice.

  They are nine tenths of what jax takes: of a named GPU the share XLA_PYTHON_CLIENT_MEM_FRACTION,
  by default SHARE, of another named device all of its memory. Without a name, they are those of
  this process's device; infinite where that does not say.
  """
  if device is None:
    return 0.9 * (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit", math.inf)
  share = float(os.environ.get("XLA_PYTHON_CLIENT_MEM_FRACTION") or SHARE)
  return 0.9 * device.memory * (share if device.gpu else 1)


def side_by_side(group: Outline) -> int:
  """Returns the most trials that each device can compute together: its share of the places."""
  count = len(group.trials)
  places = group.trials[0].config["search"]["places"] or count
  return -(-min(places, count) // group.parallel.trial_shards)


def bytes_of(group: Outline, shapes: Any, first: str | None = None) -> int:
  """Returns the bytes that arrays have on each device; `first` as for `Parallel.outline`."""
  if group.parallel.mesh is None:
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(shapes))
  return costs.bytes_on_device(group.parallel.outline(shapes, first))


def held(group: Outline, kind: str, trials: int) -> int:
  """Returns the bytes on each device of what so many trials hold beside a program's arguments.

  These are the best weights so far, the base's own of those that are trained in place, and, while
  they do not train, their moments.

  Args:
    kind: of the program, a key of `lowered.LOWER`.
  """
  states = lowered.resized(group.states, trials)
  moments = () if kind == "training step" else states.optimizer
  first = group.trials[0]
  moved, _ = peft.split(first.methods, first.pretrained.params)
  own = {"tuned": states.tuned, "optimizer": moments}
  return bytes_of(group, own, "trial") + bytes_of(group, moved)


def largest(
  start: int,
  peak: float,
  fixed: float,
  peak_of: Callable[[int], float],
  limit: float,
  step: int = 1,
  *,
  at_most: int = MOST,
) -> int:
  """Returns the largest multiple of `step` that was seen to fit, to within a few per cent.

  It is at most `at_most`, and this without a try if the start is far from the limit.

  Memory is nearly linear, so that every next try is where the line through the last two ends.

  Args:
    start: fits, and takes `peak` bytes, of which `fixed` do not grow with the number.
    peak_of: (number) -> bytes; infinite for what does not fit.
    limit: bytes.
  """
  seen, least, most = {start: peak}, start, at_most + step
  # No part of the working memory grows faster than the number.
  number = int(start * (limit - fixed) / max(peak - fixed, 1.0))
  if number >= 2 * at_most:
    return max(start, at_most // step * step)
  for _ in range(6):
    number = min(number // step * step, most - step)
    if number < 1.05 * least:
      break
    seen[number] = taken = peak_of(number)
    least, most = (least, number) if taken > limit else (number, most)
    ends = sorted(n for n in seen if math.isfinite(seen[n]) and n <= most)[-2:]
    number = (least + most) // 2
    if len(ends) == 2:
      a, b = ends
      # Nearer than the line's end, where another algorithm has bent the line.
      share = 0.9 if most in seen else 0.99
      line = share * (limit - seen[least]) * (b - a) / max(seen[b] - seen[a], 1.0)
      number = int(least + line) if least + line < most or most not in seen else number
  return least


def changes(group: Outline, name: str) -> Iterator[dict[str, Any]]:
  """Lists what may make a step fit as {config key: value}, each with all that came before it.

  Fewer trials side by side come first, where their number was given, then smaller parts of a batch,
  then rematerialisation, fewer logits at a time, a quantised
  base, and the devices of the slice, or of larger ones, that share the batch and the base.

  Args:
    name: of the device.
  """
  options, c = group.options, group.trials[0].pretrained.model.config
  made: dict[str, Any] = {}
  chunk = min(options.chunk or 1, side_by_side(group))
  while chunk > 1:
    chunk = -(-chunk // 2)
    made = {"train.chunk": chunk}
    yield made
  rows = options.batch_size // group.parallel.batch_shards
  for n in range(options.accumulate + 1, rows + 1):
    if rows % n == 0:
      made = made | {"train.accumulate": n}
      yield made
  for remat in {False: ("linear", True), "linear": (True,)}.get(c.remat, ()):
    made = made | {"model.remat": remat}
    yield made
  if c.scored_together > FEW_TOKENS:
    made = made | {"model.scored_tokens": FEW_TOKENS}
    yield made
  for form in ("int8", "nf4") if c.quantize is None and _quantises(group) else ():
    made = made | {"model.quantize": form}
    yield made
  made = {key: value for key, value in made.items() if key != "train.accumulate"}
  rows, (kind, _, size) = options.batch_size // options.accumulate, name.partition(":")
  length = lowered.step_batch(group)["tokens"].shape[-1]
  for larger in () if options.parallel == "pmap" else (size, *devices.SLICES.get(kind, ())):
    count = len(devices.describe(f"{kind}:{larger}")[1]) if larger else 1
    if count > (1 if larger == size else len(group.devices)):
      slice_name = {} if larger == size else {"--device": f"{kind}:{larger}"}
      for mesh in _meshes(rows, length, c.kv_heads, count):
        yield made | slice_name | {"train.mesh": mesh}


def _meshes(rows: int, length: int, heads: int, count: int) -> Iterator[dict[str, int]]:
  """Lists meshes of so many devices; where there are too few rows, tokens are split, then weights.

  Args:
    rows, length: of a part of a batch.
    heads: of keys and values, by which "tensor" splits attention.
  """
  shards = math.gcd(rows, count)
  rest = count // shards
  for tensor in sorted({1, math.gcd(rest, heads), rest}):
    sizes = {"fsdp": shards, "sequence": rest // tensor, "tensor": tensor}
    if sizes["sequence"] == 1 or length >= FEW_TOKENS * sizes["sequence"]:
      yield {axis: size for axis, size in sizes.items() if size > 1}


def changed(group: Outline, change: dict[str, Any]) -> tuple[Outline, dict, dict[str, Any]]:
  """Returns a group, the shapes of its batch and fields of its model's `Config` under a change."""
  first, form = group.trials[0].pretrained, change.get("model.quantize")
  params = jax.eval_shape(partial(quantize.quantised, form=form), first.params)
  train = {key[6:]: value for key, value in change.items() if key.startswith("train.")}
  trials = [
    trial._replace(
      config=trial.config | {"train": trial.config["train"] | train},
      pretrained=first._replace(params=params),
    )
    for trial in group.trials
  ]
  there = group.device, group.devices
  if "--device" in change:
    there = devices.describe(change["--device"])
  computation = {key[6:]: value for key, value in change.items() if key.startswith("model.")}
  outline = lowered.outline(trials, *there)
  return outline, lowered.step_batch(outline), computation


def _quantises(group: Outline) -> bool:
  """Says whether the base can be quantised, as no method trains its kernels."""
  try:
    changed(group, {"model.quantize": "int8"})
  except UserError:
    return False
  return True


def advice(
  group: Outline, name: str, fits: Callable[[dict[str, Any]], bool]
) -> dict[str, Any] | None:
  """Returns the first change of `changes` that fits, without what it does not need; or None."""
  for change in changes(group, name):
    if fits(change):
      for key in [key for key in list(change)[:-1] if key != "--device"]:  # the mesh needs it
        less = {name: value for name, value in change.items() if name != key}
        change = less if fits(less) else change
      return change
  return None
