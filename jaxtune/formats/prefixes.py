"""The one order in which PEFT and AdapterHub keep the keys and values of a prefix."""

from __future__ import annotations

import numpy as np


def pack(arrays: dict[str, np.ndarray], kept_P: np.ndarray) -> np.ndarray:
  """Returns keys and values, each (L, P, K, H), as their one array (P, L, 2, K, H).

  Args:
    kept_P: the positions that are no padding of a group of trials.
  """
  pair = np.stack([np.asarray(arrays[name])[:, kept_P] for name in ("key", "value")])
  return pair.transpose(2, 1, 0, 3, 4)


def unpack(packed: np.ndarray) -> dict[str, np.ndarray]:
  """Undoes `pack`: returns {"key": (L, P, K, H), "value": (L, P, K, H)}."""
  key, value = packed.transpose(2, 1, 0, 3, 4)
  return {"key": np.ascontiguousarray(key), "value": np.ascontiguousarray(value)}
