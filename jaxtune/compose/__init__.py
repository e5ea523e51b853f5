"""Adapters made of trained adapters: stacked, averaged, merged, cut and taken apart.

Each function takes finished runs over one base and returns a run, which is evaluated, generated
from, exported and trained on as any other. `deltas` works on the change of the weights, whatever
method made it; `low_rank` on LoRA's factors; `mixed` serves several adapters in one batch;
`knockout` measures a stack without each of its parts.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxtune import config, hosts, objectives, peft, schema, tree
from jaxtune.errors import UserError
from jaxtune.models import quantize
from jaxtune.runs.finished import Run
from jaxtune.runs.trial import make_methods


def check_count(count: int) -> None:
  """Raises UserError for fewer adapters than can be composed."""
  if count < 2:
    raise UserError(f"{count} adapters given, expected at least two")


def check_bases(runs: Sequence[Run]) -> None:
  """Raises UserError unless all runs lie over one base and have the same labels."""
  check_count(len(runs))
  first = runs[0].pretrained.params
  for run in runs:
    same = run.pretrained.params is first
    if not same and tree.fingerprint(run.pretrained.params) != tree.fingerprint(first):
      raise UserError(
        f"{run.folder} was trained over another base than {runs[0].folder}: adapters are composed "
        "over one base alone"
      )
    if run.labels != runs[0].labels:
      raise UserError(
        f"{run.folder} has the labels {list(run.labels)}, {runs[0].folder} has "
        f"{list(runs[0].labels)}: expected the same"
      )


def check_weights(weights: Sequence[float] | None, count: int, default: float = 1.0) -> list[float]:
  """Returns one finite weight for each adapter; where none are given, the default for each."""
  if weights is None:
    return [default] * count
  given = list(weights) if hasattr(weights, "__iter__") else weights
  schema.check("weights", given, list[schema.Finite])
  if len(given) != count:
    raise UserError(f"{len(given)} weights for {count} adapters: expected one for each")
  return [float(weight) for weight in given]


def check_mean(weights: Sequence[float] | None, count: int) -> list[float]:
  """Returns one weight for each adapter, as `check_weights`, whose sum is 1."""
  found = check_weights(weights, count, 1 / count)
  if abs(sum(found) - 1) > 1e-6:
    raise UserError(
      f"the weights of an average are {found}, whose sum is {sum(found):g}: expected 1; "
      "'linear' scales what adapters change of the weights"
    )
  return found


def start_of(run: Run) -> Callable[[str], np.ndarray]:
  """Returns (path) -> the weights in fp32 from which the change of a run is counted.

  They are the base's, and 0 where its folder has none: of a new head each run draws its own start.
  """
  base = tree.flatten(quantize.dequantised(run.pretrained.params))

  def start(path: str) -> np.ndarray:
    new = path in run.pretrained.fresh
    return np.zeros(base[path].shape, np.float32) if new else np.asarray(base[path], np.float32)

  return start


def sections(run: Run) -> dict[str, dict]:
  """Returns the config sections of a run's methods by name: one, or those of a stack."""
  return peft.sections(run.config["method"])


def bare(run: Run) -> peft.Adapted:
  """Returns a run's adapted weights without what training alone reads: its loss's, its noise."""
  methods = tuple(m for m in run.adapted.methods if m.name in sections(run))
  own = {method.name for method in methods}
  of_methods = lambda arrays: tree.partition(arrays, lambda path: path.split("/")[-2] in own)[0]
  tuned = run.adapted.tuned | {"peft": of_methods(run.adapted.tuned["peft"])}
  return run.adapted._replace(methods=methods, tuned=tuned, hyper=of_methods(run.adapted.hyper))


def arrays(run: Run) -> dict[str, jax.Array]:
  """Returns {path: array} of what a run lays over its base, under "params", "peft", "hyper"."""
  adapted = bare(run)
  return tree.flatten({**adapted.tuned, "hyper": adapted.hyper})


def calls(run: Run) -> list[tuple]:
  """Lists the methods with their functions; runs of one program have equal lists."""
  plain = lambda f: (f.func, f.args, f.keywords) if isinstance(f, partial) else f
  return [(m.name, m.kind, plain(m.intercept)) for m in bare(run).methods]


def stack(runs: Sequence[Run]) -> Run:
  """Lays several adapters over one base at once: a stack, as if they had been trained together.

  Raises:
    UserError: where two of them train the same weights, or cannot be laid over each other.
  """
  check_bases(runs)
  stacked, deltas, hyper, params = {}, {}, {}, {}
  taken: set[str] = set()  # the weights that runs before have trained
  for run in runs:
    moved = tree.flatten(run.adapted.tuned["params"])
    own = moved.keys() | set().union(
      *(peft.overwritten(m, run.adapted.overlay.arrays_of(m)[0]) for m in run.adapted.methods)
    )
    if twice := sorted(own & taken):
      raise UserError(
        f"{run.folder} and another adapter both trained {twice[0]}: average them, or leave one out"
      )
    taken |= own
    params |= moved
    for name, section in sections(run).items():
      free = (f"{name}_{n}" for n in itertools.count(2))
      new = next(n for n in itertools.chain([name], free) if n not in stacked)
      method = peft.build(section)[0]._replace(name=name)
      renamed = method._replace(name=new)
      stacked[new] = section
      deltas |= peft.by_path(renamed, peft.arrays_of(method, run.adapted.tuned["peft"]))
      hyper |= peft.by_path(renamed, peft.arrays_of(method, run.adapted.hyper))
  tuned = {"params": tree.unflatten(params), "peft": tree.unflatten(deltas)}
  return with_method(
    runs[0], {"name": "stack", **stacked}, peft.Overlay(tuned, tree.unflatten(hyper))
  )


def average(runs: Sequence[Run], weights: Sequence[float] | None = None) -> Run:
  """Averages the trained arrays of adapters of one method and shape, element by element.

  A soup (Wortsman et al. 2022) of methods whose fixed numbers are equal: prefixes, bottleneck
  adapters, whole models. Those of AdaLoRA follow each run's training, so that it has no soup. For
  LoRA the mean of the factors is not the mean of the deltas; see `deltas.combine`.

  Args:
    weights: the weight of each; their sum is 1. By default 1 / n.

  Raises:
    UserError: for adapters of other methods or shapes.
  """
  check_bases(runs)
  weights = check_mean(weights, len(runs))
  for run in runs[1:]:
    check_alike(runs[0], run)
  mean = lambda *leaves: sum(w * x for w, x in zip(weights, leaves, strict=True))
  tuned = jax.tree.map(mean, *(bare(run).tuned for run in runs))
  overlay = peft.Overlay(tuned, runs[0].adapted.hyper)
  return with_method(runs[0], runs[0].config["method"], overlay)


def check_alike(one: Run, other: Run) -> None:
  """Raises UserError unless two adapters have the same arrays and fixed numbers."""
  if calls(one) != calls(other):
    raise UserError(f"{one.folder} and {other.folder} are of different methods, or options of one")
  first, second = arrays(one), arrays(other)
  for path in sorted(first.keys() ^ second.keys()):
    raise UserError(f"{one.folder} and {other.folder} are of different methods: one has no {path}")
  for path, leaf in first.items():
    if leaf.shape != second[path].shape:
      raise UserError(
        f"{path} is {leaf.shape} in {one.folder} and {second[path].shape} in {other.folder}: "
        "expected the same shape"
      )
    numbers = path.startswith("hyper/") and "/rate:" not in path and not path.endswith("/dropout")
    if numbers and not bool(jnp.array_equal(leaf, second[path])):
      raise UserError(f"{path} differs between {one.folder} and {other.folder}: expected the same")


def with_method(run: Run, section: dict, overlay: peft.Overlay) -> Run:
  """Returns a run over the same base with another method and its arrays, without regularisation.

  Its objective's numbers and arrays stay those of `run`. A warning says where its loss compared
  with an adapter that training started from, which the new method has not.
  """
  changed = run.config | {"method": config.complete_method(section)}
  of = lambda method: objectives.references(run.config["objective"], method)
  if (lost := of(run.config["method"])) and not of(changed["method"]) and hosts.primary():
    print(
      f"warning: the loss of {run.folder} compares with {', '.join(lost.values())}, from which its "
      "training started; that of the new adapter compares with the untuned base",
      file=sys.stderr,
    )
  changed["regularize"] = dict.fromkeys(run.config["regularize"], 0.0)
  methods = make_methods(changed, run.pretrained.fresh)
  _, base = peft.split(methods, run.pretrained.params)
  tuned, hyper = _of_objective(run, methods)
  tuned = {
    "params": overlay.tuned.get("params", {}),
    "peft": tree.combine(tuned, overlay.tuned.get("peft", {})),
  }
  owned = {m.name for m in methods} - {"objective"}
  own, _ = tree.partition(overlay.hyper, lambda path: path.split("/")[-2] in owned)
  adapted = peft.Adapted(methods, tuned, tree.combine(hyper, own), base)
  return run._replace(config=changed, adapted=adapted, composed=True)


def _of_objective(run: Run, methods: Sequence[peft.Method]) -> tuple[dict, dict]:
  """Returns what a run's objective (trains, reads): the run's own, or where it has none, new."""
  found = tuple(method for method in methods if method.name == "objective")
  if not found:
    return {}, {}
  own, params = run.adapted, run.pretrained.params
  if "objective" not in {method.name for method in own.methods}:
    own = peft.init(jax.random.key(0), found, peft.find_sites(run.pretrained.model), params)
  trained, fixed = own.overlay.arrays_of(found[0])
  return tuple(tree.unflatten(peft.by_path(found[0], one)) for one in (trained, fixed))
