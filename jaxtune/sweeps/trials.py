"""Trials as arrays: many runs of one pure function inside one compiled program."""

from __future__ import annotations

from collections.abc import Callable

import jax


def over(function: Callable, chunk: int) -> Callable:
  """Maps function(trial, shared, batch) over the first axis of trial and batch.

  Args:
    function: of one trial's arrays, the arrays that all trials share, and one trial's batch.
    chunk: how many trials run side by side, as one vmap; the chunks follow one another in a loop of
      the same program. 1 suits a CPU, as many as fit suit an accelerator.
  """

  def run(trials, shared, batches):
    count = jax.tree.leaves(trials)[0].shape[0]
    if count == 1:
      squeeze = lambda x: jax.tree.map(lambda leaf: leaf[0], x)
      out = function(squeeze(trials), shared, squeeze(batches))
      return jax.tree.map(lambda leaf: leaf[None], out)
    one = lambda pair: function(pair[0], shared, pair[1])
    if chunk >= count:
      return jax.vmap(one)((trials, batches))
    return jax.lax.map(one, (trials, batches), batch_size=chunk if chunk > 1 else None)

  return run
