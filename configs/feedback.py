"""The stages of learning from feedback: titles of reviews, right and short, on the bundled base.

  jaxtune sweep --config configs/feedback.py:STAGE,FOLDER --workdir runs/feedback/STAGE

STAGE is sft, sft_more, reward, dpo, kto, orpo, grpo, ppo or grpo_others. FOLDER has train.jsonl,
validation.jsonl and test.jsonl (reviews with titles), prompts.jsonl (more reviews), pairs.jsonl and
pairs_test.jsonl (two titles each), `base`, the model after sft, and `judge`, a reward model.
experiments/feedback/run.py makes them all, stage by stage.
"""

from ml_collections import ConfigDict

from jaxtune.assets import TINY
from jaxtune.errors import check_known
from jaxtune.sweeps import declare

SEEDS = [0, 1, 2, 3, 4]
HERE = "experiments/feedback/rewards.py"
REPORTED = (f"{HERE}:right_and_short", f"{HERE}:right_tone")  # and not trained on
PAIRS = {"dpo": {"beta": 0.1}, "kto": {"beta": 0.1}, "orpo": {"beta": 0.5}}
KL = {"grpo": 0.2, "ppo": 0.1}  # at 0.1, a seed of GRPO can leave the titles: see grpo_others
# (learning rate, updates, examples in an update)
BUDGETS = {
  "sft": (5e-3, 150, 16),
  "sft_more": (2e-3, 120, 32),
  "reward": (3e-3, 120, 16),
  "dpo": (2e-3, 60, 16),
  "kto": (2e-3, 60, 16),
  "orpo": (2e-3, 60, 16),
  "grpo": (2e-3, 60, 64),
  "ppo": (2e-3, 120, 64),  # two to a rollout
}


def get_config(stage_and_folder: str) -> ConfigDict:
  stage, _, folder = stage_and_folder.partition(",")
  check_known("stage", stage, [*BUDGETS, "grpo_others"])
  objective = stage.removesuffix("_others")
  rate, steps, batch_size = BUDGETS[objective]
  config = ConfigDict()
  config.seed = 0
  config.model = ConfigDict({"path": str(TINY) if stage == "sft" else f"{folder}/base"})
  config.data = ConfigDict(data_of(objective, folder))
  config.method = ConfigDict({"name": "lora", "rank": 8, "scale": 2.0})
  if stage in ("sft", "reward"):
    config.method.targets = (".*_proj",)
  config.objective = ConfigDict({"name": "sft"})
  if objective in PAIRS:
    config.objective = ConfigDict({"name": objective} | PAIRS[objective])
  elif objective == "reward":
    config.objective = ConfigDict({"name": "reward"})
  elif objective in ("grpo", "ppo"):
    config.objective = ConfigDict({"name": objective, "kl": KL[objective]})
    config.rollout = ConfigDict(rollout_of(objective, folder))
  config.optim = ConfigDict({"learning_rate": rate, "schedule": "linear", "warmup": 5})
  config.train = ConfigDict({"steps": steps, "batch_size": batch_size, "keep": "last"})
  config.train.eval_every = max(steps // 3, 2)
  config.evaluate = ConfigDict({"batch_size": 50})
  config.sweep = sweep_of(stage)
  return config


def sweep_of(stage: str) -> list[dict]:
  if stage in ("sft", "reward"):
    return declare.grid({"seed": [0]})
  if stage == "grpo_others":
    return declare.chain(
      {"method.rank": [1, 64], "seed": SEEDS},
      {"method.rank": [8], "objective.kl": [KL["grpo"] / 2], "seed": SEEDS},
    )
  return declare.grid({"method.rank": [8], "seed": SEEDS})


def data_of(objective: str, folder: str) -> dict:
  pairs = objective == "reward" or objective in PAIRS
  if pairs:
    return {"train": f"{folder}/pairs.jsonl", "test": f"{folder}/pairs_test.jsonl"}
  files = {name: f"{folder}/{name}.jsonl" for name in ("train", "validation", "test")}
  return files | ({"train": f"{folder}/prompts.jsonl"} if objective in ("grpo", "ppo") else {})


def rollout_of(objective: str, folder: str) -> dict:
  """The reward model alone is optimised; what it stands for is reported beside it."""
  rollout = {
    "samples": 8,
    "max_new_tokens": 24,
    "rewards": (f"model:{folder}/judge", *REPORTED),
    "weights": (1.0, 0.0, 0.0),
  }
  return rollout | ({"minibatches": 1, "epochs": 2} if objective == "ppo" else {})
