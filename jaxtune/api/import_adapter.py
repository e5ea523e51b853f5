"""Finished adapters: loaded together, composed, imported from other libraries and exported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jaxtune import compose, formats
from jaxtune.runs.finished import Run, check_free, keep, untrained


def import_adapter(config: Any, adapter: str | Path, folder: str | Path) -> Run:
  """Reads an adapter in PEFT's or AdapterHub's format and writes it as a run's folder.

  The run can be evaluated, generated from, composed and exported, and trained on with
  `method.start`.

  Args:
    config: an experiment's, whose model is the adapter's base; its method is replaced.
    adapter: folder of the adapter.
  """
  check_free(folder)
  run = untrained(config, folder)
  found = formats.read(adapter, run.pretrained)
  overlay = formats.adapt(found, run.pretrained).overlay
  run = compose.remade(run, found.section, overlay)
  run = run._replace(labels=tuple(found.labels) or run.labels)
  keep(run, folder)
  return run
