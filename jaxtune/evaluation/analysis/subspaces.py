"""How far changes of weights share subspaces: between ranks, methods and seeds."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

MOST_COMPARED = 24  # configurations
_MOST_PAIRS = 6  # of trials, of two configurations
DIMENSIONS = (1, 2, 4, 8, 16)  # of subspaces, up to `changes.DIRECTIONS`

# {key of a matrix: `Spectrum.directions`}; matrices with one key are compared.
Directions = Mapping[Any, tuple[np.ndarray, np.ndarray]]


def similarity(
  a_LIM: Float[np.ndarray, "L I M"], b_LIN: Float[np.ndarray, "L I N"]
) -> Float[np.ndarray, "L M N"]:
  """Returns phi(A, B, i, j) = |A_i^T B_j|^2 / min(i, j) for all i and j (Hu et al. 2021, eq. 4).

  A_i are the first i of A's columns, which are orthonormal; the norm is Frobenius'. phi is 1 if the
  smaller subspace lies in the larger one, and 0 if they are orthogonal. It is the normalised
  projection metric on the Grassmann manifold.
  """
  overlaps_LMN = (a_LIM.swapaxes(-1, -2) @ b_LIN) ** 2
  sums_LMN = overlaps_LMN.cumsum(-1).cumsum(-2)
  i_M1, j_1N = (np.arange(1, n + 1) for n in overlaps_LMN.shape[1:])
  return sums_LMN / np.minimum(i_M1[:, None], j_1N[None])


def random_similarity(size: int, i: int, j: int) -> float:
  """Returns the mean of phi for random subspaces of i and j dimensions out of `size`.

  Each of the i j squared inner products of unit vectors has the mean 1 / size.
  """
  return max(i, j) / size


def compare(
  rows: Sequence[Sequence[str]], seeds: Mapping[str, int], directions: Mapping[str, Directions]
) -> list[dict]:
  """Compares the subspaces of configurations, of the first `MOST_COMPARED` that change matrices.

  Args:
    rows: the trials of each configuration.

  Returns:
    For each pair, and each configuration with itself where it has two trials: {"a", "b": their
    trials; "seeds": "different", or "the same" where no two trials differ in it; "inputs" and
    "outputs": {"similarity", "random"}, phi of i and j dimensions of `dimensions`, as lists (i, j),
    the mean over layers, modules and pairs of trials, and its mean for random subspaces}. With the
    same seed, directions of inputs may be alike because both trials started from the same ones.
  """
  rows = [row for row in rows if any(directions[name] for name in row)][:MOST_COMPARED]
  found = []
  for one, other in itertools.combinations_with_replacement(rows, 2):
    pairs = [*(itertools.combinations(one, 2) if one is other else itertools.product(one, other))]
    apart = [pair for pair in pairs if seeds[pair[0]] != seeds[pair[1]]]
    pairs = (apart or pairs)[:_MOST_PAIRS]
    sides = [_mean([(directions[a], directions[b]) for a, b in pairs], side) for side in (0, 1)]
    if pairs and all(sides):
      found.append({"a": [*one], "b": [*other], "seeds": "different" if apart else "the same",
                    "dimensions": DIMENSIONS, "inputs": sides[0], "outputs": sides[1]})  # fmt: skip
  return found


def _mean(pairs: Sequence[tuple[Directions, Directions]], side: int) -> dict[str, Any]:
  """Returns {"similarity", "random"} of one side; {} where two changes share no matrix."""
  dims = np.asarray(DIMENSIONS)
  found, random = [], []
  for a, b in pairs:
    for path in a.keys() & b.keys():
      phi_LMN = similarity(a[path][side], b[path][side])
      padded = np.full((len(phi_LMN), dims[-1], dims[-1]), np.nan)
      padded[:, : phi_LMN.shape[1], : phi_LMN.shape[2]] = phi_LMN
      found.extend(padded[:, dims[:, None] - 1, dims[None] - 1])
      size = len(a[path][side][0])
      random.append([[random_similarity(size, i, j) for j in dims] for i in dims])
  known = ~np.isnan(found)
  if not known.any():
    return {}
  total, count = np.where(known, found, 0).sum(0), known.sum(0)
  mean = np.where(count, total / np.maximum(count, 1), np.nan)
  return {"similarity": mean, "random": np.mean(random, 0)}
