"""What AdapterHub's config says of a method, and what ours says of the same: read both ways."""

from __future__ import annotations

from jaxtune.errors import UserError
from jaxtune.models.layers import ACTIVATIONS

# What of their config tells where an adapter stands, and how its weights are drawn anew.
PLACEMENTS = {
  "pfeiffer": dict(is_parallel=False, original_ln_before=True, original_ln_after=True,
                   residual_before_ln=True, init_weights="bert"),
  "houlsby": dict(is_parallel=False, original_ln_before=False, original_ln_after=True,
                  residual_before_ln=True, init_weights="bert"),
  "parallel": dict(is_parallel=True, original_ln_before=False, original_ln_after=True,
                   residual_before_ln=True, init_weights="mam_adapter"),
  "plus": dict(is_parallel=False, original_ln_before=True, original_ln_after=False,
               residual_before_ln=False, init_weights="houlsby"),
}  # fmt: skip
DEFAULTS = {
  "adapter_residual_before_ln": False,
  "use_gating": False,
  "leave_out": [],
  "init_weights_seed": None,
  "inv_adapter": None,
  "inv_adapter_reduction_factor": None,
  "stochastic_depth": 0.0,
  "phm_layer": False,
}
PREFIX = {
  "architecture": "prefix_tuning",
  "flat": True,
  "dropout": 0.0,
  "bottleneck_size": 512,
  "non_linearity": "tanh",
  "leave_out": [],
  "use_gating": False,
  "shared_gating": True,
  "init_weights_seed": None,
}
RENAMED = {"swish": "silu"}


def bottleneck(options: dict, names: set[str]) -> dict:
  """Returns their config of an adapter with our options and arrays, but for its sizes."""
  config = DEFAULTS | PLACEMENTS[options["placement"]]
  return config | {
    "non_linearity": options["activation"],
    "ln_before": "norm_scale" in names,
    "ln_after": "norm_after_scale" in names,
  }


def section(config: dict) -> dict:
  """Returns our options of an adapter with their config, but for its sizes and targets.

  Raises:
    UserError: for what an adapter of ours cannot be.
  """
  refused = {
    "use_gating": "gates, averaged over all tokens, so that a token would see later ones",
    "inv_adapter": "an invertible adapter behind the embeddings",
    "adapter_residual_before_ln": "a norm over the residual stream",
    "phm_layer": "PHM layers",
  }
  for entry, meaning in refused.items():
    if config.get(entry):
      raise UserError(f"the adapter has {entry}: {meaning}, which jaxtune's adapter has not")
  activation = str(config.get("non_linearity")).lower()
  activation = RENAMED.get(activation, activation)
  if activation not in ACTIVATIONS:
    raise UserError(
      f"the adapter's non_linearity is {config.get('non_linearity')!r}; expected one of "
      f"{', '.join(ACTIVATIONS)}"
    )
  return {
    "name": "adapter",
    "placement": _placement(config),
    "activation": activation,
    "channel_scale": config.get("scaling", 1.0) == "channel",
    "dropout": float(config.get("dropout", 0.0)),
    "ln_before": bool(config.get("ln_before", False)),
    "ln_after": bool(config.get("ln_after", False)),
  }


def _placement(config: dict) -> str:
  before, after = config.get("original_ln_before", False), config.get("original_ln_after", True)
  residual = config.get("residual_before_ln", True)
  if config.get("is_parallel", False):
    if after:
      return "parallel"
  elif after and (residual is True or not before):
    return "pfeiffer" if before else "houlsby"
  elif before and not after and not residual:
    return "plus"
  raise UserError(
    f"the adapter stands where jaxtune has none: original_ln_before {before}, original_ln_after "
    f"{after}, residual_before_ln {residual}, is_parallel {config.get('is_parallel', False)}"
  )


def reduction_factor(hidden: int, width: int) -> int | float:
  """Returns the r with int(hidden // r) = width, as adapters computes it; whole where one is."""
  whole = hidden // width
  return whole if hidden // whole == width else hidden / (width + 0.5)
