"""What is minimised. An objective is one module here, found by its name in the config.

Its data:
  read(table, name, options): rows of the split `name` to a `reading.Reading` of examples.
  encode(tokenizer, examples, options): examples to (Split, counts); see `data.encode`.
  VIEW: how `jaxtune show` lays its examples out; one of `data.views`.

Its model and its loss:
  HEAD: the head that the model needs, as `models.heads` names it ("lm", "classify", ...).
  loss(forward, batch, **options): sums of each row, (losses (B,), {"weight": (B,), ...}).

Its evaluation:
  MEASURES: what its losses say of a split: "loss", "perplexity", "accuracy" (of targets, in %).
  KIND: what its predictions are, of `metrics.KINDS`: "text", "label", "number" or "tags".
  METRICS: names of the metrics that its predictions are judged by.
  predict(forward, batch), decode(dataset, split, arrays): arrays (B, ...), and from them what each
    example is predicted to be. An objective without them is judged by the text it generates.
  references(dataset, split): what each example truly is.

`forward(batch)` is the model with its methods, on the inputs that the batch holds.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxtune.errors import check_known

Batch = dict[str, Array | np.ndarray]
Forward = Callable[[Batch], Array]
Sums = dict[str, Float[Array, " B"]]  # by name, of each row


def module(name: str) -> ModuleType:
  """Imports an objective by name, or says which there are."""
  known = [m.name for m in pkgutil.iter_modules(__path__)]
  check_known("objective", name, known)
  return importlib.import_module(f"jaxtune.objectives.{name}")


def cross_entropy(
  logits: Float[Array, "*rows C"], targets: Int[Array, "*rows"], label_smoothing: float = 0.0
) -> tuple[Float[Array, "*rows"], Bool[Array, "*rows"]]:
  """Scores logits against target classes: (losses in nats, whether the argmax is right).

  With `label_smoothing` s, a share s of the target's probability is spread evenly over all C
  classes (Szegedy et al. 2016).
  """
  classes = jnp.arange(logits.shape[-1]).reshape(*[1] * targets.ndim, -1)
  picked = jnp.sum(jnp.where(targets[..., None] == classes, logits, 0.0), -1)
  partition = jax.nn.logsumexp(logits, -1)
  losses = partition - picked
  if label_smoothing:
    losses = partition - (1 - label_smoothing) * picked - label_smoothing * logits.mean(-1)
  return losses, logits.argmax(-1) == targets
