"""BitFit: only the bias vectors are trained (Ben Zaken et al. 2022)."""

from __future__ import annotations

from jaxtune import peft


def method() -> peft.Method:
  """Trains every bias of the model. A model without biases is refused by the target plan."""
  return peft.Method(
    "bitfit",
    moves=lambda path: path.endswith("/bias"),
    merge=lambda params, trained, fixed: params,
    patterns=("bias",),
  )
