"""Makes a run of an adapter in PEFT's or AdapterHub's format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax.numpy as jnp

from jaxtune import compose, formats, peft, tree
from jaxtune import config as configs
from jaxtune.errors import UserError
from jaxtune.models import heads
from jaxtune.runs.finished import Run, check_free, keep, untrained
from jaxtune.sweeps import tuning


def import_adapter(config: Any, adapter: str | Path, folder: str | Path) -> Run:
  """Reads an adapter in PEFT's or AdapterHub's format and writes it as a run's folder.

  The run can be evaluated, generated from, composed and exported, and trained on with
  `method.start`.

  Args:
    config: an experiment's, whose model is the adapter's base; its method is replaced.
    adapter: folder of the adapter.

  Raises:
    UserError: also for an adapter that has trained weights of the base which no method here does,
      where data.labels has the names of its head in another order, and where nothing names them.
  """
  check_free(folder)
  formats.check_folder(adapter)
  run = lay(untrained(tuning.stated(configs.to_dict(config)), folder), adapter)
  keep(run, folder)
  return run


def lay(run: Run, adapter: str | Path) -> Run:
  """Returns a run over the same base with the adapter of a folder laid over it.

  What a run trains of the base and an adapter has left as it was, such as all of ModernBERT's head
  but its last layer, is the base's.
  """
  imported = formats.read(adapter, run.pretrained)
  labels = run.config["data"]["labels"]
  heads.check_order(labels or (), imported.labels, adapter)
  formats.check_named(imported, run.pretrained, labels, run.labels, adapter)
  overlay = formats.adapt(imported, run.pretrained).overlay
  made = compose.with_method(run, imported.section, overlay)
  own = tree.flatten(peft.split(made.adapted.methods, run.pretrained.params)[0])
  if beyond := sorted(imported.params.keys() - own.keys()):
    name = imported.section["name"]
    raise UserError(
      f"{adapter} has trained {beyond[0]} of the base too, which a run with the method {name!r} "
      "does not: merge the adapter in PyTorch (merge_and_unload), and give that as model.path"
    )
  params = {path: jnp.asarray(imported.params.get(path, x), jnp.float32) for path, x in own.items()}
  tuned = made.adapted.tuned | {"params": tree.unflatten(params)}
  labels = tuple(imported.labels) or run.labels
  return made._replace(adapted=made.adapted._replace(tuned=tuned), labels=labels)
