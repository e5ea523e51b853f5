"""A trial: the data, the model and the methods that a completed config describes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp

from jaxtune import data, objectives, peft, sharding, tree
from jaxtune.errors import UserError
from jaxtune.models import heads, hf
from jaxtune.peft.methods import head, regularize
from jaxtune.training.options import RolloutOptions


class Trial(NamedTuple):
  """One trial, made of its completed config once. The trials of a group share the model.

  Attributes:
    config: the completed config.
    pretrained: the model, its weights and tokenizer.
    sites: the model's sites, from `peft.find_sites`.
    dataset: tokenised splits.
    fingerprint: the hash of the base weights.
    methods: all that is laid over the base: the method, the task's head and regularisation.
    objective: the objective's module.
  """

  config: dict
  pretrained: hf.Pretrained
  sites: dict[str, peft.Site]
  dataset: data.Data
  fingerprint: str
  methods: tuple[peft.Method, ...]
  objective: Any

  def draws(self, updates: int) -> tuple[int, int]:
    """Returns how often so many updates draw rows of the training split, and how many each time.

    Of a policy these are its rollouts and their prompts.
    """
    batch_size = self.config["train"]["batch_size"]
    if not objectives.rolls_out(self.objective):
      return updates, batch_size
    rollout = RolloutOptions(**self.config["rollout"])
    return -(-updates // rollout.updates), rollout.minibatches * batch_size // rollout.samples


def prepare(config: dict, pretrained: hf.Pretrained | None = None) -> Trial:
  """Loads the data and the model of a completed config, each weight onto the devices of its mesh.

  Args:
    pretrained: the model of another trial, if this one's can differ only in the number of labels.
  """
  dataset = load_data(config)
  head = pretrained and pretrained.model.config.head
  if pretrained is None or (dataset.labels and head.outputs != len(dataset.labels)):
    parallel = sharding.make(config["train"]["parallel"], config["train"]["mesh"])
    pretrained = load_model(config, len(dataset.labels), parallel)
  return make(config, pretrained, dataset, tree.fingerprint(pretrained.params))


def outline(config: dict, _: hf.Pretrained | None = None) -> Trial:
  """Does all that `prepare` does, but with the shapes of the weights in place of weights."""
  dataset, labelled = load_data(config), objective_of(config)
  labels = len(dataset.labels) or None
  pretrained = hf.outline(**config["model"], head=labelled.HEAD, labels=labels)
  return make(config, pretrained, dataset, "")


def make(config: dict, pretrained: hf.Pretrained, dataset: data.Data, fingerprint: str) -> Trial:
  """Puts a trial together from a model and data that are loaded."""
  sites, methods = peft.find_sites(pretrained.model), make_methods(config, pretrained.fresh)
  objective = objective_of(config)
  return Trial(config, pretrained, sites, dataset, fingerprint, methods, objective)


def with_config(trial: Trial, config: dict) -> Trial:
  """Returns the trial of another config with the same model and data."""
  methods = make_methods(config, trial.pretrained.fresh)
  return trial._replace(config=config, methods=methods, objective=objective_of(config))


def aligned(trials: Sequence[Trial], members: Sequence[Sequence[int]]) -> list[Trial]:
  """Returns the trials with data of equal shapes within each group, whatever other groups have.

  Groups of the same data sets share the padded ones.

  Args:
    members: the numbers of the trials of each group.
  """
  found, known = list(trials), {}
  for group in members:
    datasets = {id(trials[i].dataset): trials[i].dataset for i in group}
    if (ids := tuple(datasets)) not in known:
      known[ids] = dict(zip(ids, data.align([*datasets.values()]), strict=True))
    for i in group:
      found[i] = trials[i]._replace(dataset=known[ids][id(trials[i].dataset)])
  return found


def changed(trials: Sequence[Trial], **computation: Any) -> list[Trial]:
  """Returns the trials of a group whose model is computed in another way.

  Args:
    computation: fields of the model's `Config`.
  """
  pretrained = trials[0].pretrained
  config = pretrained.model.config.changed(**computation)
  pretrained = pretrained._replace(model=pretrained.model.clone(config=config))
  return [trial._replace(pretrained=pretrained) for trial in trials]


def load_data(config: dict, tuned: str | None = None) -> data.Data:
  """Loads the data of a completed config, as its model's tokenizer and its objective need them.

  Args:
    tuned: the folder of a model whose head stays as it is, in place of the base's.

  Raises:
    UserError: also where data.labels has the names of a head that stays in another order.
  """
  objective = objective_of(config)
  tokenizer, model, classes = hf.language(**config["model"], head=objective.HEAD)
  if tuned is not None:
    *_, own = hf.language(
      **config["model"] | {"path": tuned, "architecture": None}, head=objective.HEAD
    )
    heads.check_order(config["data"]["labels"] or (), own, tuned)
    classes = own or classes
  if tokenizer is None:
    raise UserError("the model's folder has no tokenizer; name one with model.tokenizer")
  of_model = model.decoder_start, model.vocabulary, model.positions
  read = lambda options: data.load(tokenizer, objective, options, *of_model)
  options = data.DataOptions(**config["data"])
  dataset = read(options)
  return dataset if options.labels else _in_order(dataset, classes, read, options)


def _in_order(
  dataset: data.Data, classes: tuple[str, ...], read: Callable, options: data.DataOptions
) -> data.Data:
  """Returns the data with the labels in the order of the outputs of the model's own head."""
  labels = dataset.labels
  if len(classes) != len(labels) or classes == labels or all(map(str.isdigit, labels)):
    return dataset
  if set(classes) == set(labels):
    return read(options._replace(labels=classes))
  raise UserError(
    f"the model's head has the classes {', '.join(classes)}, and the data the labels "
    f"{', '.join(labels)}: set data.labels to the data's, in the order of the head's"
  )


def load_model(
  config: dict, labels: int, parallel: sharding.Parallel = sharding.ALONE
) -> hf.Pretrained:
  """Loads the model of a completed config with the head that its objective needs.

  Args:
    parallel: the devices; see `hf.load`.
  """
  # A new head is drawn once more for each trial, by `first_state`.
  seed = config["seed"] if config["model"]["path"] is None else 0
  return hf.load(
    **config["model"],
    head=objective_of(config).HEAD,
    labels=labels or None,
    seed=seed,
    parallel=parallel,
  )


def make_methods(config: dict, fresh: tuple[str, ...] = ()) -> tuple[peft.Method, ...]:
  """Gathers all that is laid over the base: the method, the task's head and regularisation.

  Args:
    fresh: leaves of the model that its folder does not have.
  """
  methods = peft.build(config["method"])
  if objective_of(config).HEAD != "lm":
    methods += (head.method(fresh),)  # also beside the method "head", which trains no fresh pooler
  if numbers := objectives.numbers(config["objective"]):
    fixed = {name: jnp.float32(value) for name, value in numbers.items()}

    def init(key, sites, frozen):
      width = frozen.leaves["embed/embedding"].shape[-1]
      return {"loss": objectives.arrays(config["objective"]["name"], width)}, {"loss": fixed}

    methods += (peft.Method("objective", init=init),)
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
    data.ids.check(tokenizer, [ids], size, [f"the text {text!r}"])
    return ids

  return tokenize


def objective_of(config: dict) -> Any:
  """Returns the module of a config's objective."""
  return objectives.module(config["objective"]["name"])
