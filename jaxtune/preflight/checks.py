"""Checks of a config, its model and its data, before a run: can it work at all?"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import numpy as np

from jaxtune import data, hosts, objectives, peft, sharding
from jaxtune.errors import UserError
from jaxtune.preflight import judging, rollout
from jaxtune.runs import programs
from jaxtune.runs.trial import Trial, tokenizing
from jaxtune.training import turns
from jaxtune.training.options import SearchOptions, TrainOptions


def check_options(config: dict, devices: Sequence[Any] | None = None) -> None:
  """Raises UserError for options that cannot work, without the model and the data.

  Args:
    devices: those that the run will be on; default those of this machine, () if they are unknown.
  """
  options = TrainOptions(**config["train"])
  turns.rule(SearchOptions(**config["search"]), options, ())
  if options.batch_size % options.accumulate:
    raise UserError(
      f"train.batch_size {options.batch_size} does not divide into "
      f"train.accumulate {options.accumulate} parts"
    )
  _check_alone(config)
  rollout.check_options(config)
  smoothing, kind = (config["objective"].get(name) for name in ("label_smoothing", "kind"))
  if smoothing and kind in ("hinge", "ipo"):
    raise UserError(
      f"objective.label_smoothing is {smoothing}, expected 0 with objective.kind={kind!r}, which "
      "has none: choose 'sigmoid' or 'robust'"
    )
  buckets, places = config["data"]["buckets"], config["search"]["places"]
  if buckets > 1 and places is not None and options.patience is not None:
    raise UserError(
      f"search.places is {places}, expected None with train.patience and data.buckets={buckets}: a "
      "trial that fills the place of one that stopped is at another step, whose batch may have "
      "another width"
    )
  if devices is not None and not len(devices):
    return
  parts = sharding.make(options.parallel, options.mesh, devices).batch_shards
  rows = options.batch_size // options.accumulate
  if rows % parts:
    shared = math.gcd(rows, parts)
    raise UserError(
      f"train.batch_size {options.batch_size} in train.accumulate {options.accumulate} parts makes "
      f"{rows} examples at a time, which do not divide over {parts} devices; use a multiple of "
      f"{parts * options.accumulate}, or train.mesh={{'data': {shared}}}, for long texts with "
      f"'sequence': {parts // shared}"
    )


def _check_alone(config: dict) -> None:
  """Raises UserError for batches of one row where an objective compares rows."""
  name = config["objective"]["name"]
  for section in ("train", "evaluate"):
    if config[section]["batch_size"] == 1 and hasattr(objectives.module(name), "common"):
      raise UserError(
        f"{section}.batch_size is 1, expected 2 or more: objective {name!r} compares an answer "
        "with others of its batch"
      )


def check_seeds(configs: Sequence[dict]) -> None:
  """Raises UserError for early exits in a sweep whose seeds are in programs of their own."""
  drawn = [c for c in configs if c["search"]["early_exit"] and c["model"]["path"] is None]
  if len({config["seed"] for config in drawn}) > 1:
    raise UserError(
      f"search.early_exit is {drawn[0]['search']['early_exit']!r}, but with model.path=None each "
      "seed has a base and a program of its own, so that the seeds of a configuration would not "
      "leave together; expected None, or one seed"
    )


def check_losses(configs: Sequence[dict]) -> None:
  """Raises UserError for early exits in a program whose losses are of other numbers.

  Args:
    configs: of the trials of one program.
  """
  early = configs[0]["search"]["early_exit"]
  numbers = [objectives.judged_by(config["objective"]) for config in configs]
  for name, value in numbers[0].items() if early else ():
    if other := [one[name] for one in numbers if one[name] != value]:
      raise UserError(
        f"search.early_exit is {early!r}, but trials that it would compare have objective.{name} "
        f"{value} and {other[0]}, on which their losses depend; expected None, or one value"
      )


def warn(configs: Sequence[dict]) -> None:
  """Warns of a warm-up that no update is behind, once for each that there is in the configs.

  It is no error, as a sweep may have numbers of steps below the warm-up of its longest runs.
  """
  for warmup, steps in sorted({(c["optim"]["warmup"], c["train"]["steps"]) for c in configs}):
    if warmup >= steps and hosts.primary():
      print(
        f"warning: optim.warmup is {warmup}, expected fewer than train.steps, {steps}: the "
        "learning rate rises until the end",
        file=sys.stderr,
      )


def check(trial: Trial) -> None:
  """Raises UserError for what cannot work with this model and these data."""
  config, dataset = trial.config, trial.dataset
  options = TrainOptions(**config["train"])
  for key in ("train.patience", "search.early_exit"):
    section, _, name = key.partition(".")
    if config[section][name] is not None and dataset.validation is None:
      raise UserError(f"{key} needs a validation split: give data.validation")
  _check_batches(trial)
  _check_lengths(trial, max(rollout.check(trial), judging.check(trial)))
  data.mix.check(dataset.train.order, *trial.draws(options.steps))
  tokenize = tokenizing(trial.pretrained)

  def make(params):
    adapted = peft.init(jax.random.key(0), trial.methods, trial.sites, params, tokenize)
    return adapted.overlay, adapted.base

  shapes, base = jax.eval_shape(make, trial.pretrained.params)
  if config["evaluate"]["merge"]:
    _check_merges(trial, shapes, base)
  if not jax.tree.leaves(shapes.tuned):
    names = " and ".join(repr(method.name) for method in trial.methods)
    raise UserError(f"{names} trains no array: add a method that does, such as lora")
  for m in trial.methods:
    if m.adjust is not None:  # its schedule may not fit the run
      trained, fixed = shapes.arrays_of(m)
      jax.eval_shape(partial(m.adjust, 1, options.steps), trained, trained, fixed)


def _check_merges(trial: Trial, overlay: peft.Overlay, base: Any) -> None:
  """Raises UserError for methods that are no deltas of weights, or of a table that has two uses."""
  tied = trial.pretrained.model.config.tied and trial.pretrained.model.config.head is None
  if tied and any("embed" in overlay.arrays_of(method)[0] for method in trial.methods):
    raise UserError(
      "evaluate.merge is True, expected False: a method changes the embeddings, by whose table the "
      "model computes logits too"
    )
  try:
    jax.eval_shape(lambda x, y: peft.merge(peft.Adapted(trial.methods, *x, y)), overlay, base)
  except UserError as error:
    raise UserError(f"evaluate.merge is True, expected False: {error}") from error


def _check_lengths(trial: Trial, completed: int) -> None:
  """Raises UserError for more positions in a sequence, or texts in a row, than the model has."""
  splits = [s for s in (*trial.dataset.splits.values(), trial.dataset.general) if s is not None]
  arrays = [getattr(split, "arrays", {}) for split in splits]
  # The two sides of an encoder-decoder count by themselves.
  sides = [known["inputs"].shape[-1] for known in arrays if "inputs" in known]
  longest = max([split.width for split in splits] + sides + [completed])
  prefix, c = sum(m.positions for m in trial.methods), trial.pretrained.model.config
  texts = 1 + max((int(known["types"].max()) for known in arrays if "types" in known), default=0)
  if 0 < c.types < texts:
    raise UserError(
      f"the tokenizer tells {texts} texts of a row apart, expected at most {c.types}, as the model "
      "has token types: set model.tokenizer to the tokenizer of this model"
    )
  if prefix + longest > c.positions:
    section = "rollout" if programs.rolls_out(trial) else "evaluate"
    raise UserError(
      f"sequences of {longest} tokens and a prefix of {prefix} exceed the model's {c.positions} "
      f"positions; lower data.max_length, {section}.max_new_tokens or method.length"
    )


def _check_batches(trial: Trial) -> None:
  """Raises UserError for batches larger than the memory of this machine."""
  config, dataset, memory = trial.config, trial.dataset, hosts.memory()
  held = dataset.test or dataset.validation or dataset.train
  for section, split in (("train", dataset.train), ("evaluate", held)):
    # Of a stream: ids, weights and masks.
    arrays = getattr(split, "arrays", {"tokens": np.zeros((1, split.width, 9), np.int8)})
    size = config[section]["batch_size"] * sum(array[0].nbytes for array in arrays.values())
    if size > memory:
      raise UserError(
        f"{section}.batch_size is {config[section]['batch_size']}: a batch takes "
        f"{size / 1e9:,.0f} GB, expected less than this machine's {memory / 1e9:,.0f} GB"
      )
