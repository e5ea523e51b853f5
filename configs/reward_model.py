"""Reward models on choices of people (alpaca_eval) and on polite against rude answers (rasbt).

  jaxtune sweep --config configs/reward_model.py:DATA --workdir runs/reward_model/decoder-DATA
  jaxtune sweep --config configs/reward_model.py:FOLDER,DATA --workdir runs/reward_model/bert-DATA

DATA is alpaca_eval or rasbt. FOLDER holds an encoder, here all-MiniLM-L6-v2; without it the bundled
decoder is tuned. Question, design and results: experiments/reward_model/README.md.
"""

from ml_collections import ConfigDict

from jaxtune.assets import TINY
from jaxtune.errors import check_known

FILES = "../shared/data/preference"
DATA = {
  "rasbt": {"train": f"{FILES}/rasbt.jsonl", "test": 0.25, "max_length": 96},
  "alpaca_eval": {
    "train": f"{FILES}/alpaca_eval_train.jsonl.gz",
    "test": f"{FILES}/alpaca_eval_test.jsonl.gz",
    "max_length": 128,
    "malformed": "skip",
    "overlap": "drop",
  },
}


def get_config(folder_and_data: str) -> ConfigDict:
  folder, _, name = folder_and_data.rpartition(",")
  check_known("data", name, DATA)
  config = ConfigDict()
  config.seed = 0
  config.model = ConfigDict({"path": folder or str(TINY), "remat": True})
  shared = {"validation": 0.1, "too_long": "skip", "buckets": 3, "eval_limit": 1000}
  config.data = ConfigDict(DATA[name] | shared)
  config.objective = ConfigDict({"name": "reward"})
  config.method = ConfigDict({"name": "lora", "rank": 8, "scale": 2.0})
  config.optim = ConfigDict({"learning_rate": 3e-3, "schedule": "linear", "warmup": 5})
  config.train = ConfigDict({"steps": 40, "batch_size": 8, "eval_every": 20})
  config.evaluate = ConfigDict({"batch_size": 25})
  config.sweep = ({"seed": [0, 1, 2]},)
  return config
