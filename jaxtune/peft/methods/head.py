"""The head of a task: alone, it is a linear probe of the frozen model (Alain & Bengio 2017).

With an objective that needs its own head, the head is trained beside the chosen method, as PEFT's
`modules_to_save` does.
"""

from __future__ import annotations

from jaxtyping import Array

from jaxtune import peft
from jaxtune.errors import UserError, nearest
from jaxtune.models.heads import is_head


def method(paths: tuple[str, ...] = ()) -> peft.Method:
  """Trains the leaves of the head, and those at `paths`.

  Args:
    paths: paths of further leaves, such as `Pretrained.fresh`, those that a checkpoint lacks
      (besides its head, BERT's pooler).
  """

  def init(key: Array, sites: dict[str, peft.Site], frozen: peft.Frozen) -> tuple[dict, dict]:
    for path in set(paths) - frozen.leaves.keys():
      raise UserError(f"method.paths has {path!r}; {nearest(path, frozen.leaves)}")
    return {}, {}

  trains = lambda path: is_head(path, pooler=False) or path in paths
  return peft.Method("head", init=init, trains=trains, patterns=("head",))
