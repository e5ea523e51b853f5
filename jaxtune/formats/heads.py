"""The head that was trained together with an adapter, under PyTorch's names."""

from __future__ import annotations

import numpy as np

from jaxtune import peft, tree
from jaxtune.formats import files
from jaxtune.models import hf
from jaxtune.models.heads import is_head


def saved(pretrained: hf.Pretrained, adapted: peft.Adapted) -> tuple[dict, dict]:
  """Returns the weights of the model itself that an adapter's files must hold.

  These are the whole head of a task, and the trained weights of any other head.

  Returns:
    ({path of a leaf: the torch module it is saved with}, {torch name: array}).
  """
  moved = tree.flatten(adapted.tuned["params"])
  flat = tree.flatten(adapted.base) | moved
  task, modules, tensors = pretrained.model.config.head is not None, {}, {}
  for row in files.table(pretrained):
    trained = row.ours in (*moved, *pretrained.fresh) and is_head(row.ours)
    if trained or task and is_head(row.ours, pooler=False):
      leaf = np.asarray(flat[row.ours], np.float32)
      pooler = row.ours.startswith("pooler/")
      modules[row.ours] = "pooler" if pooler else row.theirs.split(".")[0]
      tensors[row.theirs] = np.zeros(row.their_shape(leaf.shape), np.float32)
      row.write(leaf, tensors[row.theirs])
  return modules, tensors
