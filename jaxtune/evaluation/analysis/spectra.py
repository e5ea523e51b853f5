"""Measures of how weights change: size, effective rank, and which directions are amplified."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float

from jaxtune.evaluation.analysis.changes import DIRECTIONS, Change, Spectrum

_SHOWN = 64  # singular values that are kept


def effective_rank(s_LM: Float[np.ndarray, "L M"]) -> Float[np.ndarray, " L"]:
  """Returns exp of the entropy of the singular values' shares, 0 for no change.

  Roy & Vetterli 2007, "The effective rank: a measure of effective dimensionality", definition 1.
  """
  shares = s_LM / np.maximum(s_LM.sum(-1, keepdims=True), 1e-30)
  entropy = -(shares * np.log(np.maximum(shares, 1e-30))).sum(-1)
  return np.where(s_LM.any(-1), np.exp(entropy), 0.0)


def of_matrix(change: Change, spectrum: Spectrum, base_squares: np.ndarray) -> dict[str, Any]:
  """Measures the change of a matrix, with an entry for each layer.

  Args:
    base_squares: from `largest_squares` of the base's matrix.
  """
  s_LM = spectrum.s
  return {
    "shape": list(change.base.shape[1:]),
    "singular_values": s_LM[:, :_SHOWN],
    "effective_rank": effective_rank(s_LM),
    "spectral": s_LM[:, 0],
    **_sizes(np.sqrt((s_LM * s_LM).sum(-1)), change.base),
    "amplification": amplification(change.base, spectrum, base_squares),
  }


def of_vector(change: Change) -> dict[str, Any]:
  """Measures the change of a bias or a scale, with an entry for each layer."""
  return _sizes(_norm(change.delta), change.base)


def _norm(x: np.ndarray) -> np.ndarray:
  return np.sqrt((x * x).sum(tuple(range(1, x.ndim))))


def _sizes(size_L: np.ndarray, base: np.ndarray) -> dict[str, np.ndarray]:
  """Returns Frobenius norms; "relative" is infinite, None in JSON, where the base is zero."""
  base_L = _norm(base)
  with np.errstate(divide="ignore", invalid="ignore"):
    relative_L = np.where(size_L > 0, size_L / base_L, 0.0)
  return {"frobenius": size_L, "base": base_L, "relative": relative_L}


def largest_squares(w_LIO: Float[np.ndarray, "L I O"]) -> Float[np.ndarray, "L M"]:
  """Returns the squares of a matrix' singular values, the largest first, at most `DIRECTIONS`."""
  tall_LIO = w_LIO.astype(np.float64)
  if tall_LIO.shape[1] < tall_LIO.shape[2]:
    tall_LIO = tall_LIO.swapaxes(1, 2)
  squares_LM = np.linalg.eigvalsh(tall_LIO.swapaxes(1, 2) @ tall_LIO)
  return np.maximum(squares_LM[:, ::-1][:, :DIRECTIONS], 0)


def amplification(
  w_LIO: Float[np.ndarray, "L I O"], spectrum: Spectrum, base_squares: Float[np.ndarray, "L _"]
) -> dict[str, list]:
  """Compares the change with the base in the change's own directions (Hu et al. 2021, table 7).

  With U and V the r largest directions of the change dW, at most `DIRECTIONS`, |U^T W V| says how
  much of the base lies in them. "update" is that norm, "base" the same for W's own r largest
  directions, and "random" its root mean square for random ones, r |W| / sqrt(I O). "factor" is
  |dW_r| / |U^T W V|. All are None where nothing changes.
  """
  names = ("directions", "update", "base", "random", "factor")
  found: dict[str, list] = {name: [] for name in names}
  for layer, rank in enumerate(spectrum.ranks):
    r, w_IO = min(rank, DIRECTIONS), w_LIO[layer]
    u_Ir, s_r, v_rO = spectrum.u[layer, :, :r], spectrum.s[layer, :r], spectrum.v[layer, :r]
    inside = float(np.linalg.norm(u_Ir.T @ w_IO @ v_rO.T))
    of_base = float(np.sqrt(base_squares[layer, :r].sum()))
    random = r * float(np.linalg.norm(w_IO)) / w_IO.size**0.5
    factor = float(np.linalg.norm(s_r)) / inside if inside else None
    row = (r, inside, of_base, random, factor) if r else (0, None, None, None, None)
    for name, value in zip(names, row, strict=True):
      found[name].append(value)
  return found
