"""Log-probabilities that answers have before training, for objectives that compare with them.

The reference is the frozen base, with the adapter that training starts from (`method.start`), if
any. It is run over the data once, before training, and what it says becomes an array of the data:
so a step needs no second forward pass, and no second model is in the memory.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from jaxtune import data, files, libraries, peft, sharding, tree
from jaxtune.errors import UserError
from jaxtune.evaluation import judge
from jaxtune.evaluation.options import EvaluateOptions
from jaxtune.files import expanded
from jaxtune.objectives import Batch, Forward, Sums, choices
from jaxtune.runs import programs
from jaxtune.runs.first_state import first_state
from jaxtune.runs.trial import Trial
from jaxtune.training import step


def added(trials: Sequence[Trial], parallel: sharding.Parallel | None = None) -> list[Trial]:
  """Returns the trials, whose data now have the reference's log-probabilities where they need them.

  They are kept in `train.compilation_cache`, under a hash of the base, the adapter, the texts and
  the version of jaxtune.

  Args:
    parallel: the layout of the devices; default that of training, `train.mesh`.
  """
  known: dict[tuple, data.Data] = {}
  completed = []
  for trial in trials:
    if not getattr(trial.objective, "REFERENCE", False):
      completed.append(trial)
      continue
    starts = tuple(str(method.start) for method in trial.methods if method.start is not None)
    key = (id(trial.dataset), starts)
    if key not in known:
      known[key] = _completed(trial, parallel)
    completed.append(trial._replace(dataset=known[key]))
  return completed


def _completed(trial: Trial, parallel: sharding.Parallel | None) -> data.Data:
  """Fills in "reference" of a trial's splits."""
  options = trial.config["train"]
  parallel = parallel or sharding.make(options["parallel"], options["mesh"])
  started, overlay, base = _start(trial)
  program = programs.make_program(trial)._replace(objective=_scored, methods=started)
  evaluator = judge.make(
    program, trial.objective, EvaluateOptions(**trial.config["evaluate"]), parallel=parallel,
    chunk=1, tokenizer=None,
  )  # fmt: skip
  stacked = jax.tree.map(lambda x: x[None], overlay)
  base = parallel.put(base)
  found = {}
  for name, split in trial.dataset.splits.items():
    path = _cache(options["compilation_cache"], trial, overlay, split)
    shape, reference_X2 = (split.examples, 2), _kept(path)
    if reference_X2 is None or reference_X2.shape != shape:
      (rows,) = judge.measure(evaluator, stacked, base, [split])
      reference_X2 = rows["answers"]
      _keep(path, reference_X2)
    found[name] = split._replace(arrays=split.arrays | {"reference": reference_X2})
  return trial.dataset._replace(**found)


def before(
  trials: Sequence[Trial], base: PyTree, parallel: sharding.Parallel
) -> tuple[tuple[peft.Method, ...], peft.Overlay, PyTree]:
  """Returns how to run the model of a group of trials as it is before training.

  Args:
    base: the group's frozen base, on the devices; only the leaves that it lacks take new memory.

  Returns:
    (methods, the overlays of all trials, the weights under them).
  """
  methods, overlays, bases = zip(*map(_start, trials), strict=True)
  held, known = tree.flatten(base), tree.flatten(bases[0])
  missing = parallel.put(tree.unflatten({p: x for p, x in known.items() if p not in held}))
  weights = {path: held[path] for path in known if path in held} | tree.flatten(missing)
  return methods[0], parallel.put(tree.stack(list(overlays)), "trial"), tree.unflatten(weights)


def _start(trial: Trial) -> tuple[tuple[peft.Method, ...], peft.Overlay, PyTree]:
  """Returns the methods that begin with a trained adapter, their overlay, and the base under it."""
  methods = tuple(method for method in trial.methods if method.start is not None)
  if not methods:
    nothing = peft.Overlay({"params": {}, "peft": {}}, {"untuned": jnp.zeros(())})
    return (), nothing, trial.pretrained.params
  state, base = first_state(trial)
  fixed = {path: x for path, x in state.hyper.items() if path != "loss"}  # the objective's own
  return methods, peft.Overlay(state.tuned, fixed), base


def _scored(forward: Forward, batch: Batch) -> tuple[Float[Array, " B"], Sums]:
  """Returns log p of both answers as the sums of a row."""
  sums_B2, _ = choices.log_probabilities(forward, batch)
  return sums_B2.sum(1), {"answers": sums_B2}


def _cache(
  folder: str | None, trial: Trial, overlay: peft.Overlay, split: data.Split
) -> Path | None:
  """Returns the file for what the reference says of a split; None where nothing is kept.

  Its name is equal only for the same base (its weights, its config.json and the code that runs it),
  adapter, inputs of the model and weights of tokens. Processes of several hosts, whose folders may
  differ, keep nothing.
  """
  if folder is None or jax.process_count() > 1:
    return None
  digest = hashlib.sha256(trial.fingerprint.encode())
  code = libraries.versions("jaxtune", "jax"), libraries.commit()
  digest.update(repr((trial.config["model"], trial.pretrained.model.config, code)).encode())
  for x in jax.tree.leaves(overlay):
    digest.update(np.asarray(x).tobytes())
  for name in (*step.INPUTS, "weights"):
    if name in split.arrays:
      digest.update(split.arrays[name].tobytes())
  return expanded(folder) / "reference" / f"{digest.hexdigest()[:32]}.npy"


def _kept(path: Path | None) -> np.ndarray | None:
  """Reads a kept array; None where there is none, or one that cannot be read."""
  try:
    return np.load(path, allow_pickle=False) if path and path.exists() else None
  except (OSError, ValueError, EOFError):
    return None


def _keep(path: Path | None, array: np.ndarray) -> None:
  if path is not None:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    with contextlib.suppress(UserError):  # a folder that cannot be written
      files.write_atomically(path, buffer.getvalue())
