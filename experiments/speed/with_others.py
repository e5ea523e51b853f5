"""The other libraries' side of run.py: the plain training loop of their documentation.

peft for LoRA and prefixes, adapters for bottlenecks, transformers for full updates and generation,
trl for learning from feedback.
"""

from __future__ import annotations

import importlib
import json
import sys
import tempfile
import time
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from worker import (
  ANSWERS,
  NEW_TOKENS,
  PROMPTS,
  ROWS,
  SHAPES,
  SMALLEST,
  Shape,
  answer,
  pairs,
  reply,
)  # fmt: skip

UPDATES = 2 if SMALLEST else 100
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
RATES = (1e-3, 3e-3, 5e-3, 1e-2)


def untuned(shape: Shape) -> Any:
  """Returns a model with random weights and no dropout, on the device."""
  torch.manual_seed(0)
  dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
  architecture = shape.architecture
  more = dropout if architecture["model_type"] == "gpt2" else {}
  with torch.device(DEVICE):
    config = AutoConfig.for_model(**architecture, **more)
    return AutoModelForCausalLM.from_config(config, dtype=getattr(torch, shape.dtype))


def tuned(method: str, shape: Shape) -> Any:
  """Returns a model with a method of the library that has it."""
  model: Any = untuned(shape)
  if method == "full":
    return model
  if method == "adapter":
    importlib.import_module("adapters").init(model)  # from an environment of its own
    model.add_adapter("bottleneck", config="seq_bn")
    model.train_adapter("bottleneck")
    model.set_active_adapters("bottleneck")
    for name, parameter in model.named_parameters():  # it would train the tied head, too
      parameter.requires_grad = "bottleneck" in name
    return model
  from peft import LoraConfig, PrefixTuningConfig, get_peft_model

  # GPT-2 has one fused projection of q, k and v; peft cannot target q and v alone.
  fused = shape.architecture["model_type"] == "gpt2"
  targets = ["c_attn"] if fused else ["q_proj", "v_proj"]
  lora = LoraConfig(r=8, lora_alpha=16, target_modules=targets, fan_in_fan_out=fused)
  prefix = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=20)
  return get_peft_model(model, {"lora": lora, "prefix": prefix}[method])


def step(method: str, how: str = "eager", shape: str = "cpu") -> None:
  """Answers each line of stdin with the times of so many updates, in ms."""
  model = tuned(method, SHAPES[shape]).train().to(DEVICE)
  optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-3)
  (_, batch, length, dtype), most = SHAPES[shape], SHAPES[shape].architecture["vocab_size"]
  tokens = torch.tensor(np.random.default_rng(0).integers(0, most, (batch, length))).to(DEVICE)
  call = torch.compile(model) if how == "compile" else model
  half = torch.autocast(DEVICE, torch.bfloat16, enabled=dtype == "bfloat16")

  def once() -> float:
    with half:
      loss = call(input_ids=tokens, labels=tokens).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()

  answer(once, peak)


def generate(shape: str = "cpu") -> None:
  """Answers each line of stdin with the times of so many batches of texts, in ms."""
  rows, length, new = (2, 4, 3) if SMALLEST else (8, 32, 64)
  model = untuned(SHAPES[shape]).eval()
  prompts = torch.tensor(np.random.default_rng(0).integers(0, 50000, (rows, length))).to(DEVICE)
  options = dict(max_new_tokens=new, min_new_tokens=new, do_sample=False, pad_token_id=50256)

  @torch.no_grad()
  def once() -> None:
    model.generate(prompts, attention_mask=torch.ones_like(prompts), **options)

  answer(once, peak)


def feedback(objective: str, how: str = "") -> None:
  """Answers lines of stdin from within trl's trainer: DPO or GRPO on the bundled model.

  Args:
    how: "precomputed" for a reference whose log-probabilities trl computes before training.
  """
  import trl
  from datasets import Dataset
  from peft import LoraConfig
  from transformers import AutoTokenizer, TrainerCallback

  from jaxtune.assets import TINY

  class Turns(TrainerCallback):
    left, times, began = 0, [], 0.0

    def on_step_begin(self, *_, **__):
      if not self.left:
        line = sys.stdin.readline()
        self.left, self.times = int(line) if line.strip().isdigit() else 3, []
      self.began = time.perf_counter()

    def on_step_end(self, *_, **__):
      self.times.append(1000 * (time.perf_counter() - self.began))
      self.left -= 1
      if not self.left:
        reply(self.times, peak())

  shared = dict(
    output_dir=tempfile.mkdtemp(), report_to=[], use_cpu=DEVICE == "cpu", bf16=False,
    gradient_checkpointing=False, learning_rate=1e-3, max_steps=10_000, save_strategy="no",
    logging_strategy="no", disable_tqdm=True, optim="adamw_torch",
  )  # fmt: skip
  more: dict = {"eval_dataset": None}
  if objective == "dpo":
    args = trl.DPOConfig(
      per_device_train_batch_size=ROWS, precompute_ref_log_probs=how == "precomputed", **shared
    )
    make = trl.DPOTrainer
  else:
    args = trl.GRPOConfig(
      per_device_train_batch_size=ANSWERS, num_generations=8,
      max_completion_length=NEW_TOKENS, beta=0.04, steps_per_generation=1, loss_type="grpo",
      **shared,
    )  # fmt: skip
    make, more = (
      trl.GRPOTrainer,
      {"reward_funcs": lambda completions, **_: list(map(len, completions))},
    )
  trainer = make(
    model=AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32),
    args=args,
    train_dataset=Dataset.from_list(pairs(PROMPTS)),
    processing_class=AutoTokenizer.from_pretrained(TINY),
    peft_config=LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"]),
    callbacks=[Turns()],
    **more,
  )
  trainer.train()


def peak() -> int | None:
  return torch.cuda.max_memory_allocated() if DEVICE == "cuda" else None


def trial(number: str) -> None:
  """Trains and judges one of the 16 trials, on the same tokens as jaxtune's."""
  from peft import LoraConfig, get_peft_model
  from transformers import AutoTokenizer

  from jaxtune import data
  from jaxtune.assets import INSTRUCTIONS, TINY
  from jaxtune.objectives import sft

  seed, rate = int(number) % 4, RATES[int(number) // 4]
  files = {name: str(INSTRUCTIONS / f"{name}.jsonl") for name in ("train", "test")}
  options = data.DataOptions(**files, max_length=128)
  dataset = data.load(AutoTokenizer.from_pretrained(TINY), sft, options)
  torch.manual_seed(seed)
  model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
  lora = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"])
  model = get_peft_model(model, lora).train().to(DEVICE)
  optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], rate)
  schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, UPDATES)

  def loss_of(batch):
    labels = np.where(batch["weights"] > 0, batch["tokens"], -100)
    put = lambda array: torch.tensor(array).to(DEVICE)
    return model(
      input_ids=put(batch["tokens"]), attention_mask=put(batch["mask"]), labels=put(labels).long()
    ).loss

  for i in range(UPDATES):
    loss_of(data.batch(dataset.train, seed, i, 8)).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    schedule.step()
    optimizer.zero_grad()
  model.eval()
  with torch.no_grad():
    losses = [float(loss_of(batch)) for batch in data.batches(dataset.test, 16)]
  print(json.dumps({"test_loss": float(np.mean(losses))}))


if __name__ == "__main__":
  name, *arguments = (text for text in sys.argv[1:] if text != "--tiny")
  known = {f.__name__: f for f in (step, generate, feedback, trial)}
  known[name](*arguments)
