"""Finished runs: loaded from their folders, or made of other runs and kept in a folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jaxtune import config as configs
from jaxtune import peft, tree
from jaxtune.errors import UserError
from jaxtune.models import hf
from jaxtune.runs import compilations, locks
from jaxtune.runs import folder as folder_
from jaxtune.runs.trial import load_data, load_model, make_methods, objective_of, tokenizing
from jaxtune.training.options import TrainOptions


class Run(NamedTuple):
  """A finished run, ready to be evaluated, generated from or exported.

  Attributes:
    folder: the folder of its files.
    config: the completed config.
    pretrained: its base model.
    adapted: the base's weights with what was trained laid over them.
    labels: names of the classes or tags.
    stop_tokens: ids that end a completion.
    composed: whether it was made of other runs, the first of which has this folder: the result
      there is not its own.
  """

  folder: Path
  config: dict
  pretrained: hf.Pretrained
  adapted: peft.Adapted
  labels: tuple[str, ...] = ()
  stop_tokens: tuple[int, ...] = ()
  composed: bool = False


def check_fits(
  methods: tuple[peft.Method, ...], pretrained: hf.Pretrained, flat: dict, where: str
) -> None:
  """Raises UserError unless {path: array} has the arrays that the methods train, all finite.

  Args:
    where: where the arrays are from, for the error.
  """
  sites, tokenize = peft.find_sites(pretrained.model), tokenizing(pretrained)
  make = lambda params: peft.init(jax.random.key(0), methods, sites, params, tokenize).overlay
  tuned, hyper = jax.eval_shape(make, pretrained.params)
  expected = tree.flatten(tuned | {"hyper": hyper})
  if apart := sorted(expected.keys() ^ flat.keys()):
    names = " + ".join(m.name for m in methods)
    how = "is none that it trains" if apart[0] in flat else "is missing"
    raise UserError(f"{where} does not fit its configuration, {names}: {apart[0]} {how}")
  said = lambda x: f"{x.dtype} {tuple(x.shape)}"
  for path, like in expected.items():
    if said(flat[path]) != said(like):
      raise UserError(
        f"{where} does not fit its configuration: {path} is {said(flat[path])}, expected "
        f"{said(like)}"
      )
  tree.check_finite(flat, where)


def load_run(folder: str | Path, pretrained: hf.Pretrained | None = None) -> Run:
  """Loads a finished run, or a sweep's best trial, and the base it was trained on.

  Args:
    pretrained: the base, where another run has loaded it already.

  Raises:
    UserError: when the folder holds no finished run, or its base has changed.
  """
  path, record, flat = folder_.read(Path(folder))
  folder, config = path.parent, record["config"]
  if config["model"]["attention"] != "plain":  # this device may lack that one's fused kernel
    config = config | {"model": config["model"] | {"attention": None}}
  if config["train"]["compilation_cache"] is not None:  # whose folder may be somebody else's
    own = {"compilation_cache": TrainOptions().compilation_cache}
    config = config | {"train": config["train"] | own}
  compilations.keep(config["train"]["compilation_cache"])
  labels, stop_tokens = tuple(record["labels"]), tuple(record["stop_tokens"])
  base = pretrained or load_model(config, len(labels))
  if tree.fingerprint(base.params) != record["base"]:
    holder = "the run before it was trained on" if pretrained else config["model"]["path"]
    raise UserError(f"{folder} was trained on other base weights than {holder} holds")
  methods = make_methods(config, base.fresh)
  check_fits(methods, base, flat, str(path))
  trees = tree.unflatten({name: jax.numpy.asarray(x) for name, x in flat.items()})
  hyper, tuned = trees.pop("hyper", {}), {"params": {}, "peft": {}} | trees
  _, frozen = peft.split(methods, base.params)
  adapted = peft.Adapted(methods, tuned, hyper, frozen)
  return Run(folder, config, base, adapted, labels, stop_tokens)


def load_beside(folder: str | Path, first: Run) -> Run:
  """Loads a finished run over the weights of another one, which are in memory once.

  Its tokenizer and config.json are its own: folders of equal weights may differ in these.

  Raises:
    UserError: as `load_run`; where it was trained over other weights.
  """
  run = load_run(folder, first.pretrained)
  if run.config["model"] == first.config["model"]:
    return run
  own = hf.outline(
    **run.config["model"], head=objective_of(run.config).HEAD, labels=len(run.labels) or None
  )
  return run._replace(pretrained=own._replace(params=first.pretrained.params))


def load_runs(folders: Sequence[str | Path]) -> list[Run]:
  """Loads several finished runs over one base, whose weights are in memory once.

  Raises:
    UserError: where one of them was trained over other weights.
  """
  runs: list[Run] = []
  for folder in folders:
    runs.append(load_beside(folder, runs[0]) if runs else load_run(folder))
  return runs


def untrained(config: Any, folder: str | Path, tuned: str | None = None) -> Run:
  """Returns a run over a config's base in which nothing is trained.

  Args:
    tuned: the folder of a model whose head the run is to get; see `load_data`.
  """
  full = configs.complete({k: v for k, v in configs.to_dict(config).items() if k != "method"})
  dataset = load_data(full, tuned)
  pretrained = load_model(full, len(dataset.labels))
  adapted = peft.untuned(pretrained.params)
  return Run(Path(folder), full, pretrained, adapted, tuple(dataset.labels), dataset.stop_tokens)


def check_free(folder: str | Path) -> None:
  """Raises UserError for a folder in which there is a run, finished or under way, or other files.

  A folder with a config.json alone is free: `keep` was killed there, and writes both files anew.
  """
  folder = Path(folder)
  if any((folder / name).exists() for name in locks.RUN):
    raise UserError(f"{folder} holds a run already; give another folder")
  locks.check_contents(folder)


def keep(run: Run, folder: str | Path) -> None:
  """Writes a run that was composed or imported as a folder that `load_run` reads.

  Raises:
    UserError: where the folder holds a run, or the arrays are none that the run's methods train.
  """
  folder = Path(folder)
  flat = tree.flatten(run.adapted.tuned | {"hyper": run.adapted.hyper})
  check_fits(run.adapted.methods, run.pretrained, flat, f"what was made for {folder}")
  base = tree.fingerprint(run.pretrained.params)
  with locks.held(folder):
    check_free(folder)
    folder_.begin([folder], [run.config])
    folder_.write(folder, run.adapted.overlay, base, run.config, run.labels, run.stop_tokens)
