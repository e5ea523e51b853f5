"""Judging: one forward pass, every example once and in order, whatever batches divide into."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import made_trials, tiny

from jaxtune import data, peft, sharding, tree
from jaxtune.errors import UserError
from jaxtune.evaluation import answers, compare, judge, rewards
from jaxtune.evaluation.options import EvaluateOptions
from jaxtune.objectives import grpo, reward, sft, tokens
from jaxtune.preflight import checks
from jaxtune.runs import costs, programs
from jaxtune.runs.first_state import first_state
from jaxtune.runs.trial import with_config
from jaxtune.training import step

COUNT, CLASSES = 11, 3


@pytest.fixture(scope="module")
def tagged():
  """A tagger with a setup of COUNT examples, whose rows can be told apart."""
  pretrained = tiny.make("bert", head="tokens", labels=CLASSES)
  setup = made_trials.make(pretrained)
  split = made_trials.split(COUNT, 5)
  labels = np.random.default_rng(0).integers(0, CLASSES, split.arrays["tokens"].shape)
  split = split._replace(arrays=split.arrays | {"labels": labels.astype(np.int32)})
  return setup, split


def measured(setup, split, size, **parallel):
  config = made_trials.complete({"name": "lora"}, {"objective": {"name": "tokens"}})
  config["evaluate"]["batch_size"] = size
  devices = sharding.make(**parallel)
  evaluator = programs.make_evaluator(with_config(setup, config), devices, 1)
  state, base = first_state(with_config(setup, config))
  pairs = jax.tree.map(lambda x: x[None], peft.Overlay(state.tuned, state.hyper))
  return judge.measure(evaluator, pairs, base, [split])[0]


@pytest.mark.full
def test_rows_do_not_depend_on_batches_or_devices(tagged):
  setup, split = tagged
  single = {"mesh": {"data": 1}}
  whole = measured(setup, split, COUNT, **single)
  logits = jax.jit(setup.pretrained.model.apply)(
    {"params": setup.pretrained.params}, split.arrays["tokens"], split.arrays["mask"]
  )
  losses, sums = tokens.loss(lambda batch: logits, split.arrays)
  np.testing.assert_allclose(whole["loss"], losses, rtol=1e-4)
  np.testing.assert_array_equal(whole["weight"], sums["weight"])
  np.testing.assert_array_equal(whole["correct"], sums["correct"])
  real = split.arrays["mask"]
  np.testing.assert_array_equal(whole["labels"][real], np.asarray(logits).argmax(-1)[real])
  for size, layout in ((4, single), (6, {"kind": "pmap"}), (3, {"mesh": {"data": 4}})):
    found = measured(setup, split, size, **layout)
    for name, rows in whole.items():
      assert len(found[name]) == COUNT
      some = real if name == "labels" else slice(None)
      np.testing.assert_allclose(found[name][some], rows[some], rtol=1e-4, atol=1e-5)


def test_trials_may_have_different_numbers_of_examples():
  """Rows come back to whom they belong, without running a model."""
  options = EvaluateOptions(batch_size=4)
  split = lambda n: made_trials.split(n, n)
  run = lambda pairs, base, batch: {"loss": batch["tokens"][:, 0].sum(-1)}
  parallel = sharding.Parallel("jit", None, 1)
  evaluator = judge.Evaluator(lambda _: run, None, tokens, parallel, options, (), None, ())
  parts = [split(10), split(3), split(7)]
  found = judge.measure(evaluator, None, None, parts)
  for rows, part in zip(found, parts, strict=True):
    np.testing.assert_array_equal(rows["loss"], part.arrays["tokens"].sum(-1))


def test_rewarded_answers_are_drawn_by_the_seeds_of_their_trials():
  """Without seeds all are drawn by 0, as those of the untuned base."""
  seen = []

  def complete(overlays, base, batch):
    seen.append(batch["seed"].tolist())
    return np.zeros((*batch["numbers"].shape, 2), np.int32)

  split = made_trials.split(3, 0)
  split = split._replace(arrays=split.arrays | {"example": np.arange(3)})
  dataset = data.Data(split, split, split, {})
  evaluator = judge.Evaluator(
    None, complete, grpo, None, EvaluateOptions(), (), made_trials.Tokenizer(), (0,),
    rewards.make(("length",)),
  )  # fmt: skip
  for seeds in ([3, 5], []):
    (one, two) = judge.judge_splits(evaluator, None, None, [dataset] * 2, seeds)
    assert one.metrics == two.metrics and one.metrics["test_reward"] == 0
  assert seen == [[3, 5], [3, 5], [0, 0], [0, 0]]  # validation and test


def test_pairs_of_a_prompt_are_resampled_as_one(monkeypatch):
  """Of two prompts with three pairs each, no interval sees more than two examples."""
  arrays = {"tokens": np.zeros((6, 2, 3), np.int32), "mask": np.ones((6, 2, 3), bool)}
  arrays |= {"difference": np.ones(6), "reference": np.zeros((6, 2))}
  split = data.Split(arrays, [[1]] * 3 + [[2]] * 3, [["x"]] * 6, [], [])
  x = np.arange(6.0)
  rows = {"loss": x, "weight": np.ones(6), "correct": x % 2}
  rows |= {"margin": -x, "chosen": x, "rejected": x**2}
  rows["rewards"] = np.stack([x, np.full(6, 2.5)], 1)
  monkeypatch.setattr(judge, "measure", lambda *_: [rows])
  options = EvaluateOptions()
  evaluator = judge.Evaluator(None, None, reward, None, options, reward.METRICS, None, ())
  (one,) = judge.judge_splits(evaluator, None, None, [data.Data(split, None, split, {})])
  found = compare.draws(one, reward.METRICS, 50)
  assert {"test_loss", "test_accuracy", "test_margin", "test_ece"} < {*found}
  assert all(len(np.unique(np.round(draws, 9))) <= 3 for draws in found.values())


def test_a_mean_over_tasks_needs_an_answer_of_each():
  """Of answers with thumbs, the disliked ones of task b are not compared with."""
  split = made_trials.split(3, 0)._replace(references=[["x"], ["y"], []], tasks=["a", "a", "b"])
  complete = lambda overlays, base, batch: np.zeros((*batch["numbers"].shape, 2), np.int32)
  options, dataset = EvaluateOptions(), data.Data(split, None, split, {})
  evaluator = judge.Evaluator(
    None, complete, sft, None, options, ("exact_match",), made_trials.Tokenizer(), (0,)
  )
  measured = judge.Judged({"test_loss/mean": 1.0}, "test")
  (found,) = judge._predicted(evaluator, None, None, [dataset], [measured], ())
  assert found.metrics == measured.metrics | {"test_exact_match": 0, "test_exact_match/a": 0}


def test_logits_are_computed_where_a_target_is(llama):
  """Of 48 tokens of a row 7 have a weight at most, and logits of 8 are computed."""
  setup = made_trials.make(llama)
  config = made_trials.complete({"name": "lora"})
  evaluator = programs.make_evaluator(
    with_config(setup, config), sharding.make(mesh={"data": 1}), 1
  )
  split = made_trials.split(COUNT, 3, 48)
  few = (np.cumsum(split.arrays["weights"], -1) <= 7) * split.arrays["weights"]
  split = split._replace(arrays=split.arrays | {"weights": few})
  assert evaluator.targets([split]) == 8
  state, base = first_state(with_config(setup, config))
  overlays = jax.tree.map(lambda x: x[None], peft.Overlay(state.tuned, state.hyper))
  found, whole = (
    judge.measure(made, overlays, base, [split])[0]
    for made in (evaluator, evaluator._replace(chooses=False))
  )
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), found, whole)
  batch = judge.stack([split.arrays])
  work = [
    costs.products(jax.make_jaxpr(evaluator.rows(most))(overlays, base, batch).jaxpr)
    for most in (8, None)
  ]
  assert work[0] < work[1]


def test_loss_and_prediction_share_one_forward_pass(monkeypatch):
  passes = []

  def apply(*args, **kwargs):
    passes.append(kwargs)
    return jnp.ones((2, 5, CLASSES))

  monkeypatch.setattr(peft, "apply", apply)
  program = step.Program(None, (), tokens.loss, None, 1, False, tokens.predict)
  ones = np.ones((2, 5), np.int32)
  batch = {"tokens": ones, "mask": ones > 0, "labels": ones, "weights": ones.astype(np.float32)}
  found = step.judge(program, peft.Overlay({}, {}), {}, batch)
  assert {*found} == {"loss", "weight", "correct", "labels"}
  (one,) = passes
  options = {"rng": None, "backward": False}
  assert {k: v for k, v in one.items() if k in options} == options
  assert one.keys() - options.keys() == {"tokens", "mask"}


def test_totals_and_tasks_by_hand():
  rows = {"loss": [2.0, 4.0, 9.0], "weight": [1, 2, 3], "correct": [1, 0, 3]}
  rows = {name: np.array(x, np.float32) for name, x in rows.items()}
  scores = lambda prefix, chosen=slice(None): judge.summarise(
    ("loss", "perplexity", "accuracy"), rows, prefix, chosen
  )
  found = judge.by_task(scores, ["x", "y", "x"], "test")
  assert found["test_loss"] == 15 / 6 and found["test_perplexity"] == pytest.approx(np.exp(2.5))
  assert found["test_accuracy"] == pytest.approx(100 * 4 / 6)
  assert found["test_loss/x"] == 11 / 4 and found["test_loss/y"] == 2
  assert found["test_loss/mean"] == (11 / 4 + 2) / 2 and found["test_accuracy/y"] == 0
  assert judge.by_task(scores, None, "test").keys() == {
    f"test_{m}" for m in ("loss", "perplexity", "accuracy")
  }
  none = rows | {"loss": rows["loss"] * [1, 0, 1], "weight": rows["weight"] * [1, 0, 1]}
  tie = lambda prefix, chosen=slice(None): judge.summarise(("loss",), none, prefix, chosen)
  left = {"test_loss": 11 / 4, "test_loss/x": 11 / 4}
  assert judge.by_task(tie, ["x", "y", "x"], "test") == left, "y has no example that counts"
  huge = {"loss": np.array([1e6]), "weight": np.ones(1), "correct": np.ones(1)}
  assert judge.summarise(("perplexity",), huge, "test")["test_perplexity"] == np.inf


@pytest.mark.parametrize(
  ("tasks", "limit", "numbers"),
  [
    (None, 3, [0, 1, 2]),
    ("xxxxyyyz", None, [0, 1, 2, 3, 4, 5, 6, 7]),
    ("xxxxyyyz", 3, [0, 4, 7]),
    ("xxxxyyyz", 6, [0, 1, 2, 4, 5, 7]),
    ("yxxxxzyy", 4, [0, 1, 2, 5]),
    ("xxxxyyyz", 99, [0, 1, 2, 3, 4, 5, 6, 7]),
  ],
)
def test_prompts_to_complete_are_of_every_task(tasks, limit, numbers):
  split = made_trials.split(8, 0)._replace(tasks=tasks and list(tasks))
  assert answers.completed(split, limit) == numbers


def test_samples_are_spread_over_a_split():
  split = made_trials.split(10, 0)
  some = data.sample(split, 4)
  np.testing.assert_array_equal(some.arrays["tokens"], split.arrays["tokens"][[0, 3, 6, 9]])
  assert data.sample(split, 40).examples == 10


@pytest.mark.parametrize("section", [{"name": "lora", "dora": True}, {"name": "norms"}])
def test_texts_of_merged_weights(llama, section):
  """Are those of the adapters, of each trial its own; here both have noise."""
  setup = made_trials.make(llama)
  split = setup.dataset.test._replace(prompts=[[5, 9, 2], [7], [3, 4], [8]] * 2)
  dataset = setup.dataset._replace(test=split, validation=None)
  found = []
  for merge in (False, True):
    options = {"generate": True, "merge": merge, "max_new_tokens": 8, "batch_size": 4}
    config = made_trials.complete(section, evaluate=options)
    trial = with_config(setup, config)
    state, base = first_state(trial)
    keys = jax.random.split(jax.random.key(1), 2)
    noisy = lambda key, x: x + 0.3 * jax.random.normal(key, x.shape)
    tuned = [jax.tree.map(partial(noisy, key), state.tuned) for key in keys]
    pairs = tree.stack([peft.Overlay(one, state.hyper) for one in tuned])
    evaluator = programs.make_evaluator(trial, sharding.make(mesh={"data": 1}), 2)
    judged = judge.judge_splits(evaluator, pairs, base, [dataset] * 2, [0, 0])
    found.append([one.predictions for one in judged])
  assert found[0] == found[1] and found[0][0] != found[0][1]


@pytest.mark.parametrize(
  ("base", "section", "says"),
  [
    ("llama", {"name": "prefix"}, "'prefix' is no weight delta"),
    (
      "llama3",
      {"name": "lora", "targets": ["embed", "q_proj"]},
      "changes the embeddings, by whose",
    ),
  ],
)
def test_what_is_not_merged(base, section, says):
  """The second base is tied: the table of its embeddings makes its logits too."""
  config = made_trials.complete(section, evaluate={"merge": True})
  with pytest.raises(UserError, match=f"evaluate.merge is True, expected False: .*{says}"):
    checks.check(with_config(made_trials.make(tiny.make(base)), config))


@pytest.mark.full
def test_samples_hang_on_the_seed_and_the_example_alone(llama):
  """Not on the size of batches, on the trials beside it, or on its place in a batch."""
  setup, prompt = made_trials.make(llama), [5, 9, 2]
  split = setup.dataset.test._replace(prompts=[prompt] * 8)
  dataset = setup.dataset._replace(test=split, validation=None)

  def sampled(size, seeds):
    options = {"generate": True, "temperature": 1.0, "max_new_tokens": 4, "batch_size": size}
    config = made_trials.complete({"name": "lora"}, evaluate=options | {"metrics": ["exact_match"]})
    trial = with_config(setup, config)
    evaluator = programs.make_evaluator(trial, sharding.make(mesh={"data": 1}), 1)
    state, base = first_state(trial)
    pairs = tree.stack([peft.Overlay(state.tuned, state.hyper)] * len(seeds))
    judged = judge.judge_splits(evaluator, pairs, base, [dataset] * len(seeds), seeds)
    return [one.predictions for one in judged]

  both = sampled(3, [0, 7])
  assert len(set(both[0])) == 8, "equal prompts are drawn apart, whatever their batch"
  assert all(a != b for a, b in zip(*both, strict=True)), "and seeds draw other samples"
  assert sampled(8, [7]) == both[1:]
