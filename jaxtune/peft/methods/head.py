"""The head of a task: by itself, a linear probe of the frozen model (Alain & Bengio 2017).

Every objective that needs a head of its own trains it beside its method, as PEFT's
`modules_to_save` does.
"""

from __future__ import annotations

from jaxtune import peft
from jaxtune.models.heads import is_head


def method(paths: tuple[str, ...] = ()) -> peft.Method:
  """Trains the leaves of the head, and those at `paths`.

  Args:
    paths: such as `Pretrained.fresh`: what a checkpoint lacks besides its head (BERT's pooler).
  """
  return peft.Method(
    "head",
    moves=lambda path: is_head(path, pooler=False) or path in paths,
    patterns=("head",),
  )
