"""Makes adapters with AdapterHub's library and saves them: run by path, in its interpreter.

Its argument is a folder with jobs.json, a list of [CLASS, OPTIONS, BASE, CONFIG, ARGUMENTS], and
in{i}.npz, the arguments of a forward pass. It writes out{i}, an adapter called "theirs" with random
weights and its head, and logits{i}.npy.
"""

import json
import sys
from pathlib import Path


def save(i, folder, auto, options, base, config, arguments):
  import adapters
  import numpy as np
  import torch
  import transformers

  how = options | {"attn_implementation": "eager"}
  model = getattr(transformers, auto).from_pretrained(base, **how)
  adapters.init(model)
  model.add_adapter("theirs", config=getattr(adapters, config)(**arguments), set_active=True)
  torch.manual_seed(i)
  head = lambda name: name.startswith("classifier.")
  with torch.no_grad():
    for name, parameter in model.named_parameters():
      if ".theirs." in name or head(name):
        parameter.add_(0.1 * torch.randn_like(parameter))
  model.eval()
  model.save_adapter(str(folder / f"out{i}"), "theirs")
  inputs = {name: torch.from_numpy(x) for name, x in np.load(folder / f"in{i}.npz").items()}
  with torch.no_grad():
    np.save(folder / f"logits{i}.npy", model(**inputs).logits.numpy())


if __name__ == "__main__":
  place = Path(sys.argv[1])
  for number, job in enumerate(json.loads((place / "jobs.json").read_text())):
    save(number, place, *job)
