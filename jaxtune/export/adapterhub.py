"""AdapterHub's format (adapters 1.3): bottleneck adapters as SeqBn, DoubleSeqBn and ParBn.

`adapter.safetensors` is always written. `pytorch_adapter.bin`, which `load_adapter` reads unless
told `use_safetensors=True`, is a torch pickle and is written where torch is installed.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from jaxtune import peft as methods_
from jaxtune.models import hf

NAME = "jaxtune"  # the adapter's name, a part of every key; `load_as` renames it
VERSION = "adapters.1.3.0"
ARRAYS = ("down_bias", "down_kernel", "up_bias", "up_kernel")
LOCATIONS = {"attn_residual": "attention_adapters", "mlp_residual": "output_adapters"}
PLACEMENTS = {
  "pfeiffer": {"mh_adapter": False, "is_parallel": False, "original_ln_before": True},
  "houlsby": {"mh_adapter": True, "is_parallel": False, "original_ln_before": False},
  "parallel": {
    "mh_adapter": False,
    "is_parallel": True,
    "original_ln_before": False,
    "init_weights": "mam_adapter",
  },
}
DEFAULTS = {
  "output_adapter": True,
  "original_ln_after": True,
  "ln_before": False,
  "ln_after": False,
  "residual_before_ln": True,
  "adapter_residual_before_ln": False,
  "use_gating": False,
  "cross_adapter": False,
  "leave_out": [],
  "init_weights": "bert",
  "init_weights_seed": None,
  "inv_adapter": None,
  "inv_adapter_reduction_factor": None,
  "stochastic_depth": 0.0,
  "phm_layer": False,
}


def write(pretrained, method, tuned, hyper, folder: Path, base_name, extra: dict) -> None:
  """Writes a bottleneck adapter into an existing folder."""
  trained, fixed = methods_.own(method, tuned["peft"]), methods_.own(method, hyper)
  scales = {float(s) for site in trained for s in np.asarray(fixed[site]["scale"])}
  # One config holds one scale; scales that differ between sites go into the up-projections.
  scaling = scales.pop() if len(scales) == 1 else None
  tensors = {}
  for site, arrays in trained.items():
    arrays = {name: np.asarray(x) for name, x in arrays.items()}
    if scaling is None:
      scale = np.asarray(fixed[site]["scale"])
      arrays["up_kernel"] = arrays["up_kernel"] * scale[:, None, None]
      arrays["up_bias"] = arrays["up_bias"] * scale[:, None]
    tensors |= _tensors(pretrained, site, arrays)
  width = next(iter(trained.values()))["down_bias"].shape[-1]
  dropout = max(float(np.max(fixed[site]["dropout"])) for site in trained)
  config = _config(pretrained, method.options, width, dropout, 1.0 if scaling is None else scaling)
  config = config | {"model_name": base_name} | extra
  (folder / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
  save_file(tensors, folder / "adapter.safetensors", {"format": "pt"})
  if importlib.util.find_spec("torch"):
    import torch

    pickled = {name: torch.tensor(x) for name, x in tensors.items()}
    torch.save(pickled, folder / "pytorch_adapter.bin")


def reduction_factor(hidden: int, width: int) -> int | float:
  """Returns the r with int(hidden // r) = width, as adapters computes it; whole where one is."""
  whole = hidden // width
  return whole if hidden // whole == width else hidden / (width + 0.5)


def _tensors(pretrained, site: str, arrays: dict) -> dict[str, np.ndarray]:
  c = pretrained.model.config
  rows = hf.family_module(pretrained.family).names(c)
  layer = next(row.theirs for row in rows if row.stacked).split("{}")[0] + "{}"
  location = LOCATIONS[site.rsplit("/", 1)[-1]]
  names = {
    "adapter_down.0.weight": arrays["down_kernel"].swapaxes(-1, -2),
    "adapter_down.0.bias": arrays["down_bias"],
    "adapter_up.weight": arrays["up_kernel"].swapaxes(-1, -2),
    "adapter_up.bias": arrays["up_bias"],
  }
  return {
    f"{layer.format(i)}.{location}.adapters.{NAME}.{name}": np.ascontiguousarray(x[i], np.float32)
    for i in range(c.layers)
    for name, x in names.items()
  }


def _config(pretrained, options: dict, width: int, dropout: float, scaling: float) -> dict:
  c = pretrained.model.config
  default = "GPT2LMHeadModel" if pretrained.family == "gpt2" else "LlamaForCausalLM"
  bottleneck = DEFAULTS | PLACEMENTS[options["placement"]]
  bottleneck |= {
    "reduction_factor": reduction_factor(c.width, width),
    "non_linearity": options["activation"],
    "scaling": float(scaling),  # adapters takes an int for an unknown kind of scaling
    "dropout": round(dropout, 6),
  }
  return {
    "config": bottleneck,
    "hidden_size": c.width,
    "model_class": (pretrained.hf_config.get("architectures") or [default])[0],
    "model_type": pretrained.family,
    "name": NAME,
    "version": VERSION,
  }
