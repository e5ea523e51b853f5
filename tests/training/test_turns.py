"""Which trials take the next step, which wait, and which leave early."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file
from support import made_trials

from jaxtune.errors import UserError
from jaxtune.training import checkpoint, turns
from jaxtune.training.options import SearchOptions, TrainOptions

NAN = float("nan")


def standing(losses, steps, stopped=0, exited=0):
  full = lambda x: np.broadcast_to(np.asarray(x), len(losses)).copy()
  return turns.Standing(full(steps), full(stopped), full(exited), np.asarray(losses, float))


def test_halving_keeps_whole_configurations():
  """The second has the best seed of all, and a worse mean than the others."""
  losses = [[2.0], [2.0], [0.1], [9.0], [1.0], [1.2], [3.0], [3.5]]
  rule = turns.Rule("halving", (1,), 0.5, (0, 0, 1, 1, 2, 2, 3, 3))
  exited, waits = turns.leave(rule, 10, standing(losses, 10))
  assert exited.tolist() == [0, 0, 10, 10, 0, 0, 10, 10] and not waits.any()
  again, _ = turns.leave(rule, 10, standing(losses, [20, 20, 10, 10] * 2, exited=exited))
  assert again.tolist() == exited.tolist(), "what is decided stays"


def test_who_comes_first_waits_for_the_others():
  rule = turns.Rule("halving", (1, 2), 0.5, (0, 1, 2, 3))
  losses = [[1.0, NAN], [2.0, NAN], [3.0, NAN], [NAN, NAN]]
  exited, waits = turns.leave(rule, 10, standing(losses, [10, 10, 10, 4]))
  assert not exited.any() and waits.tolist() == [True, True, True, False]
  # The last one has stopped by its patience: nobody waits for it, and it does not leave.
  exited, waits = turns.leave(rule, 10, standing(losses, [10, 10, 10, 4], stopped=[0, 0, 0, 4]))
  assert exited.tolist() == [0, 0, 10, 0] and not waits.any()


def test_a_configuration_leaves_whole():
  """Also its seed that the patience has ended before; one of which all seeds ended stays."""
  rule = turns.Rule("halving", (3,), 0.5, (0, 0, 1, 1, 2, 2))
  losses = [[3.0, 2.0, 1.0]] * 2 + [[2.0, 1.2, NAN], [8.0, 7.0, 6.0]] + [[9.0, NAN, NAN]] * 2
  now = standing(losses, [30, 30, 20, 30, 10, 10], stopped=[0, 0, 20, 0, 10, 10])
  exited, _ = turns.leave(rule, 10, now)
  assert exited.tolist() == [0, 0, 0, 0, 0, 0]
  exited, _ = turns.leave(rule._replace(keep=0.3), 10, now)
  assert exited.tolist() == [0, 0, 30, 30, 0, 0]


def test_the_median_rule_and_divergence():
  """A best loss above the median of the others' means leaves, and so does an infinite one."""
  rule = turns.Rule("median", (2,), 0.5, (0, 1, 2, 3))
  losses = [[4.0, 2.0], [3.0, 3.0], [5.0, 4.0], [np.inf, np.inf]]
  exited, _ = turns.leave(rule, 5, standing(losses, 10))
  assert exited.tolist() == [0, 0, 10, 10]  # 4 is above 3, the median of 3, 3 and infinity
  losses[3] = [1.0, 1.0]
  exited, _ = turns.leave(rule, 5, standing(losses, 10))
  assert exited.tolist() == [0, 0, 10, 0]


@pytest.mark.parametrize("name", ["halving", "median"])
def test_a_configuration_that_could_not_be_judged_stays(name):
  """One that could be judged once is compared by that."""
  rule = turns.Rule(name, (2,), 0.5, (0, 0, 1, 1, 2, 2, 3, 3))
  losses = [[1.0, NAN], [NAN, 1.0], [9.0, 9.0], [NAN, NAN], [2.0, 2.0], [2.0, 2.0]]
  exited, _ = turns.leave(rule, 5, standing([*losses, [3.0, 3.0], [np.inf, np.inf]], 10))
  assert exited.tolist() == [0, 0, 0, 0, 0, 0, 10, 10]


def test_places_go_to_those_under_way_and_then_to_the_next():
  now = standing([[NAN]] * 5, [3, 0, 7, 0, 9], stopped=[0, 0, 0, 0, 9])
  none = np.zeros(5, bool)
  assert turns.next_trials(now, none, 10, 3).tolist() == [0, 1, 2]
  assert turns.next_trials(now, np.array([1, 0, 0, 0, 0], bool), 10, 3).tolist() == [1, 2, 3]


@pytest.mark.parametrize("rungs", [(1.0,), (0.95,), ()])
def test_rungs_need_an_evaluation_before_the_end(rungs):
  with pytest.raises(UserError, match=r"search\.rungs"):
    turns.rule(SearchOptions("halving", rungs), TrainOptions(steps=100), [0, 1])
  assert turns.rule(SearchOptions("halving"), TrainOptions(steps=100), [0, 1]).rungs == (3, 5)


def test_rungs_and_evaluations_are_numbered_from_the_first():
  options = TrainOptions(steps=100, eval_every=5)
  assert turns.rule(SearchOptions("halving", (0.55,)), options, [0, 1]).rungs == (11,)
  assert turns.number(np.array([100, 200, 250]), 100).tolist() == [0, 1, 2]


CHANGES = {"train.steps": 6, "train.eval_every": 2, "train.log_every": 2, "optim.warmup": 0}
RATES = (1e-4, 1e-2, 1e-3, 3e-2, 3e-3)


def trained(folder, setup, **changes):
  configs = [
    made_trials.complete(
      {"name": "lora", "rank": rank}, CHANGES | changes | {"optim.learning_rate": rate}
    )
    for rank, rate in zip((2, 4, 2, 1, 3), RATES, strict=True)
  ]
  folders = [folder / str(e) for e in range(len(configs))]
  results = made_trials.run(configs, folders, setup, folder / "checkpoints", chunk=1)
  return results, [load_file(f / "tuned.safetensors") for f in folders], folders


@pytest.fixture(scope="module")
def together(llama, tmp_path_factory):
  return trained(tmp_path_factory.mktemp("together"), made_trials.make(llama))


@pytest.mark.parametrize("places", [1, 2, 3])
def test_trials_that_take_turns_equal_those_that_do_not(llama, together, tmp_path, places):
  results, weights, folders = trained(
    tmp_path, made_trials.make(llama), **{"search.places": places}
  )
  for e, (mine, theirs) in enumerate(zip(weights, together[1], strict=True)):
    for name, x in theirs.items():
      np.testing.assert_allclose(mine[name], x, rtol=0, atol=1e-7, err_msg=name)
    lines = lambda place: [json.loads(x)["step"] for x in (place / "metrics.jsonl").open()]
    assert lines(folders[e]) == lines(together[2][e])
    final = lambda result: result["final"]["test_loss"]
    assert final(results[e]) == pytest.approx(final(together[0][e]), rel=1e-6)


@pytest.mark.full
def test_who_leaves_does_not_depend_on_the_places(llama, together, tmp_path):
  """And those who stay end as they do without a rule."""
  found = {}
  for places in (2, None):
    changes = {"search.early_exit": "halving", "search.rungs": (0.3,), "search.places": places}
    found[places] = trained(tmp_path / str(places), made_trials.make(llama), **changes)
  exits = {n: [result["exited_at"] for result in results] for n, (results, *_) in found.items()}
  assert exits[2] == exits[None] and exits[2].count(2) == 2 and exits[2].count(None) == 3
  for e, left in enumerate(exits[2]):
    for results, weights, folders in found.values():
      assert (folders[e] / "scores.safetensors").exists() == (left is None)
      if left is None:
        for name, x in together[1][e].items():
          np.testing.assert_allclose(weights[e][name], x, rtol=0, atol=1e-7)
      else:
        assert results[e]["final"].keys() == {"validation_loss"} and results[e]["stopped_at"] == 2


@pytest.mark.parametrize(
  ("after", "mesh"), [(1, {"data": 1}), (4, {"trial": 2, "fsdp": 2})], ids=str
)
def test_a_killed_group_goes_on_to_the_same_bits(llama, tmp_path, monkeypatch, after, mesh):
  """Who takes turns, waits and leaves is decided from the checkpoint alone."""
  setup, saves, real = made_trials.make(llama), [], checkpoint.Checkpoints.save
  changes = {"search.early_exit": "median", "search.rungs": (0.3,), "search.places": 2}
  changes |= {"train.mesh": mesh}

  def killed(*arguments):
    real(*arguments)
    saves.append(0)
    if len(saves) == after:
      raise KeyboardInterrupt

  whole, _, undisturbed = trained(tmp_path / "whole", setup, **changes)
  monkeypatch.setattr(checkpoint.Checkpoints, "save", killed)
  with pytest.raises(KeyboardInterrupt):
    trained(tmp_path / "killed", setup, **changes)
  results, _, folders = trained(tmp_path / "killed", setup, **changes)
  assert any(r["exited_at"] for r in whole) and len(saves) > after
  for e, (mine, theirs) in enumerate(zip(folders, undisturbed, strict=True)):
    for name in ("tuned.safetensors", "metrics.jsonl"):
      assert (mine / name).read_bytes() == (theirs / name).read_bytes()
    assert results[e]["final"] == whole[e]["final"]


@pytest.mark.parametrize("buckets", [1, 2])
def test_a_killed_group_goes_on_with_a_place_for_each(
  llama, together, tmp_path, monkeypatch, buckets
):
  """Two trials are done then, and the others have not begun; batches of several shapes are not
  stacked."""
  setup, real = made_trials.make(llama), checkpoint.Checkpoints.save

  def killed(self, step, *rest):
    real(self, step, *rest)
    if step == 12:
      raise KeyboardInterrupt

  with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
    patched.setattr(checkpoint.Checkpoints, "save", killed)
    trained(tmp_path, setup, **{"search.places": 2, "data.buckets": buckets})
  if buckets > 1:
    with pytest.raises(UserError, match="another search.places: value was 2, is now 5"):
      trained(tmp_path, setup, **{"data.buckets": buckets})
    return
  _, weights, _ = trained(tmp_path, setup)
  for mine, theirs in zip(weights, together[1], strict=True):
    for name, x in theirs.items():
      np.testing.assert_allclose(mine[name], x, rtol=0, atol=1e-7, err_msg=name)
