"""A made data set and a completed config around a tiny model, for tests of the training loop."""

from __future__ import annotations

import numpy as np

from jaxtune import config, data, tree
from jaxtune.evaluation import compare, judge
from jaxtune.models import hf
from jaxtune.runs import group, trial
from jaxtune.runs.trial import Trial, with_config
from support import tiny

UNTUNED = compare.Untuned(
  judge.Judged({"test_loss": 9.0})
)  # what a base scored, for who does not care


class Tokenizer:
  """Just enough of a tokenizer: a stop token, two ids for any text and a printable decoding."""

  bos_token_id, eos_token_id = None, 0

  def __call__(self, text, add_special_tokens=False):
    return {"input_ids": [1, 2]}

  def decode(self, ids, skip_special_tokens=False, clean_up_tokenization_spaces=False):
    return " ".join(str(int(i)) for i in ids if i or not skip_special_tokens)


def split(count: int, seed: int, length: int = 16) -> data.Split:
  """Draws a prompt and an answer that repeats its tokens: something a tiny model can learn."""
  rng = np.random.default_rng(seed)
  tokens = np.zeros((count, length), np.int32)
  mask, weights = np.zeros((count, length), bool), np.zeros((count, length), np.float32)
  prompts = []
  for i in range(count):
    half = int(rng.integers(3, length // 2))
    prompt = rng.integers(1, tiny.VOCABULARY, half)
    row = np.concatenate([prompt, prompt, [0]])[:length]
    tokens[i, : len(row)], mask[i, : len(row)], weights[i, half : len(row)] = row, True, 1
    prompts.append(prompt.tolist())
  references = [[" ".join(map(str, prompt))] for prompt in prompts]
  where = [f"made:{i}" for i in range(count)]
  arrays = {"tokens": tokens, "mask": mask, "weights": weights}
  return data.Split(arrays, prompts, references, [{}] * count, where)


def make(pretrained: hf.Pretrained, validation: bool = True) -> Trial:
  """Makes a trial of a LoRA with 40 training, 8 validation and 8 test examples."""
  dataset = data.Data(
    split(40, 0), split(8, 1) if validation else None, split(8, 2), {}, stop_tokens=(0,)
  )
  pretrained = pretrained._replace(tokenizer=Tokenizer())
  fingerprint = tree.fingerprint(pretrained.params)
  return trial.make(complete({"name": "lora"}), pretrained, dataset, fingerprint)


def complete(method: dict, changes: dict | None = None, **sections) -> dict:
  """Completes a config with 6 steps of batch 4 and a high learning rate, and changes keys."""
  plain = {
    "model": {"path": "unused"},
    "data": {"train": "unused"},
    "method": method,
    "optim": {"learning_rate": 1e-2, "warmup": 2, "weight_decay": 0.01},
    "train": {"steps": 6, "batch_size": 4, "log_every": 1, "eval_every": 3, "mesh": {"data": 1}},
    "evaluate": {"batch_size": 3},
  }
  for name, section in sections.items():
    plain[name] = plain.get(name, {}) | section
  return config.complete(config.override(plain, changes or {}))


def run(configs, folders, made: Trial, checkpoints, base=UNTUNED, **options) -> list[dict]:
  """Trains a group whose trials differ from the one made in their configs alone."""
  trials = [with_config(made, config) for config in configs]
  return group.train(trials, folders, [base] * len(trials), checkpoints, **options)
