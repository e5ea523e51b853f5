"""LoRA ranks 1, 2, 4, 8 at two learning rates and three seeds: restaurant descriptions (E2E NLG).

  jaxtune sweep --config configs/rank_ablation.py:DATA --workdir runs/rank_ablation

DATA is a folder with E2E's train.jsonl.gz, valid.jsonl.gz (columns mr, ref) and test_grouped.jsonl
(mr, refs). The scale of the delta is fixed, so that the rank is all that a rank changes. Cost and
scores: experiments/rank_ablation/README.md.

Cost and score, written by experiments/keep.py:
rank_ablation: 24 trials, 11 minutes one after another; test loss (nats/token) 2.893 ± 0.067 with
  lora rank=8 learning_rate=0.01, 5.989 untuned.
"""

from ml_collections import ConfigDict

from jaxtune.assets import TINY


def get_config(folder: str = "../shared/data/e2e") -> ConfigDict:
  config = ConfigDict()
  config.seed = 0
  config.model = ConfigDict({"path": str(TINY), "remat": True})
  config.data = ConfigDict(
    {
      "train": f"{folder}/train.jsonl.gz",
      "validation": f"{folder}/valid.jsonl.gz",
      "test": f"{folder}/test_grouped.jsonl",
      "template": "{{ mr }}\n",
      "answer": ("ref", "refs"),
      "max_length": 128,
      "too_long": "skip",
      "limit": 3000,
      "eval_limit": 120,
    }
  )
  config.method = ConfigDict({"name": "lora", "scale": 2.0})
  config.optim = ConfigDict({"schedule": "linear", "warmup": 20})
  config.train = ConfigDict({"steps": 200, "batch_size": 8, "eval_every": 100})
  config.evaluate = ConfigDict({"generate": True, "max_new_tokens": 48, "batch_size": 24})
  config.sweep = (
    {
      "method.rank": [1, 2, 4, 8],
      "optim.learning_rate": [1e-2, 3e-2],
      "seed": [0, 1, 2],
    },
  )
  return config
