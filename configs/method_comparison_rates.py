"""Learning rates of each method of configs/method_comparison.py: one seed, validation alone.

jaxtune sweep --config configs/method_comparison_rates.py:DATA --workdir runs/comparison_rates
"""

from pathlib import Path

from ml_collections import ConfigDict

import jaxtune

RATES = {
  "LoRA": [3e-3, 1e-2, 3e-2],
  "LoRA+": [1e-3, 3e-3, 1e-2],
  "LoRA-FA": [3e-3, 1e-2, 3e-2, 0.1],
  "DoRA": [3e-3, 1e-2, 3e-2, 0.1],
  "PiSSA": [1e-3, 3e-3, 1e-2, 3e-2],
  "AdaLoRA": [1e-2, 3e-2, 0.1],
  "LoHa": [3e-3, 1e-2, 3e-2, 0.1],
  "Pfeiffer": [3e-3, 1e-2, 3e-2, 0.1],
  "Houlsby": [3e-3, 1e-2, 3e-2, 0.1],
  "parallel": [3e-3, 1e-2, 3e-2],
  "prefix": [0.1, 0.3, 1.0],
  "prompt": [3e-3, 1e-2, 0.03, 0.1, 0.3],
  "LoReFT": [3e-3, 1e-2, 3e-2, 0.1],
  "MAM": [1e-2, 3e-2, 0.1],
  "VeRA": [3e-2, 0.1, 0.3],
  "IA3": [3e-2, 0.1, 0.3, 1.0],
  "norms": [1e-2, 3e-2, 0.1, 0.3],
  "Compacter": [3e-3, 1e-2, 3e-2, 0.1],
  "full": [3e-4, 1e-3, 3e-3, 1e-2],
}


def get_config(folder: str = "../shared/data/e2e") -> ConfigDict:
  config = jaxtune.load_config(f"{Path(__file__).with_name('method_comparison.py')}:{folder}")
  methods = [grid["method"][0] for grid in config.sweep]
  config.data.validation = f"{folder}/valid.jsonl.gz"
  config.data.test = None
  config.train.eval_every = 80
  config.evaluate.generate = False
  config.sweep = tuple(
    {"method": [method], "optim.learning_rate": rates, "seed": [0]}
    for method, rates in zip(methods, RATES.values(), strict=True)
  )
  return config
