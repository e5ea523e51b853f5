"""Prefix lengths 1, 4, 16, 32 at two learning rates and three seeds, on the task of rank_ablation.

  jaxtune sweep --config configs/prefix_length.py:DATA --workdir runs/prefix_length

Cost and scores: experiments/prefix_length/README.md.

Cost and score, written by experiments/keep.py:
prefix_length: 24 trials, 11 minutes one after another; test loss (nats/token) 2.864 ± 0.135 with
  prefix length=32 learning_rate=0.3, 5.989 untuned.
"""

from pathlib import Path

from ml_collections import ConfigDict

import jaxtune


def get_config(folder: str = "../shared/data/e2e") -> ConfigDict:
  config = jaxtune.load_config(f"{Path(__file__).with_name('rank_ablation.py')}:{folder}")
  config.method = ConfigDict({"name": "prefix"})
  config.sweep = (
    {
      "method.length": [1, 4, 16, 32],
      "optim.learning_rate": [0.1, 0.3],
      "seed": [0, 1, 2],
    },
  )
  return config
