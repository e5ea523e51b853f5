"""Makes a run of an adapter in PEFT's or AdapterHub's format."""

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
  imported = formats.read(adapter, run.pretrained)
  overlay = formats.adapt(imported, run.pretrained).overlay
  run = compose.with_method(run, imported.section, overlay)
  run = run._replace(labels=tuple(imported.labels) or run.labels)
  keep(run, folder)
  return run
