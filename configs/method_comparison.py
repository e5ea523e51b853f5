"""Nineteen methods on one task, restaurant descriptions (E2E NLG), at matched budgets.

  jaxtune sweep --config configs/method_comparison.py:DATA --workdir runs/method_comparison

DATA is a folder with E2E's train.jsonl.gz, valid.jsonl.gz (columns mr, ref) and test_grouped.jsonl
(mr, refs). Fourteen methods train about 16,000 numbers each, 0.5 % of the bundled base; VeRA, IA3,
norms and Compacter are smaller by nature, and full fine-tuning trains all. Each method's rate was
chosen on validation by configs/method_comparison_rates.py; here the last weights are judged on
test, with three seeds. Cost and scores: experiments/method_comparison/README.md.
"""

from ml_collections import ConfigDict

from jaxtune.assets import TINY
from jaxtune.sweeps import declare

METHODS = {
  "LoRA": {"name": "lora", "rank": 4},
  "LoRA+": {"name": "lora", "rank": 4, "b_rate": 8.0},
  "LoRA-FA": {"name": "lora", "rank": 9, "train_a": False},
  "DoRA": {"name": "lora", "rank": 4, "dora": True},
  "PiSSA": {"name": "lora", "rank": 4, "initialise": "pissa"},
  "AdaLoRA": {"name": "adalora", "init_rank": 4, "target_rank": 3},
  "LoHa": {"name": "loha", "rank": 2},
  "Pfeiffer": {"name": "adapter", "width": 6},
  "Houlsby": {"name": "adapter", "width": 3, "placement": "houlsby"},
  "parallel": {"name": "adapter", "width": 6, "placement": "parallel"},
  "prefix": {"name": "prefix", "length": 14},
  "prompt": {"name": "prompt", "length": 84, "initialise": "vocabulary"},
  "LoReFT": {"name": "reft", "rank": 7},
  "MAM": {
    "name": "stack",
    "prefix": {"length": 7},
    "adapter": {"width": 3, "placement": "parallel"},
  },
  "VeRA": {"name": "vera", "rank": 128},
  "IA3": {"name": "ia3"},
  "norms": {"name": "norms"},
  "Compacter": {"name": "compacter", "width": 24, "n": 4},
  "full": {"name": "full"},
}
RATES = {
  "LoRA": 1e-2,
  "LoRA+": 3e-3,
  "LoRA-FA": 0.1,
  "DoRA": 3e-2,
  "PiSSA": 1e-2,
  "AdaLoRA": 3e-2,
  "LoHa": 3e-2,
  "Pfeiffer": 3e-2,
  "Houlsby": 3e-2,
  "parallel": 1e-2,
  "prefix": 0.3,
  "prompt": 3e-2,
  "LoReFT": 3e-2,
  "MAM": 1e-2,
  "VeRA": 0.1,
  "IA3": 0.3,
  "norms": 0.3,
  "Compacter": 0.1,
  "full": 3e-3,
}


def get_config(folder: str = "../shared/data/e2e") -> ConfigDict:
  config = ConfigDict()
  config.seed = 0
  config.model = ConfigDict({"path": str(TINY), "remat": True})
  config.data = ConfigDict(
    {
      "train": f"{folder}/train.jsonl.gz",
      "test": f"{folder}/test_grouped.jsonl",
      "template": "{{ mr }}\n",
      "answer": ("ref", "refs"),
      "max_length": 96,
      "too_long": "skip",
      "limit": 3000,
      "eval_limit": 120,
    }
  )
  config.optim = ConfigDict({"schedule": "linear", "warmup": 10})
  config.train = ConfigDict({"steps": 80, "batch_size": 8, "checkpoint_every": 80})
  config.evaluate = ConfigDict({"generate": True, "max_new_tokens": 48, "batch_size": 24})
  rates = [RATES[name] for name in METHODS]
  tuned = declare.zip({"method": [*METHODS.values()], "optim.learning_rate": rates})
  config.sweep = declare.product(tuned, {"seed": [0, 1, 2]})
  return config
