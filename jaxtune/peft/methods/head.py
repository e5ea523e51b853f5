"""The head of a task: alone, it is a linear probe of the frozen model (Alain & Bengio 2017).

With an objective that needs its own head, the head is trained beside the chosen method, as PEFT's
`modules_to_save` does.
"""

from __future__ import annotations

from jaxtune import peft
from jaxtune.models.heads import is_head


def method(paths: tuple[str, ...] = ()) -> peft.Method:
  """Trains the leaves of the head, and those at `paths`.

  Args:
    paths: paths of further leaves, such as `Pretrained.fresh`, those that a checkpoint lacks
      (besides its head, BERT's pooler).
  """
  return peft.Method(
    "head", trains=lambda path: is_head(path, pooler=False) or path in paths, patterns=("head",)
  )
