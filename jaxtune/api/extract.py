"""Makes a LoRA of the difference between a fine-tuned checkpoint and its base."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from jaxtune import config as configs
from jaxtune import schema
from jaxtune.compose import low_rank
from jaxtune.errors import UserError
from jaxtune.runs.finished import check_free, keep, untrained
from jaxtune.schema import Count
from jaxtune.sweeps import tuning


def extract(config: Any, checkpoint: str, rank: Count, folder: str | Path) -> dict[str, float]:
  """Writes the difference of a fine-tuned checkpoint and its base as a LoRA, in a run's folder.

  The checkpoint's head stays as it is, and so does the order of its classes.

  Args:
    config: an experiment's, whose model is the base; its method is replaced.
    checkpoint: folder of the fine-tuned model.

  Returns:
    {site: share of the difference's squared norm that the rank keeps}.
  """
  schema.check_arguments(extract, {"rank": rank})
  if not os.path.isdir(os.path.expanduser(checkpoint)):
    raise UserError(f"checkpoint is {checkpoint!r}, expected the folder of a fine-tuned model")
  check_free(folder)
  made, kept = low_rank.extract(
    untrained(tuning.stated(configs.to_dict(config)), folder, checkpoint), checkpoint, rank
  )
  keep(made, folder)
  return kept
