"""Norm tuning: only the norms' scales and biases are trained (Zhao et al. 2023).

The paper is "Tuning LayerNorm in Attention: Towards Efficient Multi-Modal LLM Finetuning"; PEFT
calls the method LN_TUNING.
"""

from __future__ import annotations

from jaxtune import peft


def method(targets: tuple[str, ...] = (".*norm",)) -> peft.Method:
  """Trains the scale, and the bias where there is one, of every LayerNorm and RMSNorm.

  Args:
    targets: regular expressions, matched against the end of the path of Norm sites, such as
      "attn_norm", or "q_norm" for the norm of queries; by default all norms.
  """

  def trains(path):
    site, _, name = path.rpartition("/")
    norm = site.endswith("norm") and name in ("scale", "bias")
    return norm and any(peft.hits(target, site) for target in targets)

  def init(key, sites, frozen):
    peft.match(targets, sites, "Norm")
    return {}, {}

  return peft.Method(
    "norms", init=init, trains=trains, patterns=tuple(targets), options=dict(targets=tuple(targets))
  )
