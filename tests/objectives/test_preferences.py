"""Objectives for pairs of answers: losses against torch, the reference, grouped trials, data."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support import folders
from support.interrupting import resumes
from transformers import AutoTokenizer

import jaxtune
from jaxtune import objectives
from jaxtune.assets import TINY
from jaxtune.errors import UserError
from jaxtune.evaluation import compare, judge
from jaxtune.peft import Overlay
from jaxtune.training import step

B, T, V = 3, 7, 11
RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(2 * B, T, V)).astype(np.float32) * 2
WEIGHTS = (RNG.random((B, 2, T)) < 0.6).astype(np.float32)
WEIGHTS[..., 1], WEIGHTS[..., 0] = 1, 0  # some target in every answer, none before the first token
BATCH = {
  "tokens": RNG.integers(0, V, (B, 2, T)).astype(np.int32),
  "mask": np.ones((B, 2, T), bool),
  "weights": WEIGHTS,
  "labels": np.zeros(B, np.int32),
  "difference": np.array([1, 2, 0.5], np.float32),
  "reference": (RNG.normal(size=(B, 2)) * 3 - 8).astype(np.float32),
}
SMOOTH = 0.2


def log_probabilities(logits):
  """The sums over each answer's tokens, (B, 2)."""
  flat = lambda array: torch.tensor(array.reshape(2 * B, T))
  targets, weights = flat(BATCH["tokens"])[:, 1:].long(), flat(WEIGHTS)[:, 1:]
  picked = logits.log_softmax(-1)[:, :-1].gather(-1, targets[..., None])[..., 0]
  return (picked * weights).sum(-1).reshape(B, 2)


def torch_loss(name, sums, counts, beta, **options):
  """The papers' formulas, of log-probabilities (B, 2), their tokens (B, 2) and a reference.

  Returns also the rewards of both answers, (B, 2).
  """
  means, d = sums / counts, (sums - torch.tensor(BATCH["reference"]))
  if name == "orpo":
    odds = means - torch.log1p(-means.exp())
    return -means[:, 0] - beta * F.logsigmoid(odds[:, 0] - odds[:, 1]), beta * means
  if name == "simpo":
    loss = -F.logsigmoid(beta * (means[:, 0] - means[:, 1] - options["gamma"] / beta))
    return loss, beta * means
  if name == "cpo":
    loss = -F.logsigmoid(beta * (sums[:, 0] - sums[:, 1])) - options["alpha"] * means[:, 0]
    return loss, beta * sums
  kind = options.get("kind", "sigmoid")
  if options.get("normalise") or kind == "ipo":
    d = d / counts
  delta, s = d[:, 0] - d[:, 1], options.get("label_smoothing", 0.0)
  right, wrong = -F.logsigmoid(beta * delta), -F.logsigmoid(-beta * delta)
  loss = {
    "sigmoid": (1 - s) * right + s * wrong,
    "robust": ((1 - s) * right - s * wrong) / (1 - 2 * s),
    "hinge": torch.relu(1 - beta * delta),
    "ipo": (delta - 1 / (2 * beta)) ** 2,
  }[kind]
  return loss, beta * d


@pytest.mark.parametrize(
  "name, options",
  [
    ("dpo", {}),
    ("dpo", {"label_smoothing": SMOOTH}),
    ("dpo", {"kind": "robust", "label_smoothing": SMOOTH}),
    ("dpo", {"kind": "hinge"}),
    ("dpo", {"kind": "ipo"}),
    ("dpo", {"normalise": True}),
    ("orpo", {}),
    ("simpo", {"gamma": 0.7}),
    ("cpo", {"alpha": 0.6}),
  ],
)
def test_losses_and_gradients_are_those_of_the_papers(name, options):
  objective = objectives.module(name)

  def ours(logits):
    forward = lambda batch, score, targets: score(logits, targets)
    losses, sums = objective.loss(forward, BATCH, beta=0.3, **options)
    return losses.sum(), (losses, sums)

  (_, (losses, sums)), gradient = jax.value_and_grad(ours, has_aux=True)(LOGITS)
  logits = torch.tensor(LOGITS, requires_grad=True)
  counts = torch.tensor(WEIGHTS[..., 1:].sum(-1))
  expected, rewards = torch_loss(name, log_probabilities(logits), counts, 0.3, **options)
  expected.sum().backward()
  np.testing.assert_allclose(losses, expected.detach(), rtol=1e-5)
  np.testing.assert_allclose(gradient, logits.grad, atol=1e-5)
  assert sums["weight"].tolist() == [1.0] * B
  chosen, rejected = rewards.detach().T
  expected = {"chosen": chosen, "rejected": rejected, "margin": chosen - rejected}
  for kind, numbers in expected.items():
    np.testing.assert_allclose(sums[kind], numbers, rtol=1e-5, err_msg=kind)
  if name == "dpo":
    drift = (BATCH["reference"] - log_probabilities(torch.tensor(LOGITS)).numpy()).mean(1)
    np.testing.assert_allclose(sums["drift"], drift, rtol=1e-5)


def test_a_reward_model_s_loss_is_that_of_bradley_and_terry():
  rewards = RNG.normal(size=2 * B).astype(np.float32)
  reward = objectives.module("reward")
  score = lambda batch: jnp.asarray(rewards)
  losses, sums = reward.loss(score, BATCH, margin=0.4, centring=0.1)
  chosen, rejected = torch.tensor(rewards.reshape(B, 2)).T
  wanted = 0.4 * torch.tensor(BATCH["difference"])
  expected = -F.logsigmoid(chosen - rejected - wanted) + 0.1 * (chosen + rejected) ** 2
  np.testing.assert_allclose(losses, expected, rtol=1e-5)
  assert sums["correct"].tolist() == [float(a > b) for a, b in zip(chosen, rejected, strict=True)]
  tied = BATCH | {"difference": np.array([1, 0, 0.5], np.float32)}
  losses, sums = reward.loss(score, tied, margin=0.4)
  assert losses[1] == 0 and sums["weight"].tolist() == [1, 0, 1] and sums["correct"][1] == 0
  assert reward.predict(score, tied)["rewards"].tolist() == rewards.reshape(B, 2).tolist()


ASKED = [f"a{n} b{n} :" for n in range(8)]
PAIRS = [{"prompt": p, "chosen": f"c0 {p[:2]}", "rejected": f"d0 {p[:2]}"} for p in ASKED]


def config_of(folder, objective, rows=PAIRS, base=None, steps=3, **sections):
  """Writes rows, and a model unless there is one, and makes a config of few steps on one device.

  What the reference says of the pairs is kept in no folder.
  """
  base = base or folders.base(folder, "llama")
  data = {"train": folders.write(folder, "pairs.jsonl", rows), "validation": 2, "max_length": 48}
  config = folders.config(base, data, objective, steps, **sections)
  config["train"]["compilation_cache"] = None
  return config


def test_a_group_of_betas_equals_trials_alone_and_the_base_stands_at_log_2(tmp_path):
  """Here the second of two; sweeps/test_groups.py has both, one step at a time."""
  config = config_of(tmp_path, "dpo")
  grid = {"objective.beta": [0.1, 1.0]}
  together = jaxtune.sweep(config | {"sweep": (grid,)}, tmp_path / "sweep")
  for one in together:
    assert one["trials_in_program"] == 2
    assert one["base"]["validation_loss"] == pytest.approx(np.log(2), abs=1e-6)
    assert one["base"]["validation_margin"] == pytest.approx(0, abs=1e-6)
    assert one["final"]["train_margin"] > 0
  config["objective"]["beta"] = together[1]["settings"]["objective.beta"]
  alone = jaxtune.fit(config, tmp_path / "alone")
  for name, value in alone["final"].items():
    assert together[1]["final"][name] == pytest.approx(value, abs=1e-5), name


def test_the_base_is_judged_by_the_numbers_of_each_trial(tmp_path):
  """So that a trial which learns nothing differs in nothing, whatever its gamma."""
  config = config_of(tmp_path, "simpo", optim={"learning_rate": 0.0})
  sweep = {"objective.beta": [10.0], "objective.gamma": [0.5, 5.0]}
  found = jaxtune.sweep(config | {"sweep": (sweep,)}, tmp_path / "sweep")
  for one in found:
    for name, value in one["base"].items():
      assert one["final"][name] == pytest.approx(value, abs=1e-5), name
  low, high = (one["base"]["validation_loss"] for one in found)
  assert high > low + 1


@pytest.mark.parametrize("name", [pytest.param("dpo", marks=pytest.mark.full), "reward"])
def test_a_run_that_is_stopped_goes_on_to_the_same_bits(tmp_path, monkeypatch, name):
  base = folders.base(tmp_path, "bert" if name == "reward" else "llama")
  config = config_of(tmp_path, name, base=base, steps=4, train={"checkpoint_every": 2})
  resumes(monkeypatch, config, tmp_path, 2)


def test_the_reference_is_the_adapter_that_training_starts_from(tmp_path):
  first = config_of(tmp_path, "simpo")
  jaxtune.fit(first, tmp_path / "first")
  method = first["method"] | {"start": str(tmp_path / "first")}
  second = config_of(tmp_path, "dpo", method=method, optim={"learning_rate": 1e-12})
  final = jaxtune.fit(second, tmp_path / "second")["final"]
  assert final["validation_loss"] == pytest.approx(np.log(2), abs=1e-5)
  assert final["validation_margin"] == pytest.approx(0, abs=1e-4)
  again = jaxtune.evaluate(jaxtune.load_run(tmp_path / "second"))["final"]
  assert again["validation_loss"] == pytest.approx(final["validation_loss"], abs=1e-6)
  with (tmp_path / "first" / "tuned.safetensors").open("ab") as file:
    file.write(b" ")
  with pytest.raises(
    UserError, match="first/tuned.safetensors, which .*second started from, is not"
  ):
    jaxtune.evaluate(jaxtune.load_run(tmp_path / "second"))


FORMS = {
  "apart": {"prompt": "Hello?\n", "chosen": "Hi.", "rejected": "No."},
  "instruction": {"instruction": "Greet.", "input": "", "chosen": "Hi.", "rejected": "No."},
  "one text": {
    "chosen": "Human: Hello?\n\nAssistant: Hi.",
    "rejected": "Human: Hello?\n\nAssistant: No.",
  },
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_pairs_is_read(tmp_path, form):
  from jaxtune import data

  path = folders.write(tmp_path, "pairs.jsonl", [FORMS[form]] * 2)
  tokenizer = AutoTokenizer.from_pretrained(TINY)
  split = data.load(tokenizer, objectives.module("dpo"), data.DataOptions(train=path)).train
  assert split.choices == [["Hi.", "No."]] * 2
  for number, answer in enumerate(("Hi.", "No.")):
    trained = split.arrays["weights"][0, number] > 0
    ids = split.arrays["tokens"][0, number][trained]
    assert tokenizer.decode(ids[:-1]).strip() == answer
    assert ids[-1] == tokenizer.eos_token_id


def test_pairs_are_not_streamed(tmp_path):
  asked = config_of(tmp_path, "dpo")
  asked["data"] |= {"stream": 4, "validation": None}
  with pytest.raises(UserError, match="by 'sft', not with objective 'dpo'"):
    jaxtune.fit(asked, tmp_path / "run")


@pytest.mark.parametrize(
  "row, said",
  [
    ({"prompt": "a\n", "chosen": "b", "rejected": "b"}, "the same answer"),
    ({"prompt": "a\n", "chosen": " ", "rejected": "b"}, "the chosen answer is empty"),
    ({"chosen": "b", "rejected": "c"}, "no prompt"),
    ({"prompt": "a\n", "chosen": "b"}, "no column 'rejected'"),
    ({"prompt": "a\n", "chosen": "b", "rejected": 3}, "expected two texts"),
  ],
)
def test_a_pair_that_is_none_is_refused(tmp_path, row, said):
  with pytest.raises(UserError, match=said):
    jaxtune.fit(config_of(tmp_path, "dpo", [row]), tmp_path / "run")


def test_kto_s_loss_is_that_of_the_paper():
  labels = np.array([1, 0, 1], np.int32)
  batch = BATCH | {"labels": labels}

  def ours(logits):
    forward = lambda batch, score, targets: score(logits, targets)
    losses, sums = objectives.module("kto").loss(forward, batch, 0.3, 1.5, 0.7)
    return losses.sum(), (losses, sums)

  (_, (losses, rows)), gradient = jax.value_and_grad(ours, has_aux=True)(LOGITS)
  logits = torch.tensor(LOGITS, requires_grad=True)
  sums = log_probabilities(logits)
  ratios = sums - torch.tensor(BATCH["reference"])
  z = 0.3 * ratios[:, 1].detach().mean().clamp(min=0)
  reward = 0.3 * ratios[:, 0]
  up = 1.5 * (1 - torch.sigmoid(reward - z))
  down = 0.7 * (1 - torch.sigmoid(z - reward))
  expected = torch.where(torch.tensor(labels) > 0, up, down)
  expected.sum().backward()
  np.testing.assert_allclose(losses, expected.detach(), rtol=1e-5)
  np.testing.assert_allclose(gradient, logits.grad, atol=1e-5)
  # The rewards of each kind are the means of that kind alone, and none where there is none of it.
  rows = {name: np.asarray(x) for name, x in rows.items()} | {"loss": np.asarray(losses)}
  kinds = {"t_up": reward.detach()[[0, 2]].mean().item(), "t_down": reward[1].item()}
  of = lambda *chosen: judge.summarise(("up", "down"), rows, "t", list(chosen))
  assert of(0, 1, 2) == pytest.approx(kinds, rel=1e-5) and of(1).keys() == {"t_down"}
  drawn = compare.draws(judge.Judged(of(0, 1, 2), "t", rows), (), 50)
  # Also in resamples that would have none of the kind, so that there is an interval.
  assert np.ptp(drawn["t_down"]) < 1e-6 and drawn["t_down"][0] == pytest.approx(kinds["t_down"])
  by_task = judge.by_task(lambda _, chosen=range(3): of(*chosen), ["a", "a", "b"], "t")
  assert {"t_up/mean", "t_up/b", "t_down/a"} < by_task.keys()
  assert not {"t_down/mean", "t_down/b"} & by_task.keys()


@pytest.mark.parametrize("axis", [None, "data"])
def test_kto_s_loss_does_not_depend_on_what_is_computed_at_once(monkeypatch, axis):
  """Parts of a batch, accumulated or on several devices; its last row fills it up."""
  kto, table = objectives.module("kto"), RNG.normal(size=(V, V)).astype(np.float32)
  forward = lambda batch, score, targets: score(jnp.asarray(table)[batch["tokens"]], targets)
  batch = BATCH | {"labels": np.array([1, 0, 1], np.int32), "reference": BATCH["reference"] - 9}
  batch = {name: np.concatenate([x, x[:1]]) for name, x in batch.items()}
  batch["weights"][-1] = 0
  monkeypatch.setattr(step, "forward", lambda *_: forward)
  program = step.Program(None, (), None, None, 1, common=kto.common)
  overlay = Overlay({"peft": {}}, {"loss": {"objective": {"beta": jnp.float32(0.3)}}})

  @jax.jit
  def losses(batch):
    parts = {name: x.reshape(2, 2, *x.shape[1:]) for name, x in batch.items()}
    inform = lambda parts: step.informed(program, overlay, {}, parts, axis)
    if axis is None:
      parts = inform(parts)
    else:
      shards = jax.vmap(inform, axis_name=axis)({name: x[:, None] for name, x in parts.items()})
      parts = {name: x[:, 0] for name, x in shards.items()}
    of = lambda rows: kto.loss(forward, rows, 0.3)[0]
    apart = [of({name: x[i] for name, x in parts.items()}) for i in range(2)]
    return jnp.concatenate(apart), of(batch), of({name: x[:2] for name, x in batch.items()})

  apart, whole, alone = losses(batch)
  np.testing.assert_allclose(apart, whole, rtol=1e-6)
  assert abs(alone - whole[:2]).max() > 1e-3
  keys = []
  monkeypatch.setattr(step, "forward", lambda *given: keys.append(given[3]) or forward)
  parts = {name: x.reshape(2, 2, *x.shape[1:]) for name, x in batch.items()}
  step.informed(program, overlay, {}, parts, rng=jax.random.key(0))
  assert keys != [None]  # with the noise of the update


def test_thumbs_train_the_policy_towards_what_people_like(tmp_path):
  """On all devices, while other tests here train on one."""
  rows = [
    {"prompt": prompt, "completion": f"{word} c1", "label": word == "c0"}
    for prompt in ASKED
    for word in ("c0", "d0")
  ]
  config = config_of(tmp_path, "kto", rows, steps=8, train={"mesh": None})
  final = jaxtune.fit(config, tmp_path / "run")["final"]
  assert final["validation_up"] > final["validation_down"]
  assert final["train_accuracy"] > 50


def test_text_is_compared_with_answers_that_people_like_alone(tmp_path):
  rows = [
    {"prompt": prompt, "completion": f"c{n}", "label": n % 2 == 1} for n, prompt in enumerate(ASKED)
  ]
  generated = {"generate": True, "max_new_tokens": 2}
  config = config_of(tmp_path, "kto", rows[:4], evaluate=generated)
  config["data"]["validation"] = folders.write(tmp_path, "held.jsonl", rows[4:])
  jaxtune.fit(config, tmp_path / "run")
  lines = (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()
  assert [json.loads(line)["references"] for line in lines] == [["c5"], ["c7"]]
  folders.write(tmp_path, "held.jsonl", rows[4::2])
  with pytest.raises(UserError, match="all that are judged have a thumb down"):
    jaxtune.fit(config, tmp_path / "other")
  with pytest.raises(UserError, match="shots is 2, expected 0 for objective 'kto'"):
    jaxtune.fit(config | {"evaluate": {"shots": 2}}, tmp_path / "other")


def test_a_reward_model_s_result_says_how_far_its_rewards_can_be_trusted(tmp_path):
  rows = [
    {"prompt": prompt, "completions": ["d0", "c0 c1", "c0 c2"], "ratings": [1, 4, 4]}
    for prompt in ASKED
  ]
  config = config_of(tmp_path, "reward", rows, str(TINY), steps=12)
  config["objective"]["margin"], config["data"]["test"] = 0.1, 3
  (result,) = jaxtune.sweep(config | {"sweep": ({"seed": [0]},)}, tmp_path / "run")
  assert result["final"]["test_accuracy"] == 100 and result["final"]["test_ece"] > 0
  assert {"test_accuracy", "test_ece"} <= result["intervals"].keys()
  assert result["length"] == {"test_accuracy": 100} and result["chance"] == {}
  assert result["by_length"]["longer"]["pairs"] == 6
  assert sum(row["pairs"] for row in result["calibration"]) == 6
  assert result["ties"]["pairs"] == 3 and result["ties"]["ties"] < result["ties"]["others"]
  report = (tmp_path / "run" / "report.md").read_text()
  assert "| length alone | 0 | 0 | - |" in report and "## Ties of" in report
  assert (tmp_path / "run" / "plots" / "calibration.png").exists()


def test_an_encoder_becomes_a_reward_model(tmp_path):
  """Its head has a bias, which cancels in every comparison."""
  config = config_of(tmp_path, "reward", base=folders.base(tmp_path, "bert"), steps=12)
  assert jaxtune.fit(config, tmp_path / "run")["final"]["validation_accuracy"] == 100
