"""BitFit: only the bias vectors are trained (Ben Zaken et al. 2022)."""

from __future__ import annotations

from jaxtune import peft


def method(targets: tuple[str, ...] = (".*",)) -> peft.Method:
  """Trains the biases of linear layers and norms. A model without biases raises UserError.

  Args:
    targets: regular expressions, matched against the end of a module's path; the paper's smaller
      variant is ("q_proj", "up_proj").
  """

  def trains(path):
    site, _, name = path.rpartition("/")
    return name == "bias" and any(peft.hits(target, site) for target in targets)

  def init(key, sites, frozen):
    biased = [path.removesuffix("/bias") for path in frozen.leaves if path.endswith("/bias")]
    for target in targets:
      peft.check_hits(target, biased, f"target {target!r} of bitfit hits no module with a bias")
    return {}, {}

  return peft.Method(
    "bitfit", init=init, trains=trains, patterns=("bias",), options=dict(targets=tuple(targets))
  )
