"""Trials that are spread over devices: each is as it is alone, whoever leaves or takes a place."""

import json
import math

import numpy as np
import pytest
from safetensors.numpy import load_file
from support import made_trials

CHANGES = {
  "train.steps": 6, "train.eval_every": 2, "train.log_every": 2, "optim.warmup": 0,
  "evaluate.generate": True, "evaluate.max_new_tokens": 3,
}  # fmt: skip
# Five trials that do not divide by the devices, with padded ranks, dropout and seeds of their own.
TRIALS = [
  {"method.rank": rank, "optim.learning_rate": rate, "method.dropout": dropout, "seed": seed}
  for seed, (rank, rate, dropout) in enumerate(
    [(2, 1e-4, 0.0), (4, 1e-2, 0.1), (2, 1e-3, 0.0), (4, 3e-2, 0.2), (2, 3e-3, 0.1)]
  )
]
LEAVE = {"search.early_exit": "halving", "search.rungs": (0.3,), "search.places": 3}
MESHES = [{"trial": 4}, {"trial": 2, "fsdp": 2}]


def trained(folder, setup, trials, chunk=1, **changes):
  """Returns of each trial its result, the lines of its log and its weights, as they are stored."""
  lora = {"name": "lora"}
  configs = [made_trials.complete(lora, CHANGES | changes | trial) for trial in trials]
  folders = [folder / str(e) for e in range(len(configs))]
  results = made_trials.run(configs, folders, setup, folder / "checkpoints", chunk=chunk)
  lines = [[*map(json.loads, (one / "metrics.jsonl").open())] for one in folders]
  weights = [load_file(one / "tuned.safetensors") for one in folders]
  return list(zip(results, lines, weights, strict=True))


@pytest.fixture(scope="module")
def alone(llama, tmp_path_factory):
  """Each trial in a program of its own, on one device."""
  folder, setup = tmp_path_factory.mktemp("alone"), made_trials.make(llama)
  return [trained(folder / str(e), setup, [one])[0] for e, one in enumerate(TRIALS)]


def check(found, alone, left):
  """Compares trials; sums of other orders differ in the last bits of numbers of order one."""
  for e, ((result, lines, weights), (expected, all_lines, whole)) in enumerate(
    zip(found, alone, strict=True)
  ):
    until = 2 if e in left else 6
    assert result["exited_at"] == (2 if e in left else None) and result["stopped_at"] == until
    for line, other in zip(lines, (x for x in all_lines if x["step"] <= until), strict=True):
      assert line == pytest.approx(other, rel=1e-6)
    if e not in left:
      assert result["final"] == pytest.approx(expected["final"], rel=1e-6)
      for name, x in whole.items():
        np.testing.assert_allclose(weights[name], x, rtol=0, atol=1e-6, err_msg=name)


@pytest.mark.full
@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_trials_over_devices_equal_their_solo_runs(llama, alone, tmp_path, mesh):
  """Two side by side: all that a shard has, or two and one; one at a time, below."""
  setup = made_trials.make(llama)
  check(trained(tmp_path, setup, TRIALS, chunk=2, **{"train.mesh": mesh}), alone, ())


def test_an_adalora_that_leaves_before_a_step_may_be_kept_has_what_it_trained(llama, tmp_path):
  changes = CHANGES | LEAVE | {"evaluate.generate": False}
  configs = [
    made_trials.complete({"name": "adalora"}, changes | {"optim.learning_rate": rate})
    for rate in (1e-2, 1e-4, 1e-3)
  ]
  folders = [tmp_path / str(e) for e in range(3)]
  results = made_trials.run(configs, folders, made_trials.make(llama), tmp_path / "checkpoints")
  left = [folder for folder, r in zip(folders, results, strict=True) if r["exited_at"]]
  assert left
  for folder in left:
    weights = load_file(folder / "tuned.safetensors")
    assert any(np.any(x) for name, x in weights.items() if name.endswith("/e"))


@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_so_they_do_when_some_leave_and_others_take_their_places(llama, alone, tmp_path, mesh):
  losses = [
    next(x["validation_loss"] for x in lines if x["step"] == 2 and "validation_loss" in x)
    for _, lines, _ in alone
  ]
  left = np.argsort(losses)[math.ceil(len(TRIALS) / 2) :]
  found = trained(tmp_path, made_trials.make(llama), TRIALS, **LEAVE | {"train.mesh": mesh})
  check(found, alone, left)
