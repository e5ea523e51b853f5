"""The singular value decomposition of a product of two factors, without the product."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float


def spectrum(
  a_LIM: Float[np.ndarray, "*L I M"], b_LMO: Float[np.ndarray, "*L M O"]
) -> tuple[Float[np.ndarray, "*L I K"], Float[np.ndarray, "*L K"], Float[np.ndarray, "*L K O"]]:
  """Returns the SVD (u, s, v) of the products a b, of K = min(I, M, O) singular values.

  With a = Q R and b^T = P S, a b = Q (R S^T) P^T: only R S^T, which is M x M, is decomposed.
  """
  (q_a, r_a), (q_b, r_b) = np.linalg.qr(a_LIM), np.linalg.qr(b_LMO.swapaxes(-1, -2))
  u, s, v = np.linalg.svd(r_a @ r_b.swapaxes(-1, -2), full_matrices=False)
  return q_a @ u, s, v @ q_b.swapaxes(-1, -2)
