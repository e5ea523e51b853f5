"""The config section and the fixed numbers of an imported adapter over weights."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from jaxtune.errors import UserError
from jaxtune.formats import files
from jaxtune.formats.peft.layout import ADALORA_EPSILON, ARRAYS, alpha_of
from jaxtune.models import hf


def complete(
  kind: str, config: dict, trained: dict, fixed: dict, pretrained: hf.Pretrained
) -> tuple[dict, dict, dict]:
  """Returns (section, trained, fixed), with all fixed numbers that the method's `init` makes."""
  if kind in ("adalora", "loha"):  # whose section has one rank
    trained = _of_one_rank(kind, trained)
  _check_ranks(kind, trained)
  section = {"name": kind, **_OPTIONS[kind](config, trained, fixed)}
  if kind in ("lora", "adalora"):
    _, initial = files.initial(section, pretrained)
    fixed = {site: initial[site] | numbers for site, numbers in fixed.items()}
  return section, trained, fixed


def _check_ranks(kind: str, trained: dict) -> None:
  """Raises UserError for a rank above the smaller side of a weight, which no method here has."""
  for site, arrays in trained.items() if kind in ("lora", "adalora", "loha") else ():
    a, b = (arrays[f"w1_{name}" if kind == "loha" else name] for name in "ab")
    (inputs, rank), outputs = a.shape[-2:], b.shape[-1]
    if rank > min(inputs, outputs):
      raise UserError(
        f"the adapter's rank is {rank} at {site}, which is {inputs} x {outputs}, expected at most "
        f"{min(inputs, outputs)}: merge it in PyTorch (merge_and_unload), and give that as "
        "model.path"
      )


def _of_one_rank(kind: str, trained: dict) -> dict:
  """Fills every array with zeros, which change nothing, up to the largest rank of all sites."""
  axes = {x.ours: x.axes.index("r") - len(x.axes) for x in ARRAYS[kind]}
  sizes = [x.shape[axes[name]] for arrays in trained.values() for name, x in arrays.items()]

  def fill(x: np.ndarray, axis: int) -> np.ndarray:
    ends = np.zeros((x.ndim, 2), int)
    ends[axis, 1] = max(sizes) - x.shape[axis]
    return np.pad(x, ends)

  return {
    site: {n: fill(x, axes[n]) for n, x in arrays.items()} for site, arrays in trained.items()
  }


def _sizes(trained: dict, fixed: dict, name: str) -> tuple[dict, dict]:
  """Returns ({site: rank}, {site: alpha}); a site whose layers differ in scale has no alpha."""
  ranks = {site: arrays[name].shape[-1] for site, arrays in trained.items()}
  alphas = {}
  for site, rank in ranks.items():
    scales = np.unique(fixed[site]["scale"])
    if len(scales) == 1:
      alphas[site] = alpha_of(float(scales[0]), rank)
  return ranks, alphas


def _commonest(values: dict, default: Any) -> Any:
  """Returns the value that occurs most often, or the default where there is none."""
  return Counter(values.values()).most_common(1)[0][0] if values else default


def _lora(config: dict, trained: dict, fixed: dict) -> dict:
  ranks, alphas = _sizes(trained, fixed, "a")
  rank, alpha = _commonest(ranks, 8), _commonest(alphas, 16)
  others = {
    "ranks": {site: r for site, r in ranks.items() if r != rank},
    "alphas": {site: a for site, a in alphas.items() if a != alpha},
  }
  return {
    "rank": rank,
    "alpha": alpha,
    "dropout": config.get("lora_dropout", 0.0),
    "targets": sorted(trained),
    **{name: values for name, values in others.items() if values},
    **({"dora": True} if config.get("use_dora") else {}),
  }


def _adalora(config: dict, trained: dict, fixed: dict) -> dict:
  rank = next(iter(trained.values()))["e"].shape[-1]
  scale = float(next(iter(fixed.values()))["scale"].ravel()[0])
  return {
    "init_rank": rank,
    "target_rank": min(rank, config.get("target_r", 8)),
    "alpha": alpha_of(scale, rank + ADALORA_EPSILON),
    "dropout": config.get("lora_dropout", 0.0),
    "orth_weight": config.get("orth_reg_weight", 0.5),
    "interval": config.get("deltaT", 1),
    "beta1": config.get("beta1", 0.85),
    "beta2": config.get("beta2", 0.85),
    "targets": sorted(trained),
  }


def _vera(config: dict, trained: dict, fixed: dict) -> dict:
  rank = next(iter(trained.values()))["d"].shape[-1]
  return {"rank": rank, "d_initial": config.get("d_initial", 0.1), "targets": sorted(trained)}


def _loha(config: dict, trained: dict, fixed: dict) -> dict:
  ranks, alphas = _sizes(trained, fixed, "w1_a")
  return {"rank": _commonest(ranks, 8), "alpha": _commonest(alphas, 8), "targets": sorted(trained)}


def _lokr(config: dict, trained: dict, fixed: dict) -> dict:
  rank, factor = config.get("r", 8), config.get("decompose_factor", -1)
  scales = [float(np.ravel(numbers["scale"])[0]) for numbers in fixed.values()]
  return {
    "rank": rank,
    "alpha": alpha_of(_commonest(dict(enumerate(scales)), 1.0), rank),
    "factor": None if factor == -1 else factor,
    "decompose_both": config.get("decompose_both", False),
    "targets": sorted(trained),
  }


def _ia3(config: dict, trained: dict, fixed: dict) -> dict:
  inside = {site for site, arrays in trained.items() if "l_in" in arrays}
  return {"targets": sorted(trained.keys() - inside), "feedforward": sorted(inside)}


_OPTIONS = {"lora": _lora, "adalora": _adalora, "vera": _vera, "loha": _loha, "lokr": _lokr,
            "ia3": _ia3}  # fmt: skip
