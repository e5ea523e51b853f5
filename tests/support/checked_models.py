"""Traces every tiny model while the shapes that `jaxtune.models` states are checked at each call.

The checks are put into the modules as they are imported, so this runs in a process of its own.
"""

from __future__ import annotations

import sys
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import install_import_hook

with install_import_hook("jaxtune.models", "beartype.beartype"):
  from jaxtune.models import hf

from support import tiny


def trace(name: str, head: str, segments: bool = False) -> None:
  """Traces a forward pass on shapes, and two steps of decoding where there is a language model."""
  architecture = (tiny.ARCHITECTURES | tiny.DECODERS | tiny.ENCODERS)[name]
  labels = 3 if head in ("classify", "tokens") else None
  outlined = hf.outline(architecture=architecture, head=head, labels=labels)
  model: Any = outlined.model
  tokens, mask = map(jnp.asarray, tiny.batch(side="left"))
  inputs = {} if model.config.encoder is None else {"inputs": tokens[:, 1:]}
  if segments:
    inputs["segments"] = mask.astype(jnp.int32)

  def run(params):
    variables = {"params": params}
    scores = model.apply(variables, tokens, mask, **inputs)
    if head != "lm":
      return scores
    logits, cache = model.apply(variables, tokens, mask, 2, method=model.prefill)
    return model.apply(variables, logits.argmax(-1), cache, method=model.decode)

  jax.eval_shape(run, outlined.params)


if __name__ == "__main__":
  for name in sys.argv[1:]:
    known = hf.family_module(
      (tiny.ARCHITECTURES | tiny.DECODERS | tiny.ENCODERS)[name]["model_type"]
    )
    for head in known.ARCHITECTURES:
      trace(name, head)
  trace("llama", "lm", segments=True)
