"""Where AdapterHub's `adapters` 1.3 keeps our arrays, for the writer and the reader."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from jaxtune.errors import UserError
from jaxtune.formats import files
from jaxtune.models import hf
from jaxtune.models.config import Config

NAME = "jaxtune"  # the adapter's name, a part of every key; `load_adapter(load_as=...)` renames it
FAMILIES = ("bart", "bert", "distilbert", "gpt2", "llama", "mistral", "roberta", "t5")
# Of an adapter and of the head beside it: config, safetensors, pickle.
FILES = {
  "adapter": ("adapter_config.json", "adapter.safetensors", "pytorch_adapter.bin"),
  "head": ("head_config.json", "model_head.safetensors", "pytorch_model_head.bin"),
}
# A residual: the entry of the config that asks for its adapters, and the module that holds them.
RESIDUALS = {
  "attn_residual": ("mh_adapter", "attention_adapters"),
  "cross_residual": ("cross_adapter", "cross_attention_adapters"),
  "mlp_residual": ("output_adapter", "output_adapters"),
}
BERT = {"attn_residual": "attention.output", "mlp_residual": "output"}
# Our array: its name in their module ("#": the place of the linear layer), and how it lies there.
ARRAYS = {
  "down_kernel": ("adapter_down.#.weight", "transposed"),
  "down_bias": ("adapter_down.#.bias", ""),
  "up_kernel": ("adapter_up.weight", "transposed"),
  "up_bias": ("adapter_up.bias", ""),
  "channel_scale": ("scaling", ""),
  "norm_scale": ("adapter_norm_before.weight", ""),
  "norm_bias": ("adapter_norm_before.bias", ""),
  "norm_after_scale": ("adapter_norm_after.weight", ""),
  "norm_after_bias": ("adapter_norm_after.bias", ""),
}
PHM = {
  "down_left": ("adapter_down.0.W_left", ""),
  "down_right": ("adapter_down.0.W_right", ""),
  "down_bias": ("adapter_down.0.b", "flat"),
  "up_left": ("adapter_up.W_left", ""),
  "up_right": ("adapter_up.W_right", ""),
  "up_bias": ("adapter_up.b", ""),
  "down_rule": ("adapter_down.0.phm_rule", ""),
  "up_rule": ("adapter_up.phm_rule", ""),
}
COPIES = {"norm_scale": "adapter_down.0.weight", "norm_bias": "adapter_down.0.bias"}


def check_family(pretrained: hf.Pretrained) -> None:
  """Raises UserError for a model that adapters 1.3 does not know."""
  if pretrained.family not in FAMILIES:
    raise UserError(
      f"adapters 1.3 knows no {pretrained.family} models, so AdapterHub's format cannot hold this "
      f"one's adapter (it has {', '.join(FAMILIES)}); train LoRA to use it in PyTorch (jaxtune "
      "evaluates and generates with the adapter)"
    )


def base(pretrained: hf.Pretrained) -> str:
  """Returns what their names of the model without its head begin with, such as "bert."."""
  first = files.table(pretrained)[0].theirs
  return "" if pretrained.family == "t5" else first.split(".")[0] + "."


def halves(c: Config) -> dict[str, int]:
  """Returns {trunk: its layers}, in the order in which they count layers."""
  if c.encoder is None:
    return {"trunk": c.layers}
  return {"encoder": c.encoder.layers, "decoder": c.layers}


def residuals(pretrained: hf.Pretrained) -> dict[str, str]:
  """Returns {site: their module, "{}" for the layer} of every place of a bottleneck adapter."""
  names = {row.ours: row.theirs for row in files.table(pretrained)}
  found = {}
  for half in halves(pretrained.model.config):
    for residual, (_, module) in RESIDUALS.items():
      if residual == "cross_residual" and half != "decoder":
        continue
      site = f"{half}/layers/{residual}"
      if pretrained.family == "t5":  # each sublayer is a module that holds its own
        norm = names[f"{half}/layers/{residual.removesuffix('_residual')}_norm/scale"]
        found[site] = norm.removesuffix(".layer_norm.weight")
        continue
      stacked = next(n for o, n in names.items() if o.startswith(f"{half}/layers/"))
      module = BERT[residual] if pretrained.family in ("bert", "roberta") else module
      found[site] = stacked.split("{}")[0] + "{}." + module
  return found


def prefixes(pretrained: hf.Pretrained) -> dict[str, str]:
  """Returns {site of an attention: the pool in which the prefixes of all its layers lie}."""
  if pretrained.model.config.encoder is None:
    own = "self" if pretrained.family == "distilbert" else "self_prefix"
    return {"trunk/layers/attn/attend": own}
  return {
    "encoder/layers/attn/attend": "encoder_prefix",
    "decoder/layers/attn/attend": "self_prefix",
    "decoder/layers/cross/attend": "cross_prefix",
  }


def pool(pretrained: hf.Pretrained, name: str) -> str:
  """Returns what their names of an adapter's prefixes begin with."""
  return f"{base(pretrained)}prefix_tuning.prefix_tunings.{name}."


def shared(pretrained: hf.Pretrained, name: str) -> str:
  """Returns their name of the A_i that all layers of a Compacter share."""
  return f"{base(pretrained)}shared_parameters.{name}.phm_rule"


def theirs(name: str, every: Collection[str]) -> list[tuple[str, str]]:
  """Lists (their name of our array, how it lies there); `every` names all arrays of its module."""
  named, how = (PHM if "down_left" in every else ARRAYS)[name]
  first = str(int("norm_scale" in every))  # the norm stands before it in one list of modules
  copies = [(COPIES[name], how)] if name in COPIES else []
  return [(named.replace("#", first), how), *copies]


def tensors(module: str, arrays: dict) -> dict[str, np.ndarray]:
  """Names one layer's arrays as their module does."""
  found = {}
  for name, x in arrays.items():
    for named, how in theirs(name, arrays):
      x = np.asarray(x).T if how == "transposed" else np.asarray(x)
      found[f"{module}.{named}"] = np.array(
        x.ravel() if how == "flat" else x, np.float32, order="C"
      )
  return found
