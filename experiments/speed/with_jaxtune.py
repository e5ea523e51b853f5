"""The jaxtune side of run.py."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
from worker import ANSWERS, NEW_TOKENS, PROMPTS, ROWS, SHAPES, SMALLEST, Shape, answer, pairs

from jaxtune.runs.first_state import first_state
from jaxtune.runs.trial import with_config
from jaxtune.training.options import TrainOptions
from jaxtune.training.progress import begin

METHODS = {
  "lora": {"name": "lora", "rank": 8}, "prefix": {"name": "prefix", "length": 20},
  "adapter": {"name": "adapter"}, "full": {"name": "full"},
}  # fmt: skip
UPDATES = 2 if SMALLEST else 100
FEEDBACK = {"dpo": {"name": "dpo"}, "grpo": {"name": "grpo", "kl": 0.04}}
RATES, SEEDS = ([1e-3], [0, 1]) if SMALLEST else ([1e-3, 3e-3, 5e-3, 1e-2], [0, 1, 2, 3])


def make_update(shape: Shape, method: str, changes: dict | None = None, **model: Any) -> tuple:
  """Returns a trial, an update under jit, the first state, the frozen base and a batch.

  Args:
    changes: entries of the model's config.json.
    model: more of the section `model`.
  """
  from jaxtune import config
  from jaxtune.models import hf
  from jaxtune.runs import programs, trial
  from jaxtune.training import step as update

  architecture = shape.architecture | (changes or {})
  full = config.complete({
    "model": {"architecture": architecture, "dtype": shape.dtype} | model, "data": {"train": ""},
    "method": METHODS[method], "optim": {"clip": None},
    "train": {"steps": 1000, "batch_size": shape.batch},
  })  # fmt: skip
  made = trial.make(full, hf.load(**full["model"]), None, "")
  state, base = first_state(made)
  go = jax.jit(partial(update.update, programs.make_program(made)), donate_argnums=0)
  size = (1, shape.batch, shape.length)
  tokens = np.random.default_rng(0).integers(0, architecture["vocab_size"], size).astype(np.int32)
  batch = {"tokens": tokens, "mask": tokens >= 0, "weights": np.ones(size, np.float32)}
  return made, go, state, base, batch


def step(method: str, shape: str = "cpu") -> None:
  """Answers each line of stdin with the times of so many updates, in ms."""
  from jaxtune.runs import costs, programs
  from jaxtune.runs.trial import changed
  from jaxtune.training import step as update

  more = {} if shape == "cpu" else {"remat": False}  # a GPU's memory holds what these store
  made, go, state, base, batch = make_update(SHAPES[shape], method, **more)
  program = programs.make_program(changed([made], **costs.WHOLE)[0])
  traced = jax.make_jaxpr(partial(update.update, program))(state, base, batch)
  del made  # and with it weights that the state has copied
  compiled = go.lower(state, base, batch).compile()
  # The device's own peak would be that of making the weights.
  taken = None if jax.default_backend() == "cpu" else compiled.memory_analysis()
  batch = jax.device_put(batch)

  def once() -> float:
    nonlocal state
    state, metrics = compiled(state, base, batch)
    return float(metrics["loss"])

  of_program = lambda: taken and taken.peak_memory_in_bytes
  answer(once, of_program, GFLOP=costs.products(traced.jaxpr) / 1e9)


def products() -> None:
  """Answers each line of stdin with the times of the products alone, in ms; see `product`."""
  from jaxtune.models import hf

  _, batch, length, _ = shape = SHAPES["cpu"]
  go, arrays = product(hf.load(architecture=shape.architecture), batch, length, length)
  answer(lambda: float(go(arrays)), peak)


def product(pretrained: Any, batch: int, length: int, scored: int) -> tuple[Callable, dict]:
  """Returns a compiled function with the products of an update, and what it is to be called with.

  They are those with every kernel, of queries, keys and values, and of `scored` tokens of a row
  with the embeddings: forward, and backward to the inputs. An update that trains methods alone
  needs at least these.
  """
  from jaxtune import tree

  c, rows = pretrained.model.config, batch * length
  flat = tree.flatten(pretrained.params)
  kernels = {path: x for path, x in flat.items() if path.endswith("/kernel")}  # (L, in, out)
  numbers = np.random.default_rng(0)
  draw = lambda *shape: numbers.standard_normal(shape, np.float32)
  widths = {kernel.shape[1] for kernel in kernels.values()}
  arrays = {
    "kernels": kernels, "embedding_VD": flat["embed/embedding"],
    "inputs": {str(width): draw(rows, width) for width in widths},
    "hidden_MD": draw(batch * scored, c.width),
    "queries_BKMH": draw(batch, c.kv_heads, length * c.heads // c.kv_heads, c.head_size),
    "keys_BKSH": draw(batch, c.kv_heads, length, c.head_size) / length**0.5,  # or they overflow
  }  # fmt: skip
  there_and_back = lambda x, w: (x @ w) @ w.swapaxes(-1, -2)

  def run(arrays):
    def layer(carry, kernels):
      inputs, queries_BKMH = carry
      for kernel in kernels.values():
        width = str(kernel.shape[0])
        inputs = inputs | {width: there_and_back(inputs[width], kernel)}
      for _ in range(3):  # scores and outputs, and for each the gradients of both factors
        queries_BKMH = there_and_back(queries_BKMH, arrays["keys_BKSH"].swapaxes(-1, -2))
      return (inputs, queries_BKMH), None

    carry = arrays["inputs"], arrays["queries_BKMH"]
    carry, _ = jax.lax.scan(layer, carry, arrays["kernels"])
    hidden_MD = there_and_back(arrays["hidden_MD"], arrays["embedding_VD"].T)
    return sum(x.mean() for x in jax.tree.leaves((carry, hidden_MD)))

  return jax.jit(run), jax.tree.map(jax.numpy.asarray, arrays)


def peak() -> int | None:
  return (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


def compiling() -> None:
  """Prints {number of layers: processor seconds to lower and compile a LoRA update}."""
  found: dict = {12: [], 48: []}
  for layers in [12, *[*found] * (1 if SMALLEST else 3)]:
    changes = {"n_embd": 96, "n_layer": layers}
    _, go, *arguments = make_update(SHAPES["cpu"], "lora", changes)
    began = time.process_time()
    go.lower(*arguments).compile()
    found[layers].append(time.process_time() - began)
  found[12] = found[12][1:]  # the first one compiles what all use
  print(json.dumps({layers: round(float(np.median(found[layers])), 3) for layers in found}))


def generate(shape: str = "cpu") -> None:
  """Answers each line of stdin with the times of so many batches of texts, in ms."""
  import jax.numpy as jnp

  from jaxtune import peft
  from jaxtune.evaluation.generate import generate as continued
  from jaxtune.models import hf

  rows, length, new = (2, 4, 3) if SMALLEST else (8, 32, 64)
  pretrained = hf.load(architecture=SHAPES[shape].architecture, dtype=SHAPES[shape].dtype)
  prompts = np.random.default_rng(0).integers(0, 50000, (rows, length)).astype(np.int32)
  go = jax.jit(
    lambda base, *texts: continued(
      pretrained.model, peft.Adapted((), {"params": {}, "peft": {}}, {}, base), *texts,
      max_new_tokens=new, stop_tokens=(-1,),
    )
  )  # fmt: skip
  base = jax.tree.map(jnp.asarray, pretrained.params)
  answer(lambda: go(base, prompts, np.ones(prompts.shape, bool)).block_until_ready(), peak)


def feedback(objective: str) -> None:
  """Answers each line of stdin with the times of so many updates of DPO or GRPO, in ms.

  An update of GRPO draws and judges its answers first.
  """
  from jaxtune import config, sharding, tree
  from jaxtune.assets import TINY
  from jaxtune.runs import group, programs, reference, trial
  from jaxtune.training import loop

  with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
    file.write("".join(json.dumps(row) + "\n" for row in pairs(PROMPTS)))
    file.flush()
    full = config.complete({
      "model": {"path": str(TINY)}, "data": {"train": file.name},
      "method": METHODS["lora"], "objective": FEEDBACK[objective],
      "rollout": {"samples": 8, "max_new_tokens": NEW_TOKENS, "rewards": ("length",)},
      "train": {"batch_size": ANSWERS if objective == "grpo" else ROWS, "compilation_cache": None},
    })  # fmt: skip
    (made,) = reference.added([trial.prepare(full)])
  parallel, program = sharding.make("jit", None), programs.of_group([made])
  state, base = first_state(made)
  progress = begin(tree.stack([state]), 1, program.logged)
  batch = group.batches([made], program, parallel.put(base), parallel, 1)
  go = jax.jit(loop.make_step(program, 1), donate_argnums=0)
  carry, steps = (progress.state, progress.sums), np.zeros(1, np.int64)

  def once() -> None:
    nonlocal carry, steps
    carry = jax.block_until_ready(go(carry, base, batch(np.array([0]), steps, carry[0])))
    steps = steps + 1

  answer(once, peak)


def sweep_config():
  from ml_collections import ConfigDict

  from jaxtune.assets import INSTRUCTIONS, TINY

  return ConfigDict({
    "model": {"path": str(TINY)},
    "data": {
      "train": str(INSTRUCTIONS / "train.jsonl"), "test": str(INSTRUCTIONS / "test.jsonl"),
      "max_length": 128,
    },
    "method": {"name": "lora", "rank": 8},
    "optim": {"learning_rate": 1e-3},
    "train": {"steps": UPDATES, "batch_size": 8},
    "evaluate": {"batch_size": 16},
    "sweep": ({"optim.learning_rate": RATES, "seed": SEEDS},),
  })  # fmt: skip


def group(folder: str) -> None:
  """Trains and judges the 16 trials of a sweep."""
  import jaxtune

  jaxtune.sweep(sweep_config(), folder)


def chunk() -> None:
  """Prints {chunk size: ms of one trial's update in a group of 16}, and of its "products"."""
  from jaxtune import tree
  from jaxtune.api import sweep
  from jaxtune.runs import programs, trial
  from jaxtune.training import loop

  _, _, configs = sweep.expand(sweep_config())
  setup = trial.prepare(configs[0])
  options = TrainOptions(**configs[0]["train"])
  states, base = [first_state(with_config(setup, c)) for c in configs], None
  base, seeds, found = states[0][1], [c["seed"] for c in configs], {}
  for size in (1, 2) if SMALLEST else (1, 2, 4, 16):
    program = programs.of_group([with_config(setup, configs[0])])
    go = jax.jit(loop.make_step(program, size))
    progress = begin(tree.stack([state for state, _ in states]))
    carry, times = (progress.state, progress.sums), []
    for i in range(6):
      batch = loop.make_batch(
        [setup.dataset.train] * len(configs), seeds, [i] * len(configs), options
      )
      began = time.perf_counter()
      carry = jax.block_until_ready(go(carry, base, batch))
      times.append(1000 * (time.perf_counter() - began) / len(configs))
    found[size] = round(float(np.median(times[1:])), 1)
  rows, length = batch["tokens"].shape[-2:]
  go, arrays = product(setup.pretrained, rows, length, program.targets or length)
  found |= alternate({"products": lambda: go(arrays)})
  print(json.dumps(found))


def alternate(runs: dict, rounds: int = 2 if SMALLEST else 12) -> dict:
  """Calls functions in turns; returns each one's median ms, without its first call."""
  times: dict = {name: [] for name in runs}
  for _ in range(rounds):
    for name, sweep in runs.items():
      began = time.perf_counter()
      jax.block_until_ready(sweep())
      times[name].append(1000 * (time.perf_counter() - began))
  return {name: round(float(np.median(values[1:])), 2) for name, values in times.items()}


def choices() -> None:
  """Prints the ms of what ARCHITECTURE.md chose between: attention's gradient, and remat."""
  from jaxtune import config
  from jaxtune.models import hf
  from jaxtune.models.context import Mask
  from jaxtune.models.layers import Attend
  from jaxtune.objectives import cross_entropy
  from jaxtune.runs import programs, trial
  from jaxtune.training import step as update

  rng, found = np.random.default_rng(0), {}
  for batch, length, heads, groups, size in ((8, 96, 6, 3, 32), (4, 128, 12, 12, 64)):
    q, k, v = (
      rng.standard_normal((batch, length, n, size)).astype(np.float32)
      for n in (heads, groups, groups)
    )
    mask = Mask(np.ones((batch, length), bool), causal=True)
    plain = partial(jax.nn.dot_product_attention, mask=mask.array(length))
    gradients = {
      name: jax.jit(jax.grad(lambda *x, f=f, m=mask: (f(*x, m) ** 2).sum(), argnums=(0, 1, 2)))
      for name, f in (
        ("ours", Attend().bind({})),
        ("jax.nn", lambda q, k, v, _, f=plain: f(q, k, v)),
      )
    }
    runs = {name: partial(f, q, k, v) for name, f in gradients.items()}
    found[f"attention {batch}x{length}, {heads}/{groups} heads of {size}"] = alternate(runs)
  logits = rng.standard_normal((896, 4096)).astype(np.float32)
  targets = rng.integers(0, 4096, 896).astype(np.int32)
  right = {
    "comparisons": jax.jit(lambda x, t: cross_entropy(x, t)[1]),
    "argmax": jax.jit(lambda x, t: x.argmax(-1) == t),
  }
  runs = {name: partial(f, logits, targets) for name, f in right.items()}
  found["whether 896 of 4,096 logits are right"] = alternate(runs)
  tiny, runs = dict(sweep_config().model.to_dict()), {}
  tokens = rng.integers(0, 4096, (1, 16, 128)).astype(np.int32)
  batch = {"tokens": tokens, "mask": tokens >= 0, "weights": np.ones(tokens.shape, np.float32)}
  for remat, name in ((True, "rematerialised"), ("linear", "linear"), (False, "stored")):
    full = config.complete({
      "model": tiny | {"remat": remat}, "data": {"train": ""}, "method": {"name": "full"}
    })  # fmt: skip
    pretrained = hf.load(**full["model"])
    made = trial.make(full, pretrained, None, "")
    state, base = first_state(made)
    go = jax.jit(partial(update.update, programs.make_program(made)))
    runs[name] = partial(go, state, base, batch)
  found["full update, bundled model, 16x128"] = alternate(runs)
  print(json.dumps(found))


KINDS = (step, products, compiling, generate, feedback, group, chunk, choices)

if __name__ == "__main__":
  name, *arguments = (text for text in sys.argv[1:] if text != "--tiny")
  known = {f.__name__: f for f in KINDS}
  known[name](*arguments)
