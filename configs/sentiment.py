"""Head only, BitFit, LoRA, prefix, adapter and full fine-tuning of a BERT: film reviews (SST-2).

  jaxtune sweep --config configs/sentiment.py:FOLDER --workdir runs/sentiment --metric test_accuracy

FOLDER holds all-MiniLM-L6-v2. The data are SST-2's train.tsv and test.tsv: sentence and 0 or 1,
without a header. Each method's rate was chosen on dev.tsv by configs/sentiment_rates.py; here the
last weights are judged, on test alone. Cost and scores: experiments/sentiment/README.md.

Cost and score, written by experiments/keep.py:
sentiment: 18 trials, 22 minutes one after another; test accuracy (%) 84.67 ± 1.56 with full
  learning_rate=0.0001, 51.75 untuned.
"""

from ml_collections import ConfigDict

from jaxtune.sweeps import declare

DATA = "../shared/data/sst2"
METHODS = {
  "head": {"name": "head"},
  "bitfit": {"name": "bitfit"},
  "lora": {"name": "lora", "rank": 8, "scale": 2.0},
  "prefix": {"name": "prefix", "length": 10},
  "adapter": {"name": "adapter", "width": 16},
  "full": {"name": "full"},
}
RATES = {
  "head": 0.1,
  "bitfit": 3e-3,
  "lora": 3e-3,
  "prefix": 0.1,
  "adapter": 1e-2,
  "full": 1e-4,
}


def get_config(folder: str) -> ConfigDict:
  config = ConfigDict()
  config.seed = 0
  config.model = ConfigDict({"path": folder, "remat": True})
  config.data = ConfigDict(
    {
      "train": f"{DATA}/train.tsv",
      "test": f"{DATA}/test.tsv",
      "columns": ("sentence", "label"),
      "rename": {"text": "sentence", "label": "label"},
      "max_length": 40,
      "too_long": "truncate",
      "overlap": "drop",  # two test sentences are in train
      "limit": 2000,
      "eval_limit": 400,
    }
  )
  config.objective = ConfigDict({"name": "classify"})
  config.optim = ConfigDict({"schedule": "linear", "warmup": 10})
  config.train = ConfigDict({"steps": 80, "batch_size": 16, "checkpoint_every": 80})
  config.evaluate = ConfigDict({"batch_size": 50})
  rates = [RATES[name] for name in METHODS]
  tuned = declare.zip({"method": [*METHODS.values()], "optim.learning_rate": rates})
  config.sweep = declare.product(tuned, {"seed": [0, 1, 2]})
  return config
