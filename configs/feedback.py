"""The stages of learning from feedback: answers that are complete and short, on the bundled base.

  jaxtune sweep --config configs/feedback.py:STAGE,FOLDER --workdir runs/feedback/STAGE

STAGE is sft, sft_more, reward, dpo, kto, orpo, grpo, ppo or grpo_ranks. FOLDER has train.jsonl,
validation.jsonl and test.jsonl (restaurants to be described), pairs.jsonl and pairs_test.jsonl
(two answers each), `base`, the model after sft, and `judge`, a reward model.
experiments/feedback/run.py makes them all, stage by stage.
"""

from ml_collections import ConfigDict

from jaxtune.assets import TINY
from jaxtune.errors import check_known
from jaxtune.sweeps import declare

SEEDS = [0, 1, 2, 3, 4]
TRUE = "experiments/feedback/rewards.py:complete_and_short"
SENTENCE = r"matches:^[A-Z].*\.$"  # is reported, and not trained on
PAIRS = {"dpo": {"beta": 0.1}, "kto": {"beta": 0.1}, "orpo": {"beta": 0.5}}
# (learning rate, updates, examples in an update)
BUDGETS = {
  "sft": (5e-3, 120, 16),
  "sft_more": (2e-3, 160, 32),
  "reward": (3e-3, 80, 16),
  "dpo": (2e-3, 80, 16),
  "kto": (2e-3, 80, 16),
  "orpo": (2e-3, 80, 16),
  "grpo": (3e-3, 80, 64),
  "ppo": (3e-3, 80, 64),
}


def get_config(stage_and_folder: str) -> ConfigDict:
  stage, _, folder = stage_and_folder.partition(",")
  check_known("stage", stage, [*BUDGETS, "grpo_ranks"])
  objective, ranks = stage.removesuffix("_ranks"), [8]
  if objective != stage:
    ranks = [1, 64]
  rate, steps, batch_size = BUDGETS[objective]
  config = ConfigDict()
  config.seed = 0
  config.model = ConfigDict({"path": str(TINY) if stage == "sft" else f"{folder}/base"})
  config.data = ConfigDict(data_of(objective, folder))
  config.method = ConfigDict({"name": "lora", "rank": 8, "scale": 2.0})
  config.objective = ConfigDict({"name": "sft"})
  if objective in PAIRS:
    config.objective = ConfigDict({"name": objective} | PAIRS[objective])
  elif objective == "reward":
    config.objective = ConfigDict({"name": "reward"})
  elif objective in ("grpo", "ppo"):
    config.objective = ConfigDict({"name": objective, "kl": 0.02})
    config.rollout = ConfigDict(rollout_of(objective, folder))
  config.optim = ConfigDict({"learning_rate": rate, "schedule": "linear", "warmup": 5})
  config.train = ConfigDict({"steps": steps, "batch_size": batch_size, "keep": "last"})
  config.evaluate = ConfigDict({"batch_size": 50})
  if stage in ("sft", "reward"):
    config.sweep = declare.grid({"seed": [0]})
  else:
    config.sweep = declare.grid({"method.rank": ranks, "seed": SEEDS})
  return config


def data_of(objective: str, folder: str) -> dict:
  pairs = objective == "reward" or objective in PAIRS
  if pairs:
    return {"train": f"{folder}/pairs.jsonl", "test": f"{folder}/pairs_test.jsonl"}
  return {name: f"{folder}/{name}.jsonl" for name in ("train", "validation", "test")}


def rollout_of(objective: str, folder: str) -> dict:
  """The reward model alone is optimised; what it stands for is reported beside it."""
  rollout = {
    "samples": 8,
    "max_new_tokens": 48,
    "rewards": (f"model:{folder}/judge", TRUE, SENTENCE),
    "weights": (1.0, 0.0, 0.0),
  }
  return rollout | ({"minibatches": 1, "epochs": 2} if objective == "ppo" else {})
