"""Summaries by the bundled base: titles of reviews, or DialogSum's dialogues; LoRA against full.

  jaxtune sweep --config configs/summarisation.py:titles --workdir runs/titles
  jaxtune sweep --config configs/summarisation.py:dialogues --workdir runs/dialogues

The constant DATA names a folder with reviews (columns title, text), dialogsum (dialogue, summary;
test: three summaries) and corpus, on which forgetting is measured. Examples that do not fit
max_length are left out, the same ones in every row of the table. Cost and
scores: experiments/titles and experiments/dialogues.

Cost and score, written by experiments/keep.py:
dialogues: 2 trials, 5 minutes one after another; test loss 3.044 [2.891, 3.218] with full
  learning_rate=0.001, 6.893 untuned.
titles: 8 trials, 5 minutes one after another; test loss 4.805 ± 0.265 with full
  learning_rate=0.001, 6.420 untuned.
"""

from ml_collections import ConfigDict

from jaxtune.assets import TINY

DATA = "../shared/data"
TASKS = {
  "titles": {
    "train": f"{DATA}/reviews/train.jsonl.gz",
    "validation": 400,
    "test": f"{DATA}/reviews/test.jsonl.gz",
    "template": "summarisation/headline",
    "rename": {"article": "text", "summary": "title"},
    "max_length": 96,
    "eval_limit": 400,
  },
  "dialogues": {
    "train": f"{DATA}/dialogsum/dev.jsonl",
    "validation": 90,
    "test": f"{DATA}/dialogsum/test.jsonl",
    "template": "summarisation/dialogue",
    "rename": {"article": "dialogue", "summary": ("summary", ("summary1", "summary2", "summary3"))},
    "max_length": 256,
    "eval_limit": 300,
  },
}
SUMMARY_TOKENS = {"titles": 16, "dialogues": 60}
SEEDS = {"titles": [0, 1], "dialogues": [0]}
LORA_RATES = {"titles": [1e-2, 3e-2], "dialogues": [1e-2]}
FULL_RATES = {"titles": [1e-3, 3e-3], "dialogues": [1e-3]}


def get_config(task: str = "titles") -> ConfigDict:
  config = ConfigDict()
  config.model = ConfigDict({"path": str(TINY), "remat": True})
  config.data = ConfigDict(
    TASKS[task]
    | {
      "too_long": "skip",
      "overlap": "drop",
      "general": f"{DATA}/corpus/introduction-anthropology.jsonl.gz",
    }
  )
  config.optim = ConfigDict({"schedule": "linear", "warmup": 10})
  config.train = ConfigDict({"steps": 60, "batch_size": 8, "eval_every": 20})
  config.evaluate = ConfigDict(
    {
      "generate": True,
      "metrics": ("rouge1", "rouge2", "rougeL"),
      "max_new_tokens": SUMMARY_TOKENS[task],
      "limit": 100,
      "batch_size": 50,
      "shots": 1,
    }
  )
  lora, full, seeds = LORA_RATES[task], FULL_RATES[task], SEEDS[task]
  config.sweep = (
    {"method": [{"name": "lora", "rank": 8}], "optim.learning_rate": lora, "seed": seeds},
    {"method": [{"name": "full"}], "optim.learning_rate": full, "seed": seeds},
  )
  return config
