"""Asks the compiler of a device that need not be here what every program of a group takes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax

from jaxtune.preflight import compiled, devices, fit, generation, lowered
from jaxtune.preflight.compiled import Built
from jaxtune.preflight.lowered import Outline
from jaxtune.runs.trial import Trial


def cost_on(trials: Sequence[Trial], name: str, folder: Path | None = None) -> dict:
  """Compiles every program of a group for a device; returns its compiler's figures.

  Args:
    name: of the device, as `devices.describe` takes it. `train.mesh` spreads the programs over it.
    folder: where results are kept; see `compiled.build`.

  Returns:
    "device"; "memory_GB" and "TFLOP_per_s" of each of the "devices", and whether jax takes a share
    of that memory alone, "by_share"; "remat", which is chosen for a model whose own is "auto";
    "trials", of which each device computes "side_by_side" together; "programs", by name what
    `_figures` returns of each; "largest", how many "rows" a part of a batch, and how many "trials"
    side by side, can have; "shots" of `evaluate`, with which the judgement of the base is in no
    program. A program that does not fit has "would_fit", the {config key: value} with which it
    would, or None.
  """
  device, found = devices.describe(name)
  group = lowered.outline(trials, device, found)
  build = partial(compiled.build, device=f"{name} {device}", folder=folder)
  here = device.platform == "cpu"  # where a run asks nobody; see `cost.choose_chunk`
  most = fit.side_by_side(group)
  chunk = min(group.options.chunk or (1 if here else most), most)
  batches, auto = lowered.batches(group), trials[0].pretrained.model.config.remat == "auto"
  if auto:
    remat = "linear" if here else _least(group, batches["training step"], build)
    group = group._replace(trials=lowered.changed(group.trials, remat=remat))
  built = _built(group, batches, chunk, build)
  room = fit.room(device)
  fits = lambda: all(one.peak <= room and not one.refused for one in built.values())
  while chunk > 1 and group.options.chunk is None and not fits():
    chunk = -(-chunk // 2)
    built = _built(group, batches, chunk, build)
  cost = {
    "device": name, "memory_GB": device.memory / 1e9, "TFLOP_per_s": device.flops / 1e12 or None,
    "by_share": bool(device.gpu), "devices": group.parallel.devices,
    "trials": len(trials), "side_by_side": chunk, "shots": trials[0].config["evaluate"]["shots"],
    "programs": {k: _figures(group, k, batches[k], built[k]) for k in batches},
  }  # fmt: skip
  if auto:
    cost["remat"] = group.trials[0].pretrained.model.config.remat
  for kind, program in cost["programs"].items():
    if kind != "training step" and built[kind].refused:
      program["would_fit"] = _smaller(group, kind, chunk, build)
  if built["training step"].refused:
    tried = fit.advice(group, name, partial(_fits, group, build))
    cost["programs"]["training step"]["would_fit"] = tried
    return cost
  return cost | {"largest": _largest(group, batches["training step"], chunk, built, build)}


def _least(group: Outline, batch: dict, build: Callable) -> bool | str:
  """Returns the policy that computes least twice of those with which a step of one trial fits."""
  peak = partial(_peak, group, _with_trials(batch, 1), 1, build)
  fits = lambda policy: peak(remat=policy) <= fit.room(group.device)
  return next(filter(fits, lowered.POLICIES), True)


def _built(group: Outline, batches: dict, chunk: int, build: Callable) -> dict[str, Built]:
  """Compiles the programs of a group; one with a peak above the memory counts as refused.

  What the group holds beside a program counts as its arguments.
  """
  programs = (lowered.LOWER[kind](group, batch, chunk) for kind, batch in batches.items())
  found, limit = {}, group.device.memory
  for kind, one in zip(batches, build(programs), strict=True):
    more = fit.held(group, kind, len(group.trials))
    one = one._replace(peak=one.peak + more, arguments=one.arguments + more)
    over = "" if one.peak <= limit else f"its peak is {one.peak / 1e9:.2f} GB"
    found[kind] = one._replace(refused=one.refused or over)
  return found


def _fits(group: Outline, build: Callable, change: dict[str, Any]) -> bool:
  """Says whether a step of one trial at a time, or of `train.chunk`, fits with a change."""
  changed, batch, computation = fit.changed(group, change)
  there = {"device": change["--device"]} if "--device" in change else {}
  chunk, build = changed.options.chunk or 1, partial(build, **there)
  return _peak(changed, batch, chunk, build, **computation) <= group.device.memory


def _smaller(group: Outline, kind: str, chunk: int, build: Callable) -> dict | None:
  """Returns the largest halved `batch_size`, by its config key, with which a program fits, or None.

  Of the answers that a policy draws, it is that of training.
  """
  trial, shards = group.trials[0], group.parallel.batch_shards
  section = generation.section(trial, kind)
  if section == "train":  # whose parts have whole prompts, with all of their answers
    shards *= trial.config["train"]["accumulate"] * trial.config["rollout"]["samples"]
  rows = trial.config[section]["batch_size"] // 2
  while rows and rows % shards == 0:
    changed = trial.config[section] | {"batch_size": rows}
    trials = [t._replace(config=t.config | {section: changed}) for t in group.trials]
    smaller = group._replace(trials=trials)
    if _peak(smaller, lowered.batches(smaller)[kind], chunk, build, kind) <= group.device.memory:
      return {f"{section}.batch_size": rows}
    rows //= 2
  return None


def _largest(group: Outline, batch: dict, chunk: int, built: dict, build: Callable) -> dict:
  """Returns how many rows a part of a batch, and how many trials side by side, can have."""
  peak, limit = built["training step"].peak, group.device.memory
  of_rows = lambda n: _peak(group, _with_rows(batch, n), chunk, build)
  rows, shards = batch["tokens"].shape[2], group.parallel.batch_shards
  # Fewer trials side by side leave the states of the others where they are.
  held = lambda n: max(n * group.parallel.trial_shards, len(group.trials))
  of_trials = lambda n: _peak(group, _with_trials(batch, held(n)), n, build)
  fixed, base = built["training step"].arguments, fit.bytes_of(group, group.base)
  together = fit.side_by_side(group)
  taken, most = (base, fit.MOST) if chunk == together else (fixed, together)
  return {
    "rows": fit.largest(rows, peak, fixed, of_rows, limit, shards),
    "trials": fit.largest(chunk, peak, taken, of_trials, limit, at_most=most),
  }


def _peak(
  group: Outline, batch: dict, chunk: int, build: Callable, kind: str = "training step",
  **computation: Any,
) -> float:  # fmt: skip
  """Returns the bytes that a program takes with all that is held beside; infinite if refused."""
  (built,) = build([lowered.LOWER[kind](group, batch, chunk, **computation)], quick=True)
  return math.inf if built.refused else built.peak + fit.held(group, kind, len(batch["tokens"]))


def _with_rows(batch: dict, rows: int) -> dict:
  """Returns the shapes of a training batch (E, A, B, ...) with another number of rows B."""
  change = lambda x: (*x.shape[:2], rows, *x.shape[3:])
  return {name: jax.ShapeDtypeStruct(change(x), x.dtype) for name, x in batch.items()}


def _with_trials(batch: dict, trials: int) -> dict:
  return {name: lowered.led(x, trials) for name, x in batch.items()}


def _figures(group: Outline, kind: str, batch: dict, built: Built) -> dict:
  """Returns what is known of a program, on each device.

  Returns:
    "batch", the sizes (trials, rows at a time, tokens); "text" of the module; "GFLOP" of its matrix
    products, of which nothing is computed twice, and "floor_ms", which they take at the peak rate,
    None where that is not known, as on a CPU;
    what `compiled.read` returns; "traffic_ms", which its traffic with main memory takes; "ms",
    which a TPU's compiler estimates, of which "kernels_ms" are fused kernels, counted at half of
    the peak rate. Of a program that does not fit, there is "does_not_fit", the compiler's words.
  """
  if kind == "training step":
    batch, _ = lowered.at_once(group, batch)
  device, (trials, *sizes, length) = group.device, batch["tokens"].shape
  if kind in generation.KINDS:  # other prompts wait
    section = generation.section(group.trials[0], kind)
    rows = min(sizes[0], group.trials[0].config[section]["batch_size"])
  else:
    rows = sizes[1]
  head = {"batch": (trials, rows, length), "text": built.text}
  if built.refused:
    return head | {"does_not_fit": built.refused}
  base = fit.bytes_of(group, group.base)
  gflop = lowered.flops(group, batch, kind) / group.parallel.devices / 1e9
  figures = compiled.read(built, device, base, marks(group, batch, kind), local(group))
  milliseconds = lambda mega: 1e9 * mega / device.clock if device.clock else None
  at_rate = lambda giga, rate: 1e12 * giga / rate if rate else None
  return head | figures | {
    "GFLOP": gflop,
    "floor_ms": at_rate(gflop, device.flops),
    "traffic_ms": at_rate(figures["traffic_GB"], device.bandwidth),
    "ms": milliseconds(figures["Mcycles"]),
    "kernels_ms": milliseconds(figures["Mcycles_of_kernels"]),
    "dearest": [one | {"ms": milliseconds(one["Mcycles"])} for one in figures["dearest"][:10]],
  }  # fmt: skip


def local(group: Outline) -> float:
  """Returns the share of a model's layers that are local, as `compiled.read` asks for it."""
  layers = group.trials[0].pretrained.model.config.local or (False, True)
  return sum(layers) / len(layers)


def marks(group: Outline, batch: dict, kind: str) -> dict[str, compiled.Mark]:
  """Returns {part of the memory: whether an array of some sizes belongs to it}, for a program."""
  c, mesh = group.trials[0].pretrained.model.config, group.parallel.mesh
  tensor = 1 if mesh is None else mesh.shape["tensor"]
  vocabulary = c.vocabulary // (1 if c.vocabulary % tensor else tensor)
  of_tokens = lambda dims: {*dims} - {1, len(group.trials), vocabulary, c.width}
  # An array of the vocabulary and the width alone is a gradient, or a copy of the embeddings.
  found: dict[str, compiled.Mark] = {
    "logits": lambda dims: vocabulary in dims and bool(of_tokens(dims))
  }
  if kind in generation.KINDS:
    # Nothing else of all layers has the size of a head: a cache of rows and heads, (L, B, K, S, H).
    found["cache"] = lambda dims: {c.layers, c.head_size} <= {*dims} and len(dims) > 3
  return found
