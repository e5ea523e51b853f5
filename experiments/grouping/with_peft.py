"""Trains and judges one trial of configs/grouping.py with peft, in the loop of its documentation.

  python experiments/grouping/with_peft.py CONFIG.json

The trial's config is complete. It sees the same tokens in the same order as jaxtune's trial, and is
judged as often.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import peft
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, get_linear_schedule_with_warmup

from jaxtune import data
from jaxtune.assets import TINY
from jaxtune.objectives import sft

TARGETS = ["q_proj", "v_proj"]


def method_of(setting: dict) -> peft.PeftConfig:
  """Returns peft's config of the same method and size."""
  size = setting.get("rank") or setting["length"]
  scaled = {"r": size, "target_modules": TARGETS}
  virtual = {"task_type": "CAUSAL_LM", "num_virtual_tokens": size}
  makers = {
    "lora": lambda: peft.LoraConfig(lora_alpha=2 * size, **scaled),
    "loha": lambda: peft.LoHaConfig(alpha=2 * size, **scaled),
    "prefix": lambda: peft.PrefixTuningConfig(**virtual),
    "prompt": lambda: peft.PromptTuningConfig(**virtual),
  }
  return makers[setting["name"]]()


def train(config: dict) -> dict[str, float]:
  """Trains a trial. Returns its last losses on validation and test."""
  options = data.DataOptions(**config["data"])
  dataset = data.load(AutoTokenizer.from_pretrained(TINY), sft, options)
  torch.manual_seed(config["seed"])
  model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
  model = peft.get_peft_model(model, method_of(config["method"])).train()
  trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
  optimizer = torch.optim.AdamW(trained, config["optim"]["learning_rate"], weight_decay=0.0)
  steps, size = config["train"]["steps"], config["train"]["batch_size"]
  schedule = get_linear_schedule_with_warmup(optimizer, 0, steps)  # jaxtune's default
  for step in range(steps):
    loss_of(model, data.batch(dataset.train, config["seed"], step, size)).backward()
    torch.nn.utils.clip_grad_norm_(trained, 1.0)
    optimizer.step()
    schedule.step()
    optimizer.zero_grad()
    if (step + 1) % config["train"]["eval_every"] == 0:
      validation = judge(model, dataset.validation, config["evaluate"]["batch_size"])
  test = judge(model, dataset.test, config["evaluate"]["batch_size"])
  return {"validation_loss": validation, "test_loss": test}


def loss_of(model: torch.nn.Module, batch: dict[str, np.ndarray]) -> torch.Tensor:
  labels = np.where(batch["weights"] > 0, batch["tokens"], -100)
  return model(
    input_ids=torch.tensor(batch["tokens"]),
    attention_mask=torch.tensor(batch["mask"]),
    labels=torch.tensor(labels).long(),
  ).loss


@torch.no_grad()
def judge(model: torch.nn.Module, split: data.Split, size: int) -> float:
  """Returns the mean loss of a split's answer tokens."""
  model.eval()
  total = count = 0.0
  for batch in data.batches(split, size):
    tokens = float((batch["weights"] > 0).sum())
    total, count = total + tokens * loss_of(model, batch).item(), count + tokens
  model.train()
  return total / count


if __name__ == "__main__":
  print(json.dumps(train(json.loads(Path(sys.argv[1]).read_text()))))
