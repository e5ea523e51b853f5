"""One batch for several adapters: each row is computed with its own, over one base.

The rows' adapters are gathered from a stack (K, ...) and the forward pass is mapped over rows. The
base's weights carry no row axis, so its products stay those of the whole batch; the adapters' own
become batched products, a row's x times the row's a and b (the gathered matrix product of Punica,
Chen et al. 2023), for every method that jaxtune has.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Int, Key

from jaxtune import compose, peft, tree
from jaxtune.errors import UserError
from jaxtune.evaluation import generate
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
  overlay = tree.stack([run.adapted.overlay for run in runs])
  return runs[0].adapted._replace(tuned=overlay.tuned, hyper=overlay.hyper)


def apart(one: Run, other: Run) -> str:
  """Returns why two adapters cannot share a batch, as a text; "" where they can."""
  if compose.calls(one) != compose.calls(other):
    return "they compute different things"
  first, second = compose.arrays(one), compose.arrays(other)
  if lone := first.keys() ^ second.keys():
    return f"{min(lone)} is in one of them alone"
  padded = {method.name: method.padded_axes for method in one.adapted.methods}
  for path, leaf in first.items():
    owner, name = path.split("/")[-2:]
    free = padded.get(owner, {}).get(name, ()) if path.startswith(("peft/", "hyper/")) else ()
    fixed = lambda x, free=free: [n for i, n in enumerate(x.shape, -x.ndim) if i not in free]
    if leaf.ndim != second[path].ndim or fixed(leaf) != fixed(second[path]):
      return f"{path} is {leaf.shape} in one and {second[path].shape} in the other"
  return ""


def map_rows(call: Callable, adapted: peft.Adapted, which_B: ArrayLike, *rows: Any) -> Any:
  """Maps call(weights with adapter which_B[i], row i of each of `rows`) over all rows.

  Args:
    adapted: with `tuned` and `hyper` of K adapters, as `together` returns them.
    which_B: (B,) of 0 ... K - 1; traced or not.
    *rows: arrays (B, ...).
  """
  one = lambda tuned, hyper, *row: call(adapted._replace(tuned=tuned, hyper=hyper), *row)
  pick = lambda stacked: jax.tree.map(lambda x: x[which_B], stacked)
  return jax.vmap(one)(pick(adapted.tuned), pick(adapted.hyper), *rows)


def complete(
  model: nn.Module,
  adapted: peft.Adapted,
  which_B: ArrayLike,
  prompts_BT: ArrayLike,
  mask_BT: ArrayLike,
  *,
  key: Key[Array, ""],
  **options: Any,
) -> Int[Array, "B new"]:
  """Continues row i with adapter which_B[i]; see `generate.generate` for the rest."""

  def row(one, prompt_T, mask_T, key):
    return generate.generate(model, one, prompt_T[None], mask_T[None], key=key, **options)[0]

  keys_B = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(len(which_B)))
  return map_rows(row, adapted, which_B, prompts_BT, mask_BT, keys_B)
