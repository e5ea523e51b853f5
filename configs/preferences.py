"""DPO on polite against rude answers, beside the rule that the longer one is chosen: five seeds.

  jaxtune sweep --config configs/preferences.py --workdir runs/preferences --metric test_accuracy

The pairs are those of preference/rasbt: two wordings of one answer, of which the polite one was
chosen. The bundled base is tuned by LoRA; question, design and results:
experiments/preferences/README.md.

Cost and score, written by experiments/keep.py:
preferences: 5 trials, 5 minutes one after another; test accuracy (%) 74.19 ± 2.45 with lora,
  50.00 untuned.
"""

from ml_collections import ConfigDict

from jaxtune.assets import TINY

DATA = "../shared/data/preference"


def get_config() -> ConfigDict:
  config = ConfigDict()
  config.seed = 0
  config.model = ConfigDict({"path": str(TINY), "remat": True})
  config.data = ConfigDict(
    {
      "train": f"{DATA}/rasbt.jsonl",
      "validation": 0.1,
      "test": 0.25,
      "max_length": 96,
      "too_long": "skip",
      "buckets": 3,
    }
  )
  config.objective = ConfigDict({"name": "dpo"})
  config.method = ConfigDict({"name": "lora", "rank": 8, "scale": 2.0})
  config.optim = ConfigDict({"learning_rate": 3e-3, "schedule": "linear", "warmup": 5})
  config.train = ConfigDict({"steps": 40, "batch_size": 8, "eval_every": 20})
  config.evaluate = ConfigDict({"batch_size": 25})
  config.sweep = ({"seed": [0, 1, 2, 3, 4]},)
  return config
