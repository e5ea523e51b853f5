"""Last layers: the weights of the last k layers are trained, all below stay frozen.

Lee et al. 2019, "What Would Elsa Do? Freezing Layers During Transformer Fine-Tuning": training a
quarter of the layers reaches about 90 % of the quality of full fine-tuning.
"""

from __future__ import annotations

from functools import partial

from jaxtyping import Array

from jaxtune import peft
from jaxtune.errors import UserError
from jaxtune.schema import Count


def method(layers: Count = 1, norm: bool = False, encoder: bool = False) -> peft.Method:
  """Trains every weight of the last layers of a decoder, or of an encoder that stands alone.

  Args:
    layers: k, the number of layers that are trained; at most the model's. They must not be
      quantised.
    norm: whether the final norm is trained too; the model must then have one.
    encoder: whether the last k layers (and final norm) of an encoder-decoder's encoder are trained
      too.

  The trained arrays (k, ...) are fp32, and are merged in fp32. The forward pass reads them in the
  stored type of the stack (L, ...), so changes smaller than its rounding show only once they add
  up. A training step runs the backward pass through k layers alone, unless another method trains
  something below them. Generation writes the arrays into the stack, so that each trial then has a
  stack of its own in memory.
  """
  return peft.Method(
    "last_layers",
    init=partial(_init, layers=layers, norm=norm, encoder=encoder),
    overwrite=_overwrite,
    lowest=lambda depth: depth - layers,
    patterns=(".*",),
    options=dict(layers=layers, norm=norm, encoder=encoder),
  )


def _init(
  key: Array, sites: dict[str, peft.Site], frozen: peft.Frozen, *,
  layers: int, norm: bool, encoder: bool,
) -> tuple[peft.Arrays, peft.Arrays]:  # fmt: skip
  trunks = [path for path, site in sites.items() if site.kind == "Trunk"]
  if "decoder" in trunks:
    trunks = ["encoder", "decoder"] if encoder else ["decoder"]
  flat = {}
  for trunk in trunks:
    stack = _under(f"{trunk}/layers/", frozen)
    depth = next(iter(stack.values())).shape[0]
    if layers > depth:
      raise UserError(f"method.layers is {layers}, but {trunk} has {depth}: expected at most that")
    flat |= {path: frozen.weight(path)[depth - layers :] for path in stack}
    if norm:
      final = _under(f"{trunk}/norm/", frozen)
      if not final:
        raise UserError(f"method.norm is True, but {trunk} ends without a norm: expected False")
      flat |= {path: frozen.weight(path) for path in final}
  trained = {}
  for path, array in flat.items():
    site, _, name = path.rpartition("/")
    trained.setdefault(site, {})[name] = array
  return trained, {}


def _under(prefix: str, frozen: peft.Frozen) -> dict[str, Array]:
  """Returns the leaves whose path begins with `prefix`, after a check that none is quantised."""
  leaves = {path: leaf for path, leaf in frozen.leaves.items() if path.startswith(prefix)}
  peft.check_floating("last_layers", leaves)
  return leaves


def _overwrite(leaves: dict[str, Array], arrays: dict[str, Array]) -> dict[str, Array]:
  last = lambda leaf, array: leaf.at[len(leaf) - len(array) :].set(array.astype(leaf.dtype))
  return {name: last(leaves[name], array) for name, array in arrays.items()}
