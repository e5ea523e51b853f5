"""LoRA ranks, prefix lengths and other methods of a real BERT on three tasks, each at its own rate.

  jaxtune sweep --config configs/rank_and_length.py:FOLDER,TASK --workdir runs/rank_and_length/TASK

FOLDER holds all-MiniLM-L6-v2. TASK is sentiment (SST-2), entities (WNUT-17) or stars (the text of
Amazon reviews, one to five stars). Every configuration's rate is chosen on validation with two
seeds of its own. Question, design and results: experiments/rank_and_length/README.md.
"""

from ml_collections import ConfigDict

from jaxtune.errors import check_known
from jaxtune.sweeps import declare

DATA = "../shared/data"
TASKS = {
  "sentiment": {
    "data": {
      "train": f"{DATA}/sst2/train.tsv",
      "validation": f"{DATA}/sst2/dev.tsv",
      "test": f"{DATA}/sst2/test.tsv",
      "columns": ("sentence", "label"),
      "rename": {"text": "sentence", "label": "label"},
      "max_length": 32,
    },
    "objective": {"name": "classify"},
  },
  "entities": {
    "data": {
      "train": f"{DATA}/wnut17/train.jsonl",
      "validation": f"{DATA}/wnut17/dev.jsonl",
      "test": f"{DATA}/wnut17/test.jsonl",
      "max_length": 32,
    },
    "objective": {"name": "tokens"},
    "steps": 150,  # after 64, most configurations find no entity at all
  },
  "stars": {
    "data": {
      "train": f"{DATA}/reviews/train.jsonl.gz",
      "validation": 0.1,
      "test": f"{DATA}/reviews/test.jsonl.gz",
      "rename": {"text": "text", "label": "stars"},
      "max_length": 32,
    },
    "objective": {"name": "classify"},
  },
}
RANKS = (1, 2, 4, 8, 16, 64)
LENGTHS = (1, 5, 10, 20, 50)
# (methods, learning rates to choose from). With rsLoRA's scale, alpha / sqrt(rank), the best rate
# depends less on the rank (Kalajdzievski 2023).
LORA = {"name": "lora", "alpha": 4.0, "rslora": True}
METHODS = (
  ([LORA | {"rank": rank} for rank in RANKS], [1e-3, 3e-3, 1e-2]),
  ([{"name": "prefix", "length": length} for length in LENGTHS], [1e-2, 3e-2, 0.1]),
  ([{"name": "adapter", "width": width} for width in (4, 16)], [3e-3, 1e-2, 3e-2]),
  ([{"name": "bitfit"}], [3e-3, 1e-2, 3e-2]),
  ([{"name": "full"}], [1e-4, 3e-4, 1e-3]),
  ([{"name": "head"}], [1e-2, 3e-2, 0.1]),
)


def get_config(folder_and_task: str) -> ConfigDict:
  folder, _, name = folder_and_task.rpartition(",")
  check_known("task", name, TASKS)
  task = TASKS[name]
  config = ConfigDict()
  config.seed = 0
  config.model = ConfigDict({"path": folder})
  shared = {"too_long": "truncate", "overlap": "drop", "limit": 3000, "eval_limit": 400}
  config.data = ConfigDict(task["data"] | shared)
  config.objective = ConfigDict(task["objective"])
  config.optim = ConfigDict({"schedule": "linear", "warmup": 10})
  steps = task.get("steps", 64)
  config.train = ConfigDict({"steps": steps, "batch_size": 16, "eval_every": steps})
  config.search = ConfigDict({"tune_seeds": (1000, 1001)})
  config.evaluate = ConfigDict({"batch_size": 50})
  config.sweep = declare.chain(
    *(
      {"method": methods, "optim.learning_rate": [declare.tune(rates)], "seed": [0, 1, 2, 3, 4]}
      for methods, rates in METHODS
    )
  )
  return config
