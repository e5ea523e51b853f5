"""A stack without one of its methods, to measure what that method contributes."""

from __future__ import annotations

from jaxtune import compose, peft, tree
from jaxtune.errors import UserError
from jaxtune.runs.finished import Run


def without(run: Run, name: str) -> Run:
  """Returns a run as it would be without one of its methods, with the others' arrays as they are.

  Weights that only this method trained in place get the base's values again.
  """
  known = compose.sections(run)
  if name not in known:
    raise UserError(f"{run.folder} has no method {name!r}; its methods are {', '.join(known)}")
  methods = tuple(m for m in run.adapted.methods if m.name != name)
  moved, base = peft.split(methods, run.pretrained.params)
  trained, _ = tree.partition(run.adapted.tuned["params"], tree.flatten(moved).__contains__)
  tuned = run.adapted.tuned | {"params": trained}
  adapted = run.adapted._replace(methods=methods, base=base, tuned=tuned)
  return run._replace(adapted=adapted, composed=True)


def removable(run: Run) -> list[str]:
  """Lists the methods that can be left out.

  Raises:
    UserError: for a single method, without which only the base is left.
  """
  names = list(compose.sections(run))
  if len(names) < 2:
    raise UserError(
      f"{run.folder} has one method, {names[0]}: without it there is the base, beside which "
      "`jaxtune evaluate` puts every run"
    )
  return names
