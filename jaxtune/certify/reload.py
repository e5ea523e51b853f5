"""Reloads exports in PyTorch and writes their logits.

This is a script without jax. AdapterHub's `adapters` and PEFT need different versions of
transformers, so it is run by its path, in an interpreter that has the libraries. Each line of its
input is a JSON list [FORMAT, CLASS, OPTIONS, BASE, EXPORT, IN, OUT]; it answers each with a line,
"done" or what went wrong.

  FORMAT  peft, merged or adapterhub
  CLASS   of transformers, such as AutoModelForCausalLM
  OPTIONS of its from_pretrained for the base, such as {"num_labels": 3}
  BASE    folder of the base model
  EXPORT  folder of the export
  IN      .npz with 0/input_ids (B, T) and 0/attention_mask (B, T), 1/input_ids, ...: the arguments
          of the model's forward in each batch; padding on the right
  OUT     .npz with logits_0, ... and versions (json); logits are (B, T, V), (B, T, labels), (B, T,
          2) of start and end for question answering, or (B, labels)
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import sys
from typing import Any

# Python searches a script's folder first, so that modules in this one could hide libraries.
HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:] = [folder for folder in sys.path if os.path.abspath(folder) != HERE]


def load_base(auto: str, options: dict, folder: str) -> Any:
  """Loads a model in fp32 by the class `auto` of transformers."""
  import transformers
  from torch import float32

  return getattr(transformers, auto).from_pretrained(folder, dtype=float32, **options)


def load_merged(auto: str, options: dict, base: str, folder: str) -> Any:
  """Loads a merged model, which needs neither options nor a base; every weight must be in it."""
  model, report = load_base(auto, {"output_loading_info": True}, folder)
  for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
    if report[problem]:
      raise SystemExit(f"{problem} in the merged folder: {sorted(report[problem])[:5]}")
  return model


def load_peft(auto: str, options: dict, base: str, folder: str) -> Any:
  """Loads an adapter with PEFT, and checks that it reads every tensor and misses none."""
  from peft import PeftModel
  from peft.utils import get_peft_model_state_dict
  from safetensors.torch import load_file

  model = PeftModel.from_pretrained(load_base(auto, options, base), folder)
  file = load_file(os.path.join(folder, "adapter_model.safetensors"))
  # PEFT loads a fresh pooler beside a prefix into the base, and does not list it below.
  in_base = {name: file[name] for name in file if name in model.state_dict()}
  state = get_peft_model_state_dict(model)
  # If embeddings are trained, PEFT lists the frozen ones too.
  state = {name: x for name, x in state.items() if not name.endswith(".base_layer.weight")}
  compare_names(file, state | in_base)
  return model


def virtual_tokens(model: Any, batch: dict) -> int:
  """Returns how many virtual tokens have logits before those of the real tokens."""
  config = getattr(model, "active_peft_config", None)
  if getattr(config, "peft_type", None) not in ("PROMPT_TUNING", "P_TUNING"):
    return 0
  return 0 if "decoder_input_ids" in batch else config.num_virtual_tokens


def load_adapterhub(auto: str, options: dict, base: str, folder: str) -> Any:
  """Loads an adapter with AdapterHub's `adapters`, and checks that all of its files are read."""
  import adapters
  import torch
  from safetensors.torch import load_file

  kinds = {"adapter": "pytorch_adapter.bin", "model_head": "pytorch_model_head.bin"}
  files = {}
  for kind, pickled in kinds.items():
    path, pickled = os.path.join(folder, f"{kind}.safetensors"), os.path.join(folder, pickled)
    files[kind] = file = load_file(path) if os.path.exists(path) else {}
    other = torch.load(pickled, weights_only=True) if os.path.exists(pickled) else file
    if other.keys() != file.keys() or not all(torch.equal(x, file[n]) for n, x in other.items()):
      raise SystemExit(f"{pickled} and {path} differ")
  # With any other implementation of attention, adapters computes prefixes differently.
  model = load_base(auto, options | {"attn_implementation": "eager"}, base)
  adapters.init(model)
  name = model.load_adapter(folder, use_safetensors=True, set_active=True)
  state = model.state_dict()
  modules = [f".{m}.{name}." for m in ("adapters", "prefix_tunings", "shared_parameters")]
  added = {n: x for n, x in state.items() if any(module in f".{n}" for module in modules)}
  # Every layer also holds a copy of the prefixes of all layers.
  added = {n: x for n, x in added.items() if ".prefix_tuning.pool." not in n}
  compare_names(files["adapter"], added)
  for n, x in (files["adapter"] | files["model_head"]).items():
    if n not in state or not torch.equal(state[n], x):
      raise SystemExit(f"{n} is not loaded")
  return model


def compare_names(file: dict, model: dict) -> None:
  """Raises SystemExit if the file and the model differ in names; the libraries only warn."""
  if file.keys() != model.keys():
    extra, missing = sorted(file.keys() - model.keys()), sorted(model.keys() - file.keys())
    raise SystemExit(f"tensors that the model does not read: {extra[:5]}; it misses: {missing[:5]}")


def versions() -> dict[str, str]:
  """Returns the versions of Python and of the libraries that are installed."""
  installed = {"python": platform.python_version()}
  for name in ("torch", "transformers", "peft", "adapters", "safetensors"):
    try:
      installed[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      continue
  return installed


def write_logits(model: Any, inputs: str, output: str) -> None:
  """Runs a model on every batch of a file, and writes its logits into another file."""
  import numpy as np
  import torch

  file, batches, results = np.load(inputs), {}, {}
  for key in file.files:
    i, name = key.split("/")
    batches.setdefault(i, {})[name] = torch.from_numpy(file[key])
  for i, batch in batches.items():
    with torch.no_grad():
      outputs = model(**batch)
    if "logits" in outputs:
      logits = outputs.logits.numpy()
    else:
      logits = torch.stack([outputs.start_logits, outputs.end_logits], -1).numpy()
    results[f"logits_{i}"] = logits[:, virtual_tokens(model, batch) :]
  np.savez(output, versions=json.dumps(versions()), **results)


if __name__ == "__main__":
  loaders = {"peft": load_peft, "merged": load_merged, "adapterhub": load_adapterhub}
  answers, sys.stdout = sys.stdout, sys.stderr  # libraries print to stdout too
  for job in sys.stdin:
    try:
      form, *export, inputs, output = json.loads(job)
      write_logits(loaders[form](*export).eval(), inputs, output)
      answer = "done"
    except (Exception, SystemExit) as error:
      answer = f"{type(error).__name__}: {error}".replace("\n", " ").removeprefix("SystemExit: ")
    print(answer, file=answers, flush=True)
