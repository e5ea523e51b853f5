"""The costs of training in a result are those of the trial alone, counted by hand."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import folders

import jaxtune
from jaxtune import data, sharding
from jaxtune.data import padding
from jaxtune.runs import costs
from jaxtune.runs.trial import load_data
from jaxtune.training.step import State

STEPS, BATCH = 5, 4


@pytest.fixture(scope="module")
def config(tmp_path_factory):
  folder = tmp_path_factory.mktemp("costs")
  made = lambda first, count: [
    {"prompt": f"a{i % 10} b{i // 10} :" + " c1" * (30 * (i % 3 == 0)), "completion": " c1"}
    for i in range(first, first + count)
  ]
  parts = (("train", 0, 18), ("validation", 18, 6), ("test", 24, 6))
  files = {name: folders.write(folder, f"{name}.jsonl", made(*size)) for name, *size in parts}
  config = folders.config(folders.base(folder, "llama"), files | {"buckets": 2}, steps=STEPS)
  return config | {"train": config["train"] | {"eval_every": 2}}


@pytest.fixture(scope="module")
def results(config, tmp_path_factory):
  """Results of ranks 1 and 4 in one program, and of rank 1 alone."""
  folder = tmp_path_factory.mktemp("runs")
  method = lambda rank: {"name": "lora", "rank": rank}
  sweep = {"method": [method(1), method(4)], "seed": [1]}
  ranks = {
    r["trained_parameters"]: r for r in jaxtune.sweep(config | {"sweep": sweep}, folder / "s")
  }
  alone = jaxtune.fit(config | {"method": method(1), "seed": 1}, folder / "one")
  return [*map(ranks.get, sorted(ranks)), alone]


def test_flops_are_those_of_the_products(config, results):
  """A site has x a, (x a) b and two gradients of each: 6 R (inputs + outputs) FLOP for a token."""
  one, four, alone = results
  train = load_data(jaxtune.config.complete(config)).train
  widths = [data.batch(train, 1, step, BATCH)["tokens"].shape[1] for step in range(STEPS)]
  assert len(set(widths)) == 2, "batches of two widths"
  assert four["flops"] - one["flops"] == 3 * 6 * one["trained_parameters"] * BATCH * sum(widths)
  assert one["flops"] == alone["flops"], "the padding of a group counts for nobody"
  assert one["flops_per_update"] == round(one["flops"] / STEPS)


@pytest.mark.full
def test_flops_of_a_policy_count_the_passes_that_draw_and_score(config, tmp_path):
  """In an update 6 R (inputs + outputs) FLOP for a token, and 2 each to draw and to score once."""
  policy = {"objective": {"name": "grpo"}, "train": config["train"] | {"eval_every": None}}
  policy |= {"rollout": {"samples": 2, "max_new_tokens": 3, "rewards": ("length",)}}
  method = lambda rank: {"name": "lora", "rank": rank}
  one, four = (
    jaxtune.fit(config | policy | {"method": method(rank)}, tmp_path / str(rank)) for rank in (1, 4)
  )
  prompts = load_data(jaxtune.config.complete(config | policy)).train.prompts
  tokens = (BATCH // 2) * (
    padding.width(max(map(len, prompts)), None) + 2 * 3
  )  # a prompt is shared
  more = four["trained_parameters"] - one["trained_parameters"]
  assert four["flops"] - one["flops"] == (6 + 2 + 2) * more * tokens * STEPS


def test_tokens_are_those_of_the_batches(config, results):
  train = load_data(jaxtune.config.complete(config)).train
  seen = sum(data.batch(train, 1, step, BATCH)["mask"].sum() for step in range(STEPS))
  assert [result["tokens"] for result in results] == [seen] * 3


def test_memory_is_that_of_the_trial(results):
  one, four, alone = results
  more = four["trained_parameters"] - one["trained_parameters"]
  assert four["memory"] - one["memory"] == 3 * 4 * more, "weights and two moments in fp32"
  assert one["memory"] == pytest.approx(alone["memory"], rel=0.05)
  assert one["memory"] > 4 * one["base_parameters"]


@pytest.mark.parametrize(
  ("mesh", "chunk", "copies"),
  [({"data": 4}, 1, 4), ({"data": 4}, 4, 0), ({"trial": 4}, 1, 0), ({"trial": 2}, 1, 2)],
)
def test_a_device_copies_the_states_of_its_own_trials_alone(mesh, chunk, copies):
  """Where it computes them one after another."""
  parallel = sharding.make("jit", mesh)
  tuned = {"peft": {"q": {"lora": {"a": jnp.zeros((4, 100))}}}}
  own = State(jnp.zeros(4), jnp.zeros(4), tuned, {}, {}, ())
  alone = jax.tree.map(lambda x: x[0], own)
  working = chunk * 1000 + copies * 408
  compiled = SimpleNamespace(memory_analysis=lambda: SimpleNamespace(temp_size_in_bytes=working))
  step = SimpleNamespace(lower=lambda *_: SimpleNamespace(compile=lambda: compiled))
  base = parallel.put({"norm": {"scale": jnp.zeros(5)}})
  arguments = (parallel.put(own, "trial"), {}), base, {"tokens": np.zeros((4, 1, 2, 3))}
  found = costs.memory(step, arguments, [alone] * 4, chunk, mesh.get("trial", 1), False)
  assert found == [20 + 408 + 1000] * 4


@pytest.mark.parametrize("variants", [1, 3])
@pytest.mark.parametrize("steps", [1, 7, 40])
def test_tokens_of_any_order_are_those_of_its_batches(steps, variants):
  """With mixtures, buckets and variants, within an epoch and over several."""
  rng = np.random.default_rng(0)
  lengths_X = rng.integers(1, 30, 24)
  mask = np.arange(30) < lengths_X[:, None]
  tasks = ["a", "b", "b"] * 8 if variants == 1 else ["a"] * 24
  arrays = {"tokens": mask.astype(np.int32), "mask": mask, "weights": mask.astype(np.float32)}
  split = data.Split(arrays, [[]] * 24, [[]] * 24, [{}] * 24, [""] * 24, tasks)
  forms = None if variants == 1 else np.arange(24).reshape(-1, variants)
  mixed = data.arrange(split, mixture="equal", buckets=3, variants=forms)
  for one in (split, mixed):
    seen = sum(data.batch(one, 3, step, BATCH)["mask"].sum() for step in range(steps))
    assert data.tokens_seen(one, 3, steps, BATCH) == seen
    shapes = [data.batch(one, 3, step, BATCH)["mask"].shape for step in range(steps)]
    kinds = data.kinds(one, steps, BATCH)
    assert sum(n for n, _ in kinds) == steps
    for shape in set(shapes):
      assert sum(n for n, b in kinds if b["mask"].shape == shape) == shapes.count(shape)
