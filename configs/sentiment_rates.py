"""Learning rates of each method of configs/sentiment.py: one seed, judged on validation alone.

jaxtune sweep --config configs/sentiment_rates.py:FOLDER --workdir runs/sentiment_rates

Cost and score, written by experiments/keep.py:
sentiment_rates: 21 trials, 24 minutes one after another; validation loss 0.392 with adapter
  width=16 learning_rate=0.01, 0.693 untuned.
"""

from pathlib import Path

from ml_collections import ConfigDict

import jaxtune

RATES = {
  "head": [3e-3, 1e-2, 3e-2, 0.1, 0.3],
  "bitfit": [1e-3, 3e-3, 1e-2],
  "lora": [1e-3, 3e-3, 1e-2],
  "prefix": [1e-2, 3e-2, 0.1, 0.3],
  "adapter": [1e-3, 3e-3, 1e-2, 3e-2],
  "full": [1e-4, 3e-4],
}


def get_config(folder: str) -> ConfigDict:
  config = jaxtune.load_config(f"{Path(__file__).with_name('sentiment.py')}:{folder}")
  methods = [grid["method"][0] for grid in config.sweep]
  config.data.test = None
  config.data.validation = str(Path(config.data.train).with_name("dev.tsv"))
  config.data.eval_limit = 200
  config.train.eval_every = 40
  config.sweep = tuple(
    {"method": [method], "optim.learning_rate": RATES[method["name"]], "seed": [0]}
    for method in methods
  )
  return config
