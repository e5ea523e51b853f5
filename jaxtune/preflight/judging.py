"""Checks of how trials are judged: of the section `evaluate`, and of the metric to sort by."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtune import data, metrics
from jaxtune.errors import UserError, nearest
from jaxtune.evaluation import answers, judge, sampling
from jaxtune.evaluation.options import EvaluateOptions
from jaxtune.runs import programs
from jaxtune.runs.trial import Trial


def check(trial: Trial) -> int:
  """Checks the `evaluate` section; returns the longest prompt with its completion, or 0."""
  options, objective = programs.judging(trial), trial.objective
  metrics.check(options.metrics or (), metrics.kind_of(objective.METRICS[0]))
  if options.shots:
    _check_shots(trial, options)
  predicts = hasattr(objective, "decode")
  if options.metrics and not options.generate and not predicts:
    raise UserError("evaluate.metrics judge text: set evaluate.generate=True, or leave them out")
  if options.generate and predicts:
    name = trial.config["objective"]["name"]
    raise UserError(f"evaluate.generate is for objectives of text; {name!r} predicts")
  _check_classes(trial, options.metrics or ())
  _check_tags(trial, judge.metric_names(options, objective))
  return _longest_completed(trial, options) if options.generate else 0


def _check_classes(trial: Trial, names: Sequence[str]) -> None:
  """Raises UserError for metrics of classes where rows of a task have choices of their own."""
  held = trial.dataset.test or trial.dataset.validation
  known = judge.scoring(names, held) if held else names
  if lost := [name for name in names if name not in known]:
    raise UserError(
      f"evaluate.metrics has {lost[0]!r}, expected 'accuracy': among the rows that are judged are "
      "some with choices of their own, which are no classes"
    )


def _check_tags(trial: Trial, names: Sequence[str]) -> None:
  """Raises UserError for tags of which metrics of spans can make no spans."""
  dataset, labels = trial.dataset, trial.dataset.labels
  held = dataset.test or dataset.validation
  if held is None or not names or metrics.kind_of(names[0]) != "tags":
    return
  try:
    true = trial.objective.references(dataset, held)
    metrics.check_examples("tags", true, true, names)
    metrics.check_examples("tags", [labels], [["O"] * len(labels)], names)  # as it may predict any
  except UserError as error:
    raise UserError(
      f"{', '.join(names)}: {error}; or evaluate.metrics=(), which leaves the accuracy of tags"
    ) from error


def _check_shots(trial: Trial, options: EvaluateOptions) -> None:
  """Raises UserError for data without demonstrations, or without examples to put them before."""
  held = trial.dataset.test or trial.dataset.validation
  if held is None:
    raise UserError("evaluate.shots needs examples to judge: give data.test or data.validation")
  for name in ("stream", "pack"):
    if trial.config["data"][name]:
      raise UserError(f"evaluate.shots draws whole examples from train: not with data.{name}")
  name = trial.config["objective"]["name"]
  if name == "kto" or programs.rolls_out(trial):
    raise UserError(
      f"evaluate.shots is {options.shots}, expected 0 for objective {name!r}: its examples are no "
      "demonstrations, as not all of them have a right answer"
    )
  if trial.objective.HEAD != "lm":
    raise UserError(
      f"evaluate.shots is {options.shots}, expected 0 for objective {name!r}: demonstrations are "
      "for the answers of an untuned model, and it has none before its head is trained"
    )
  data.check_shots(held, trial.dataset.train, options.shots)


def _longest_completed(trial: Trial, options: EvaluateOptions) -> int:
  """Checks that text can be generated and judged; returns the longest prompt and completion."""
  sampling.check_options(
    trial.pretrained.model.config.vocabulary,
    *(options.max_new_tokens, options.temperature, options.top_k, options.top_p),
  )
  split = trial.dataset.test or trial.dataset.validation
  if split is None:
    raise UserError(
      "evaluate.generate needs prompts to complete: give data.test or data.validation"
    )
  for prompt, where in zip(split.prompts, split.where, strict=True):
    if not prompt:
      raise UserError(f"{where} has no prompt and answer: evaluate.generate is not for plain text")
  chosen = answers.completed(split, None)
  if not chosen:
    raise UserError(
      "evaluate.generate compares with answers that people liked, and all that are judged have a "
      "thumb down: give rows with a thumb up, or leave it out"
    )
  for n in chosen:
    if not any(map(str.strip, split.references[n])):
      raise UserError(
        f"{split.where[n]} has no answer, which evaluate.generate compares with: give the rows a "
        "column `output` or `completion`, or leave it out"
      )
  tasks = len(set(split.tasks or ()))
  if options.limit is not None and options.limit < tasks:
    raise UserError(
      f"evaluate.limit is {options.limit}, expected at least {tasks}: one prompt of each task"
    )
  longest, c = max(map(len, split.prompts)), trial.pretrained.model.config
  together = max if c.encoder is not None else int.__add__
  return together(longest, len(c.decoder_start) + options.max_new_tokens)


def check_metric(metric: str, trial: Trial) -> None:
  """Raises UserError for a metric to sort by that no trial will have."""
  objective, options = trial.objective, EvaluateOptions(**trial.config["evaluate"])
  names = [s for s in ("general", "validation", "test") if getattr(trial.dataset, s) is not None]
  measures = (*objective.MEASURES, *programs.reward_labels(trial))
  known = [f"{split}_{kind}" for split in names for kind in measures]
  for split in names[-1:]:
    scored = judge.metric_names(options, objective)
    known += [f"{split}_{n}" for n in judge.scoring(scored, getattr(trial.dataset, split))]
  whole, _, task = metric.partition("/")
  if whole not in known:
    silent = not judge.metric_names(options, objective)
    text = "; metrics of text need evaluate.generate=True" if silent else ""
    raise UserError(f"no trial will have the metric {metric!r}; {nearest(metric, known)}{text}")
  tasks = getattr(trial.dataset, whole.partition("_")[0]).tasks
  if task and task not in (known := [*tasks, "mean"] if tasks else []):
    raise UserError(f"no trial will have the metric {metric!r}; {nearest(task, set(known))}")
