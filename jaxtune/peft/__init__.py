"""Fine-tuning methods: small pytrees of arrays laid over a frozen model.

The methods meet the model in one place, `apply` (in `forward.py`), which runs a model and lets each
method wrap the calls of its modules. The model's own code never mentions a method. A method
(`method.py`, and one file each in `methods/`) states which arrays it trains, at which modules
(`sites.py`), and how it changes the call of a module.

All trained arrays are in one tree, `tuned = {"params": leaves of the model that are trained in
place, "peft": arrays that methods add}`. Every number that a trial fixes (scale, prefix mask,
dropout rate) is in another tree, `hyper`. So trials can be stacked and vmapped (`adapted.py`).
"""

from jaxtune.peft.adapted import (
  Adapted,
  Overlay,
  arrays_of,
  by_path,
  check_floating,
  init,
  merge,
  overwritten,
  reparametrise,
  split,
  untuned,
  weights,
  with_arrays,
)
from jaxtune.peft.draws import draw, site_key, uniform
from jaxtune.peft.forward import apply
from jaxtune.peft.method import Arrays, Call, Frozen, Method, build, constructor, sections
from jaxtune.peft.sites import Site, check_hits, check_rank, find_sites, hits, match

__all__ = [
  "Adapted", "Arrays", "Call", "Frozen", "Method", "Overlay", "Site", "apply", "arrays_of",
  "build", "by_path", "check_floating", "check_hits", "check_rank", "constructor", "draw",
  "find_sites", "hits", "init", "match", "merge", "overwritten", "reparametrise", "sections",
  "site_key", "split", "uniform", "untuned", "weights", "with_arrays",
]  # fmt: skip
