"""The peft side of run.py: the plain training loop of its documentation."""

from __future__ import annotations

import json
import resource
import sys
import time

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

SMALLEST = "--tiny" in sys.argv
BATCH, LENGTH, UPDATES = 4, 128, 2 if SMALLEST else 100
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
RATES = (1e-3, 3e-3, 5e-3, 1e-2)


def step() -> None:
  """Answers each line of stdin with the times of so many updates, in ms."""
  torch.manual_seed(0)
  sizes = dict(n_embd=24, n_layer=2, n_head=2) if SMALLEST else {}
  model = GPT2LMHeadModel(GPT2Config(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, **sizes))
  # GPT-2 has one fused projection of q, k and v; peft cannot target q and v alone.
  lora = LoraConfig(r=8, lora_alpha=16, target_modules=["c_attn"], fan_in_fan_out=True)
  model = get_peft_model(model, lora).train().to(DEVICE)
  optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-3)
  tokens = torch.tensor(np.random.default_rng(0).integers(0, 50257, (BATCH, LENGTH))).to(DEVICE)
  for line in sys.stdin:
    times = []
    for _ in range(int(line) if line.strip().isdigit() else 3):
      began = time.perf_counter()
      loss = model(input_ids=tokens, labels=tokens).loss
      loss.backward()
      optimizer.step()
      optimizer.zero_grad()
      value = loss.item()
      times.append(1000 * (time.perf_counter() - began))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    if DEVICE == "cuda":
      peak = torch.cuda.max_memory_allocated() / 1e6
    print(json.dumps({"ms": times, "peak_MB": peak, "loss": round(value, 3)}), flush=True)


def trial(number: str) -> None:
  """Trains and judges one of the 16 trials, on the same tokens as jaxtune's."""
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
  {"step": step, "trial": trial}[name](*arguments)
