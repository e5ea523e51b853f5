"""What a completed config stands for: its data, its model and all that is laid over it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxtune import data, objectives, peft, tree
from jaxtune.errors import UserError
from jaxtune.models import hf
from jaxtune.peft.methods import head, regularize


class Setup(NamedTuple):
  """What a trial is given. Those of a group share all but the data.

  Attributes:
    pretrained: the model, its weights and tokenizer.
    sites: of the model, from `peft.find_sites`.
    dataset: tokenised splits.
    fingerprint: of the base weights.
  """

  pretrained: hf.Pretrained
  sites: dict
  dataset: data.Data
  fingerprint: str


def prepare(config: dict, pretrained: hf.Pretrained | None = None) -> Setup:
  """Loads the data and the model of a completed config.

  Args:
    pretrained: the model of another setup, where it is the same but for how many labels it has.
  """
  dataset = load_data(config)
  head = pretrained and pretrained.model.config.head
  if pretrained is None or (dataset.labels and head.outputs != len(dataset.labels)):
    pretrained = load_model(config, len(dataset.labels))
  sites = peft.find_sites(pretrained.model)
  return Setup(pretrained, sites, dataset, tree.fingerprint(pretrained.params))


def outline(config: dict) -> Setup:
  """Does all that `prepare` does but read weights, whose shapes take their place."""
  dataset, (objective, _) = load_data(config), find_objective(config)
  labels = len(dataset.labels) or None
  pretrained = hf.outline(**config["model"], head=objective.HEAD, labels=labels)
  return Setup(pretrained, peft.find_sites(pretrained.model), dataset, "")


def load_data(config: dict) -> data.Data:
  """Loads the data of a completed config, as its model's tokenizer and its objective need them."""
  tokenizer, decoder_start, vocabulary = hf.language(**config["model"])
  if tokenizer is None:
    raise UserError("the model's folder has no tokenizer; name one with model.tokenizer")
  objective, _ = find_objective(config)
  options = data.DataOptions(**config["data"])
  return data.load(tokenizer, objective, options, decoder_start, vocabulary)


def load_model(config: dict, labels: int) -> hf.Pretrained:
  """Loads the model of a completed config with the head that its objective needs."""
  objective, _ = find_objective(config)
  # A new head is drawn once more for each trial, by `programs.start`.
  seed = config["seed"] if config["model"]["path"] is None else 0
  return hf.load(**config["model"], head=objective.HEAD, labels=labels or None, seed=seed)


def make_methods(config: dict, fresh: tuple[str, ...] = ()) -> tuple[peft.Method, ...]:
  """Gathers all that is laid over the base: the method, the task's head and regularisation.

  Args:
    fresh: leaves of the model that its folder does not have.
  """
  methods = peft.build(config["method"])
  if find_objective(config)[0].HEAD != "lm":
    methods += (head.method(fresh),)  # beside a probe of the head alone too, for the fresh pooler
  if any(config["regularize"].values()):
    methods += (regularize.method(**config["regularize"]),)
  return methods


def tokenizing(pretrained: hf.Pretrained) -> Callable | None:
  """Returns the model's (text) -> token ids, without special tokens; None without a tokenizer."""
  tokenizer, size = pretrained.tokenizer, pretrained.model.config.vocabulary
  if tokenizer is None:
    return None

  def tokenize(text: str) -> list[int]:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    data.ids.check(tokenizer, ids, size, f"the text {text!r}")
    return ids

  return tokenize


def find_objective(config: dict) -> tuple[Any, dict]:
  """Returns the objective's module and its options."""
  options = dict(config["objective"])
  return objectives.module(options.pop("name")), options
