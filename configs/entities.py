"""Head only, LoRA and full fine-tuning of a BERT on named entities in posts (WNUT-17).

  jaxtune sweep --config configs/entities.py:FOLDER --workdir runs/entities --metric test_span_f1

FOLDER holds all-MiniLM-L6-v2. The data are WNUT-17's train.jsonl, dev.jsonl and test.jsonl: tokens
and IOB2 tags. Cost and scores: experiments/entities/README.md.

Cost and score, written by experiments/keep.py:
entities: 5 trials, 12 minutes one after another; test span F1 (%) 36.71 with lora rank=8
  learning_rate=0.001 steps=300, 1.51 untuned.
"""

from ml_collections import ConfigDict

DATA = "../shared/data/wnut17"
LORA = {"name": "lora", "rank": 8}
# (method, learning rates, updates)
TRIALS = (
  ({"name": "head"}, [1e-2], 100),
  ({"name": "full"}, [3e-4], 100),
  (LORA, [1e-3, 3e-3], 100),
  (LORA, [1e-3], 300),
)


def get_config(folder: str) -> ConfigDict:
  config = ConfigDict()
  config.seed = 0
  config.model = ConfigDict({"path": folder, "remat": True})
  config.data = ConfigDict(
    {
      "train": f"{DATA}/train.jsonl",
      "validation": f"{DATA}/dev.jsonl",
      "test": f"{DATA}/test.jsonl",
      "max_length": 48,
      "too_long": "truncate",  # words cut off count as "O"
      "overlap": "drop",
      "eval_limit": 300,
    }
  )
  config.objective = ConfigDict({"name": "tokens"})
  config.optim = ConfigDict({"schedule": "linear", "warmup": 10})
  config.train = ConfigDict({"batch_size": 16, "eval_every": 100, "checkpoint_every": 100})
  config.evaluate = ConfigDict({"batch_size": 50})
  config.sweep = tuple(
    {"method": [method], "optim.learning_rate": rates, "train.steps": [steps], "seed": [0]}
    for method, rates, steps in TRIALS
  )
  return config
