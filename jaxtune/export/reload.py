"""Reloads exports in PyTorch and writes their logits.

A script of its own, without jax: AdapterHub's `adapters` and PEFT need different versions of
transformers, so it is run by path, in the interpreter that has the libraries. Each line of its
input is a JSON list [FORMAT, BASE, EXPORT, IN, OUT]; it answers each with a line,
"done" or what went wrong.

  FORMAT  peft, merged or adapterhub
  BASE    folder of the base model
  EXPORT  folder of the export
  IN      .npz with tokens_0 (B, T) and mask_0 (B, T), tokens_1, ...; padding on the right
  OUT     .npz with logits_0 (B, T, V), ..., and versions (json)
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import sys

# Run by path, this script's folder would come first in the search, and its peft.py hide PEFT.
HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:] = [place for place in sys.path if os.path.abspath(place) != HERE]

LIBRARIES = ("torch", "transformers", "peft", "adapters", "safetensors")


def load_base(folder):
  from torch import float32
  from transformers import AutoModelForCausalLM

  return AutoModelForCausalLM.from_pretrained(folder, dtype=float32)


def load_merged(base, folder):
  from torch import float32
  from transformers import AutoModelForCausalLM

  model, report = AutoModelForCausalLM.from_pretrained(
    folder, dtype=float32, output_loading_info=True
  )
  for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
    if report[problem]:
      raise SystemExit(f"{problem} in the merged folder: {sorted(report[problem])[:5]}")
  return model


def load_peft(base, folder):
  from peft import PeftModel
  from peft.utils import get_peft_model_state_dict
  from safetensors.torch import load_file

  model = PeftModel.from_pretrained(load_base(base), folder)
  file = load_file(os.path.join(folder, "adapter_model.safetensors"))
  compare_names(file, get_peft_model_state_dict(model))
  return model


def load_adapterhub(base, folder):
  import adapters
  import torch
  from safetensors.torch import load_file

  file = load_file(os.path.join(folder, "adapter.safetensors"))
  pickled = os.path.join(folder, "pytorch_adapter.bin")
  if os.path.exists(pickled):
    other = torch.load(pickled, weights_only=True)
    if other.keys() != file.keys() or not all(torch.equal(x, file[n]) for n, x in other.items()):
      raise SystemExit("pytorch_adapter.bin and adapter.safetensors differ")
  model = load_base(base)
  adapters.init(model)
  name = model.load_adapter(folder, use_safetensors=True, set_active=True)
  state = model.state_dict()
  compare_names(file, {n: state[n] for n in state if f".adapters.{name}." in n})
  return model


def compare_names(file, model):
  """Ends the script where the file and the model differ in names; the libraries only warn."""
  if file.keys() != model.keys():
    extra, missing = sorted(file.keys() - model.keys()), sorted(model.keys() - file.keys())
    raise SystemExit(f"tensors that the model does not read: {extra[:5]}; it misses: {missing[:5]}")


def versions():
  found = {"python": platform.python_version()}
  for name in LIBRARIES:
    try:
      found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      continue
  return found


def answer(form, base, export, inputs, output):
  import numpy as np
  import torch

  load = {"peft": load_peft, "merged": load_merged, "adapterhub": load_adapterhub}[form]
  model = load(base, export).eval()
  file, results = np.load(inputs), {}
  for i in range(len(file.files) // 2):
    tokens, mask = (torch.from_numpy(file[f"{name}_{i}"]) for name in ("tokens", "mask"))
    with torch.no_grad():
      results[f"logits_{i}"] = model(input_ids=tokens, attention_mask=mask).logits.numpy()
  np.savez(output, versions=json.dumps(versions()), **results)


if __name__ == "__main__":
  answers, sys.stdout = sys.stdout, sys.stderr  # what libraries print is no answer
  for job in sys.stdin:
    try:
      answer(*json.loads(job))
      said = "done"
    except (Exception, SystemExit) as error:
      said = f"{type(error).__name__}: {error}".replace("\n", " ").removeprefix("SystemExit: ")
    print(said, file=answers, flush=True)
