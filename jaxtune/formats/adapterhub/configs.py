"""Translates our options of an adapter to AdapterHub's config, and its config to our options."""

from __future__ import annotations

from jaxtune.errors import UserError
from jaxtune.models.layers import ACTIVATIONS

# Entries of their config: where an adapter is placed, and how a new one's weights are drawn.
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
PHM = {
  "phm_layer": True,
  "factorized_phm_W": True,
  "shared_W_phm": False,
  "factorized_phm_rule": False,
  "phm_bias": True,
  "learn_phm": True,
  "phm_c_init": "normal",
  "phm_init_range": 0.0001,
  "hypercomplex_nonlinearity": "glorot-normal",
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


def bottleneck(options: dict, names: set[str]) -> dict:
  """Returns their config of an adapter with our options and arrays, without its sizes."""
  config = DEFAULTS | PLACEMENTS[options["placement"]]
  return config | {
    "non_linearity": options["activation"],
    "ln_before": "norm_scale" in names,
    "ln_after": "norm_after_scale" in names,
  }


def section(config: dict) -> dict:
  """Returns our options of an adapter with their config, without its sizes and targets.

  Raises:
    UserError: for an option of theirs that our adapters do not have.
  """
  refused = {
    "use_gating": "gates, averaged over all tokens, so that a token would see later ones",
    "inv_adapter": "an invertible adapter behind the embeddings",
    "adapter_residual_before_ln": "a norm over the residual stream",
    "leave_out": "layers without an adapter",
  }
  for entry, meaning in refused.items():
    if config.get(entry):
      raise UserError(f"the adapter has {entry} ({meaning}), which jaxtune's has not")
  scaling = config.get("scaling", 1.0)
  same = {"placement": _placement(config), "activation": activation(config)}
  same |= {"scale": float(scaling) if isinstance(scaling, int | float) else 1.0}
  same |= {"dropout": float(config.get("dropout", 0.0))}
  norms = {name: bool(config.get(name, False)) for name in ("ln_before", "ln_after")}
  if not config.get("phm_layer"):
    return {"name": "adapter", **same, "channel_scale": scaling == "channel", **norms}
  differ = [k for k in ("factorized_phm_W", "shared_W_phm", "factorized_phm_rule", "phm_bias")
            if config.get(k, PHM[k]) != PHM[k]]  # fmt: skip
  differ += [k for k, given in norms.items() if given] + ["scaling"] * isinstance(scaling, str)
  if differ:
    given = ", ".join(f"{k} {config[k]}" for k in differ)
    raise UserError(f"the Compacter has {given}, which jaxtune's has not")
  return {"name": "compacter", **same, "shared": config.get("shared_phm_rule", True)}


def activation(config: dict, default: str = "relu") -> str:
  """Returns our name of the activation in their config."""
  stated = str(config.get("non_linearity", default)).lower()
  name = "silu" if stated == "swish" else stated
  if name not in ACTIVATIONS:
    raise UserError(
      f"the adapter's non_linearity is {stated!r}; expected one of {', '.join(ACTIVATIONS)}"
    )
  return name


def _placement(config: dict) -> str:
  """Returns our name of the placement in their config."""
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
    f"jaxtune has no adapter with this placement: original_ln_before {before}, original_ln_after "
    f"{after}, residual_before_ln {residual}, is_parallel {config.get('is_parallel', False)}"
  )


def reduction_factor(hidden: int, width: int) -> int | float:
  """Returns the r with int(hidden // r) = width, as adapters computes it; whole where one is."""
  whole = hidden // width
  return whole if hidden // whole == width else hidden / (width + 0.5)
