"""One stack of several adapters over one base, of which each row of a batch has its own.

`evaluation.decoding` computes such batches.
"""

from __future__ import annotations

from collections.abc import Sequence

from jaxtune import compose, peft, tree
from jaxtune.errors import UserError
from jaxtune.runs.finished import Run


def together(runs: Sequence[Run]) -> peft.Adapted:
  """Stacks the arrays of K adapters of one kind along a first axis, their sizes padded.

  Raises:
    UserError: for adapters of different kinds, whose calls are different programs, or whose arrays
      differ along an axis that their method cannot pad.
  """
  compose.check_bases(runs)
  described = lambda run: f"{run.folder} ({' + '.join(compose.sections(run))})"
  for run in runs[1:]:
    if reason := apart(runs[0], run):
      raise UserError(
        f"{described(run)} and {described(runs[0])} are of different methods, options or targets "
        f"({reason}): one batch holds adapters of one kind; give the others a batch of their own"
      )
  overlay = tree.stack([compose.bare(run).overlay for run in runs])
  return compose.bare(runs[0])._replace(tuned=overlay.tuned, hyper=overlay.hyper)


def apart(one: Run, other: Run) -> str:
  """Returns why two adapters cannot share a batch, as a text; "" where they can."""
  if compose.calls(one) != compose.calls(other):
    return "they compute different things"
  first, second = compose.arrays(one), compose.arrays(other)
  if lone := first.keys() ^ second.keys():
    return f"{min(lone)} is in one of them alone"
  padded = {method.name: method.padded_axes for method in compose.bare(one).methods}
  for path, leaf in first.items():
    owner, name = path.split("/")[-2:]
    free = padded.get(owner, {}).get(name, ()) if path.startswith(("peft/", "hyper/")) else ()
    fixed = lambda x, free=free: [n for i, n in enumerate(x.shape, -x.ndim) if i not in free]
    if leaf.ndim != second[path].ndim or fixed(leaf) != fixed(second[path]):
      return f"{path} is {leaf.shape} in one and {second[path].shape} in the other"
  return ""
