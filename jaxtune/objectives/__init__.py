"""What training minimises. An objective is one module here, found by its name in the config.

Its data:
  read(table, name, options): makes a `reading.Reading`, examples, of the rows of the split `name`.
  encode(tokenizer, examples, options): makes (Split, counts) of examples; see `data.encode`.
  VIEW: how `jaxtune data show` lays its examples out; one of `data.views`.

Its model and its loss:
  HEAD: the head that the model needs, as `models.heads` names it ("lm", "classify", ...).
  loss(forward, batch, **options): sums for each row, (losses (B,), {"weight": the weights of its
    targets, "correct": the weights of those that the model gets right}, each (B,)). Further sums
    can be MEASURES. One that is not of all rows has weights of its own: of "up", "weight_up".
  common(forward, batch, **numbers): sums of each row, (B,) by name, whose totals over all rows of a
    batch the loss reads from `batch`, where it is given a part of these rows; see `step.informed`.
  NUMBERS: options of the loss that are arrays, so that trials that differ in them share a program.
  init(width): arrays that are trained beside the methods, by the names under which `loss` takes
    them, for a model whose states have so many numbers; an objective without them lacks it.
  ROLLOUT: whether its answers are drawn while it is trained; see `runs.rollouts`. Then also
    observe(forward, batch, temperature): what is to be known of answers before they are learnt
    from, (R, S, n) by name; learn(sampled, **options): the further arrays of their batches.
  adapt(numbers, metrics): its NUMBERS after an update with these metrics; without it they stay.
  LOGGED: sums that are logged in training, divided by that of the weights.
  REFERENCE: whether its batches hold "reference", the log-probabilities that the answers have
    before training; see `runs.reference`.

Its evaluation:
  MEASURES: what its losses say of a split: "loss", "perplexity", "accuracy" (of targets, in %), or
    the name of another sum, which is divided by that of its weights.
  METRICS: names of the metrics that its predictions are judged by, all of one of `metrics.KINDS`.
  predict(forward, batch): the arrays that predictions are read from, (B, ...) by name.
  decode(dataset, split, arrays): the prediction for each example, read from these arrays. An
    objective without `predict` and `decode` is judged by the text that the model generates.
  references(dataset, split): the true answer to each example, in the form of the predictions.

`forward(batch)` is the model with its methods, on the inputs that the batch holds. A language model
also takes `score` and `targets`, which its logits are given to a part at a time.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from jaxtune.errors import check_known

Batch = dict[str, Array | np.ndarray]
Forward = Callable[..., Any]
Sums = dict[str, Float[Array, " B"]]  # by name, of each row


def module(name: str) -> ModuleType:
  """Imports an objective by its name.

  Raises:
    UserError: an unknown name, with the nearest.
  """
  known = [m.name for m in pkgutil.iter_modules(__path__)]
  check_known("objective", name, known)
  return importlib.import_module(f"jaxtune.objectives.{name}")


def arrays(name: str, width: int) -> dict[str, Array]:
  """Returns the arrays that an objective trains itself; see `init` above."""
  init = getattr(module(name), "init", None)
  return {} if init is None else init(width)


def supplied(name: str) -> set[str]:
  """Returns the arguments of an objective's loss that no config sets."""
  return {"forward", "batch", *arrays(name, 1)}


def numbers(section: dict) -> dict[str, float]:
  """Returns the options of a config's section that are arrays of a trial."""
  return {name: section[name] for name in getattr(module(section["name"]), "NUMBERS", ())}


def rolls_out(objective: Any) -> bool:
  """Says whether an objective, given its module, learns from answers that the model draws."""
  return getattr(objective, "ROLLOUT", False)


def judged_by(section: dict) -> dict[str, float]:
  """Returns those of them that change what a model scores: answers are judged by rewards alone."""
  return {} if rolls_out(module(section["name"])) else numbers(section)


def losses_of(section: dict, rollout: dict, method: dict) -> dict[str, Any]:
  """Returns the options that say which function a loss is, by their paths in the config.

  A policy's is minus the weighted sum of its rewards, whatever it learns by. Label smoothing is of
  training alone.

  Args:
    section, rollout, method: the config's sections `objective`, `rollout` and `method`.
  """
  if not rolls_out(module(section["name"])):
    own = {f"objective.{key}": x for key, x in section.items() if key != "label_smoothing"}
    return own | references(section, method)
  names = [*rollout.get("rewards", ())]
  weights = rollout.get("weights") or [1.0] * len(names)
  return {"rollout.rewards": names, "rollout.weights": [*map(float, weights)]}


def references(section: dict, method: Mapping[str, Any], path: str = "method") -> dict[str, str]:
  """Returns the adapters with which a loss compares, {path in the config: folder}.

  They are those that training starts from, where an objective has a REFERENCE.

  Args:
    section: the config's section `objective`.
    method: its section `method`, with parts as sections of their own or by their paths.
  """
  found: dict[str, str] = {}
  for key, value in method.items() if hasattr(module(section["name"]), "REFERENCE") else ():
    if isinstance(value, Mapping):
      found |= references(section, value, f"{path}.{key}")
    elif f".{key}".endswith(".start") and value is not None:
      found[f"{path}.{key}"] = str(value)
  return found


def static(section: dict) -> dict[str, Any]:
  """Returns the other options, which are compiled into a program, with the name."""
  return {key: value for key, value in section.items() if key not in numbers(section)}


def counted(batch: Batch) -> Float[Array, " B"]:
  """Returns 1 for each pair of answers that counts, 0 for one without a weight and for a tie."""
  real_B = (batch["weights"].sum((1, 2)) > 0) & (batch["difference"] > 0)
  return real_B.astype(jnp.float32)


def preferred(
  losses_B: Float[Array, " B"], scores_B2: Float[Array, "B 2"], batch: Batch
) -> tuple[Float[Array, " B"], Sums]:
  """Returns the sums of an objective for pairs of answers, the chosen one first.

  Args:
    losses_B: in nats.
    scores_B2: of both answers; a pair is right if the chosen one's is larger, and half right if
      they are equal.

  Returns:
    (losses, {"weight": 1 of real rows, "correct", "margin": the difference of the scores, "chosen"
    and "rejected": the scores}), each (B,) and 0 where a row has no weight, or is a tie.
  """
  real_B = counted(batch)
  margin_B = scores_B2[:, 0] - scores_B2[:, 1]
  sums = {
    "weight": jnp.ones_like(real_B),
    "correct": (1.0 + jnp.sign(margin_B)) / 2,
    "margin": margin_B,
    "chosen": scores_B2[:, 0],
    "rejected": scores_B2[:, 1],
  }
  return losses_B * real_B, {name: x * real_B for name, x in sums.items()}


def weigh(
  losses: Float[Array, "B ..."], correct: Shaped[Array, "B ..."], weights: Float[Array, "B ..."]
) -> tuple[Float[Array, " B"], Sums]:
  """Adds up the losses of each row and its targets that are right, times their weights."""
  total = lambda x: x.sum(tuple(range(1, x.ndim)))
  return total(losses * weights), {"weight": total(weights), "correct": total(correct * weights)}


def cross_entropy(
  logits: Float[Array, "*rows C"], targets: Int[Array, "*rows"], label_smoothing: float = 0.0
) -> tuple[Float[Array, "*rows"], Bool[Array, "*rows"]]:
  """Returns the losses of target classes in nats, and for each whether it has the largest logit.

  Of classes with the same logit the first one counts as the largest, as for argmax.
  With `label_smoothing` s, a share s of the target's probability is spread evenly over all C
  classes (Szegedy et al. 2016).
  """
  classes = jnp.arange(logits.shape[-1]).reshape(*[1] * targets.ndim, -1)
  targets = targets[..., None]
  picked = jnp.sum(jnp.where(targets == classes, logits, 0.0), -1)
  partition = jax.nn.logsumexp(logits, -1)
  losses = partition - picked
  if label_smoothing:
    losses = partition - (1 - label_smoothing) * picked - label_smoothing * logits.mean(-1)
  # A CPU does not vectorise argmax: experiments/speed.
  smaller = (logits < picked[..., None]) | ((logits == picked[..., None]) & (classes >= targets))
  return losses, smaller.all(-1)
