"""Policies that learn from their own answers: losses against torch, rollouts, rewards."""

import functools
import json
import os
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from transformers import AutoTokenizer

import jaxtune
from jaxtune import data, sharding
from jaxtune.assets import TINY
from jaxtune.config import complete
from jaxtune.data import EncodeOptions
from jaxtune.data.encode import pairs
from jaxtune.data.tokenizer import token_ids
from jaxtune.errors import UserError
from jaxtune.evaluation import answers as judged
from jaxtune.evaluation import judge, rewards
from jaxtune.objectives import grpo, ppo
from jaxtune.preflight import compiled, devices, elsewhere, generation, gradients, lowered
from jaxtune.runs import programs, results, reward_model, rollouts, sources
from jaxtune.runs.first_state import first_state
from jaxtune.runs.trial import prepare
from jaxtune.sweeps import declare
from jaxtune.training.options import RolloutOptions, TrainOptions

R, S, N, P, V, D = 2, 2, 6, 3, 9, 5  # rows of a prompt of P tokens and S answers of N tokens
RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(R, S * N, V)).astype(np.float32) * 2
STATES = RNG.normal(size=(R, S * N, D)).astype(np.float32)
LENGTHS = np.array([[6, 2], [3, 4]])
WEIGHTS = (np.arange(N) < LENGTHS[..., None]).astype(np.float32)


def like(scale):
  return (RNG.normal(size=(R, S, N)) * scale).astype(np.float32)


BATCH = {
  "tokens": RNG.integers(0, V, (R, P + S * N)).astype(np.int32),
  "weights": WEIGHTS,
  "policy": -2 + like(0.5),
  "reference": -2 + like(0.5),
  "advantages": like(1) * WEIGHTS,
  "values": like(1),
  "returns": like(1),
  "scale": np.array([[0.2, 0.5], [0.3, 0.4]], np.float32),
  **{name: np.ones((R, S), np.float32) for name in ("reward", *grpo.COUNTED)},
}


def torch_policy(logits, temperature):
  """log p of the answers' tokens and the entropy, (R, S, N), and the weights of these."""
  log = (logits / temperature).log_softmax(-1).reshape(R, S, N, V)
  targets = torch.tensor(BATCH["tokens"][:, P:]).long().reshape(R, S, N)
  picked = log.gather(-1, targets[..., None])[..., 0]
  return picked, -(log.exp() * log).sum(-1), torch.tensor(WEIGHTS)


def torch_loss(logits, o, values=None):
  """The papers' formulas; `values` (R, S, N) make it PPO's."""
  given = {name: torch.tensor(BATCH[name]) for name in
           ("policy", "reference", "advantages", "values", "returns")}  # fmt: skip
  log, entropy, weights = torch_policy(logits, o.get("temperature", 1.0))
  change = log - given["policy"]
  if o.get("ratio") == "sequence":
    mean = (change * weights).sum(-1, keepdim=True) / weights.sum(-1, keepdim=True)
    change = mean.expand(change.shape)
  ratio, a = change.exp(), given["advantages"]
  losses = -torch.minimum(ratio * a, ratio.clamp(1 - o["clip_low"], 1 + o["clip_high"]) * a)
  if values is None:
    d = given["reference"] - log
    kinds = {"k1": -d, "k2": d**2 / 2, "k3": d.exp() - 1 - d}
    losses = losses + o["kl"] * kinds[o.get("estimator", "k3")]
  else:
    near = given["values"] + (values - given["values"]).clamp(-o["value_clip"], o["value_clip"])
    squares = [(x - given["returns"]) ** 2 for x in (values, near)]
    losses = losses + o["value_weight"] * 0.5 * torch.maximum(*squares)
  losses = losses - o.get("entropy", 0.0) * entropy
  return (losses * weights).sum(-1) * torch.tensor(BATCH["scale"])


CLIPS = {"clip_low": 0.1, "clip_high": 0.3}


@pytest.mark.parametrize(
  "options",
  [
    {"kl": 0.0},
    {"kl": 0.4, "temperature": 0.7},
    {"kl": 0.4, "estimator": "k2", "entropy": 0.1},
    {"kl": 0.2, "ratio": "sequence"},
  ],
)
def test_the_policy_s_loss_and_gradient_are_those_of_the_papers(options):
  def ours(logits):
    forward = lambda batch, score, targets, places: score(logits, targets)
    losses, sums = grpo.loss(forward, BATCH, **CLIPS, **options)
    return losses.sum(), (losses, sums)

  (_, (losses, sums)), gradient = jax.value_and_grad(ours, has_aux=True)(LOGITS)
  logits = torch.tensor(LOGITS, requires_grad=True)
  expected = torch_loss(logits, CLIPS | options)
  expected.sum().backward()
  np.testing.assert_allclose(losses, expected.detach(), rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(gradient, logits.grad, atol=1e-5)
  assert sums["weight"].tolist() == [[1.0] * S] * R


def test_what_stands_behind_an_answer_does_not_count():
  """Also where it is so unlikely that its ratio is infinite, as padding is for a trained model."""
  far = np.where(WEIGHTS.reshape(R, -1, 1) > 0, LOGITS, LOGITS * 300)
  values = {"value_kernel": np.ones(D, np.float32), "value_bias": np.float32(0)}
  for objective, options in ((grpo, {"kl": 0.5}), (ppo, values | {"kl_stop": 1e3})):

    def total(logits, objective=objective, options=options):
      def forward(batch, score, targets, **more):
        scored = score(logits, targets)
        return (scored, STATES) if more.get("states") else scored

      losses, sums = objective.loss(forward, BATCH, **options)
      return losses.sum(), sums

    (loss, sums), gradient = jax.value_and_grad(total, has_aux=True)(far)
    (expected, others), _ = jax.value_and_grad(total, has_aux=True)(LOGITS)
    assert float(loss) == pytest.approx(float(expected))
    assert np.isfinite(gradient).all()
    np.testing.assert_allclose(sums["kl"], others["kl"])


@pytest.mark.parametrize("detached", [False, True])
def test_ppo_s_loss_trains_policy_and_values(detached):
  options = CLIPS | {"value_clip": 0.3, "value_weight": 0.5, "entropy": 0.05}
  kernel = RNG.normal(size=D).astype(np.float32)

  def ours(logits, states, kernel):
    def forward(batch, score, targets, **more):
      scored = score(logits, targets)
      return (scored, states) if more.get("states") else scored

    losses, _ = ppo.loss(forward, BATCH, kernel, np.float32(0.1), detached=detached, **options)
    return losses.sum(), losses

  (_, losses), gradients = jax.value_and_grad(ours, (0, 1, 2), has_aux=True)(LOGITS, STATES, kernel)
  tensors = [torch.tensor(x, requires_grad=True) for x in (LOGITS, STATES, kernel)]
  states = tensors[1].detach() if detached else tensors[1]
  values = (states @ tensors[2] + 0.1).reshape(R, S, N)
  expected = torch_loss(tensors[0], options, values)
  expected.sum().backward()
  np.testing.assert_allclose(losses, expected.detach(), rtol=1e-5, atol=1e-6)
  for mine, theirs in zip(gradients, tensors, strict=True):
    theirs = np.zeros_like(mine) if theirs.grad is None else theirs.grad
    np.testing.assert_allclose(mine, theirs, atol=1e-5)


def test_ppo_gives_no_gradient_once_the_policy_has_moved_too_far():
  forward = lambda batch, score, targets, **_: (score(LOGITS, targets), STATES)
  zeros = np.zeros(D, np.float32), np.float32(0)
  losses = [ppo.loss(forward, BATCH, *zeros, kl_stop=limit)[0] for limit in (0.0, 1e-3, 1e3)]
  assert not losses[1].any()
  np.testing.assert_array_equal(losses[0], losses[2])
  assert losses[0].all()
  # One of 100 tokens falls from 0.5 to 0.005: (0.01 - 1 - log 0.01) / 100 = 0.036.
  change = np.zeros((1, 1, 100), np.float32)
  change[..., 0] = np.log(0.01)
  for limit, goes_on in ((0.0362, 1.0), (0.0361, 0.0)):
    assert ppo._goes_on(change, {"weights": np.ones_like(change)}, limit) == goes_on


def test_advantages_are_those_of_their_papers():
  rewards_PS = np.array([[1.0, 2.0, 6.0], [0.0, 0.0, np.nan]])
  of = lambda kind: grpo.advantages(rewards_PS, kind)
  np.testing.assert_allclose(of("group"), [[-2, -1, 3], [0, 0, np.nan]])
  deviation = np.std([1, 2, 6], ddof=1)
  np.testing.assert_allclose(of("group_std")[0], np.array([-2, -1, 3]) / (deviation + grpo.TINY))
  np.testing.assert_allclose(of("leave_one_out"), [[1 - 4, 2 - 3.5, 6 - 1.5], [0, 0, np.nan]])
  np.testing.assert_allclose(of("batch")[0], np.array([1, 2, 6]) - 9 / 5)
  whole = np.array([1, 2, 6, 0, 0])
  np.testing.assert_allclose(
    of("batch_std")[0], (whole - whole.mean())[:3] / (np.std(whole, ddof=1) + grpo.TINY)
  )


def test_the_weight_of_the_divergence_goes_towards_its_target():
  numbers = {"kl": np.float32(0.5), "kl_rate": np.float32(0.5), "other": np.float32(3)}
  after = lambda kl, target, judged=2.0: grpo.adapt(
    numbers | {"kl_target": np.float32(target)}, {"kl": kl, "tokens": np.float32(judged)}
  )
  for kl, expected in ((0.11, 0.5 * 1.05), (0.02, 0.5 * 0.9), (9.0, 0.5 * 1.1)):
    found = after(kl, 0.1)
    assert (found["kl"], found["other"]) == (pytest.approx(expected), 3)
  assert after(9.0, 0.0)["kl"] == after(0.0, 0.1, judged=0)["kl"] == 0.5


def flat(x_RSN):
  return x_RSN.reshape(R * S, N)


def test_generalised_advantages_are_the_sum_of_discounted_errors():
  rewards_Nn, values_Nn, weights_Nn = (flat(x) for x in (like(1), BATCH["values"], WEIGHTS))
  gamma, trace = 0.9, 0.8
  found = ppo.generalised(rewards_Nn, values_Nn, weights_Nn, gamma, trace)
  for n, length in enumerate(LENGTHS.ravel()):
    value = lambda t, n=n, length=length: values_Nn[n, t] if t < length else 0.0
    errors = [rewards_Nn[n, t] + gamma * value(t + 1) - value(t) for t in range(length)]
    for t in range(N):
      later = [(gamma * trace) ** (s - t) * errors[s] for s in range(t, length)]
      assert found[n, t] == pytest.approx(sum(later), abs=1e-5)


def test_ppo_s_reward_comes_with_the_last_token_and_the_penalty_with_each():
  scores = BATCH["policy"], BATCH["reference"]
  sampled = grpo.Sampled(
    np.array([1.0, -9.0, 2.0, 0.0]), 1, *(flat(x) for x in (WEIGHTS, *scores)),
    np.zeros((R * S, N), np.float32), N,
  )  # fmt: skip
  options = {"kl": 0.5, "estimator": "k1", "gamma": 1.0, "trace": 1.0, "score_clip": 3.0}
  found = ppo.learn(sampled, whiten=False, **options)
  penalties = 0.5 * (scores[0] - scores[1]) * WEIGHTS
  expected = np.array([1.0, -3.0, 2.0, 0.0]) - flat(penalties).sum(1)
  np.testing.assert_allclose(found["advantages"][:, 0], expected, rtol=1e-5)
  white = ppo.learn(sampled, whiten=True, **options)["advantages"][flat(WEIGHTS) > 0]
  assert (white.mean(), white.std(ddof=1)) == pytest.approx((0, 1), abs=1e-5)


# What follows trains the bundled model.

REWARDS = """
import os
from pathlib import Path

def vowels(prompts, completions, rows):
  tally = Path(__file__).with_suffix(".calls")
  calls = int(tally.read_text()) + 1 if tally.exists() else 1
  tally.write_text(str(calls))
  assert len(prompts) == len(rows) and all("instruction" in row for row in rows)
  if calls == int(os.environ.get("FAILS_AT", 0)):
    raise RuntimeError("out of patience")
  return [sum(c in "aeiou" for c in text) / 10 for text in completions]

def half(prompts, completions, rows):
  if len(completions) > 1 or completions[0][:1] in "aeiouAEIOU":
    raise ValueError("a vowel")
  return [1.0]

def slow(prompts, completions, rows):
  import time
  with Path(__file__).with_suffix(".naps").open("a") as naps:
    naps.write("z")
  time.sleep(60)

def leaves(prompts, completions, rows):
  raise SystemExit

def tensor(prompts, completions, rows):
  import torch
  return torch.ones(len(completions), requires_grad=True)

def huge(prompts, completions, rows): return [10**400] * len(completions)

def few(prompts, completions, rows): return [1.0]
def odd(prompts, completions, rows): return [float("nan")] * len(completions)
"""


def configs(folder):
  """Writes prompts and rewards; returns (sections) -> a config, of a run on one device."""
  rows = [{"instruction": f"Say {word}."} for word in "abcdefg"]
  path = folder / "prompts.jsonl"
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  (folder / "rewards.py").write_text(REWARDS)

  def config(name="grpo", reward="vowels", **sections):
    rollout = {"samples": 2, "max_new_tokens": 4, "rewards": (f"{folder}/rewards.py:{reward}",)}
    train = {"steps": 4, "batch_size": 4, "log_every": 1, "compilation_cache": None}
    whole = {
      "model": {"path": str(TINY)},
      "data": {"train": str(path), "validation": 2},
      "method": {"name": "lora", "rank": 2},
      "objective": {"name": name},
      "optim": {"learning_rate": 1e-2},
      "rollout": rollout,
      "train": train | {"mesh": {"data": 1}},
    }
    return whole | {key: whole.get(key, {}) | value for key, value in sections.items()}

  return config


TWICE = {"minibatches": 1, "epochs": 2}


@pytest.fixture
def made(tmp_path):
  return configs(tmp_path)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
  """Returns (objective) -> the run of a policy that was trained alone, on one device."""
  folder = tmp_path_factory.mktemp("alone")
  config = configs(folder)

  @functools.cache
  def run(objective):
    jaxtune.fit(config(objective, rollout=TWICE), folder / objective)
    return folder / objective

  return run


def check_equal(run, expected):
  """Compares the trained arrays of two runs."""
  found, arrays = (load_file(f"{folder}/tuned.safetensors") for folder in (run, expected))
  assert found.keys() == arrays.keys()
  for name, x in arrays.items():
    np.testing.assert_allclose(found[name], x, atol=1e-5, err_msg=name)


# PPO has all that GRPO has of a rollout, and values of its own.
WITH_VALUES = [pytest.param("grpo", marks=[pytest.mark.full, pytest.mark.measurement]), "ppo"]


@pytest.mark.parametrize("objective", WITH_VALUES)
def test_a_rollout_run_that_fails_and_goes_on_ends_like_one_that_did_not(
  made, tmp_path, monkeypatch, objective
):
  adapted = {"name": objective, "kl": 0.1, "kl_target": 1e-3, "kl_rate": 1.0}
  config = made(objective=adapted, rollout=TWICE, train={"checkpoint_every": 2})
  whole = jaxtune.fit(config, tmp_path / "whole")
  (tmp_path / "rewards.calls").unlink()
  monkeypatch.setenv("FAILS_AT", "4")  # the base, the first rollout, its validation, the second
  with pytest.raises(UserError, match="RuntimeError: out of patience"):
    jaxtune.fit(config, tmp_path / "killed")
  monkeypatch.delenv("FAILS_AT")
  resumed = jaxtune.fit(config, tmp_path / "killed")
  assert resumed["final"] == whole["final"]
  for name in ("tuned.safetensors", "metrics.jsonl"):
    one, other = ((tmp_path / run / name).read_bytes() for run in ("whole", "killed"))
    assert one == other
  logged = [json.loads(x) for x in (tmp_path / "whole/metrics.jsonl").read_text().splitlines()]
  first = next(line for line in logged if "train_reward" in line)
  assert first["train_reward"] == pytest.approx(first["train_reward_vowels"])
  assert 0 < first["train_length"] <= 4
  shown = [one for line in logged for one in line.get("answers", ())]
  assert shown
  for one in shown:
    assert one["prompt"].strip().endswith("Response:")
    assert one["reward"] == sum(c in "aeiou" for c in one["answer"]) / 10
  weights = [line["train_kl_weight"] for line in logged if "train_reward" in line]
  # The mean of two updates; the first one had not left the start, so that the second has 0.8 of it.
  assert weights[0] == pytest.approx(0.09)


@pytest.mark.full
@pytest.mark.parametrize("objective", WITH_VALUES)
def test_a_group_of_policies_equals_policies_alone(made, alone, tmp_path, objective):
  numbers = {"kl": 0.5, "kl_target": 0.01, "kl_rate": 2.0}
  numbers |= {"gamma": 0.9, "trace": 0.5} if objective == "ppo" else {}
  grid = {"method.rank": [3]} | {f"objective.{key}": [x] for key, x in numbers.items()}
  trials = {"method.rank": [2]}, grid
  together = jaxtune.sweep(made(objective, rollout=TWICE) | {"sweep": trials}, tmp_path / "sweep")
  assert {one["trials_in_program"] for one in together} == {2}
  assert "while it was trained" in (tmp_path / "sweep" / "report.md").read_text()
  other = made(objective, rollout=TWICE, method={"rank": 3}, objective=numbers)
  jaxtune.fit(other, tmp_path / "other")
  runs = {2: alone(objective), 3: tmp_path / "other"}
  for one in together:
    check_equal(one["folder"], runs.pop(one["settings"]["method.rank"]))
  assert not runs


@pytest.mark.parametrize(("samples", "batch"), [(8, 16), (8, 4), (6, 9)])
def test_the_answers_of_an_update_do_not_depend_on_how_many_share_a_row(samples, batch):
  options = RolloutOptions(samples=samples, minibatches=4, epochs=2)
  orders = []
  for share in (x for x in range(1, samples + 1) if samples % x == 0 == batch % x):
    made = SimpleNamespace(options=options, train=TrainOptions(batch_size=batch), share=share)
    made.prompts = options.minibatches * batch // samples
    rows = rollouts._order(made, (0, 3))
    orders.append((rows[:, None] * share + np.arange(share)).reshape(2, -1).tolist())
  assert len(orders) > 1 and all(one == orders[0] for one in orders)
  epochs = orders[0]
  assert epochs[0] != epochs[1]
  assert [sorted(one) for one in epochs] == [list(range(4 * batch))] * 2


@pytest.mark.full
@pytest.mark.parametrize(
  "layout", [{"parallel": "pmap", "mesh": None}, {"mesh": {"data": 2, "fsdp": 2}}]
)
def test_a_policy_over_devices_equals_one_on_a_device(made, alone, tmp_path, layout):
  """Where two answers share a row, which four devices have one each of."""
  jaxtune.fit(made("ppo", rollout=TWICE, train=layout), tmp_path / "four")
  check_equal(tmp_path / "four", alone("ppo"))


@pytest.mark.parametrize("samples", [1, 4])
def test_sampler_and_trainer_have_the_same_policy_as_pytorch(made, tmp_path, samples):
  from transformers import AutoModelForCausalLM

  temperature = 0.8
  objective = {"temperature": temperature, "advantage": "batch"}
  rollout = TWICE | {"samples": samples}
  config = complete(made(objective=objective, data={"validation": None}, rollout=rollout))
  trial = prepare(config)
  parallel = sharding.make("jit", {"data": 1})
  state, base = first_state(trial)
  program = programs.make_program(trial)
  drawn = rollouts.begin([trial], program, parallel.put(base), parallel, 1)
  stacked = jax.tree.map(lambda x: x[None], state)
  batch = rollouts.batch(drawn, np.array([0]), np.array([0]), stacked)
  batch = {name: x[0, 0] for name, x in batch.items()}
  rows, share, new = batch["weights"].shape
  assert (rows, share) == (4 // samples, samples)
  model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
  key = jax.random.key(rollouts.seed_of(config["seed"], 0))
  width = batch["tokens"].shape[1] - share * new
  for row, s in np.ndindex(rows, share):
    prompt = batch["tokens"][row, :width][batch["mask"][row, :width]]
    real = batch["weights"][row, s] > 0
    answer = batch["tokens"][row, width:].reshape(share, new)[s, real]
    with torch.no_grad():
      out = model(torch.tensor([*prompt, *answer])[None])
    log = (out.logits / temperature).log_softmax(-1)[0, len(prompt) - 1 : -1].numpy()
    for name in ("policy", "reference"):
      picked = log[np.arange(len(answer)), answer]
      np.testing.assert_allclose(batch[name][row, s, real], picked, atol=2e-4)
    # The draws again, each by its own key, from PyTorch's logits.
    own = jax.random.fold_in(key, row * share + s)
    for at, token in enumerate(answer):
      below = np.exp(log[at, : token + 1].astype(np.float64)).cumsum()
      number = float(jax.random.uniform(jax.random.fold_in(own, at)))
      assert below[-1] > number - 1e-5 and (token == 0 or below[-2] < number + 1e-5)


def test_a_policy_s_programs_are_planned(made):
  trial = prepare(complete(made("ppo", rollout=TWICE, train={"mesh": None})))
  group = lowered.outline([trial])
  batches = lowered.batches(group)
  assert batches["training step"]["weights"].shape[2:] == (4, 1, 4)  # a row for each of 4 devices
  assert batches["generation"]["tokens"].shape[:2] == (1, 4)
  assert batches["held-out answers"]["tokens"].shape[:2] == (1, 2)
  for kind, batch in batches.items():
    assert lowered.flops(group, batch, kind) > 1e6
    lowered.LOWER[kind](group, batch, 1)


def test_a_plan_draws_answers_as_a_rollout_does(made, monkeypatch):
  """As many at a time as an update reads, by its temperature; the held-out ones as evaluated."""
  drawn = {"temperature": 0.7}
  config = made(objective={"name": "grpo", **drawn}, evaluate={"batch_size": 1})
  trial, asked = prepare(complete(config)), []
  note = lambda options, share=1: asked.append((options.batch_size, options.temperature, share))
  fake = lambda program, options, stop_tokens, share=1, **_: note(options, share)
  monkeypatch.setattr(rollouts, "completer", fake)
  monkeypatch.setattr(judged, "completer", fake)
  for kind in generation.KINDS:
    generation.completer([trial], kind, sharding.ALONE, 1)
  assert asked == [(4, 0.7, 2), (1, 0.0, 1)]
  group = lowered.outline([trial], devices.Device("cpu", 1e9), jax.devices())
  batches, refused = lowered.batches(group), compiled.Built("", refused="20G exceeds 16G")
  figures = lambda kind: elsewhere._figures(group, kind, batches[kind], refused)
  assert [figures(kind)["batch"][1] for kind in generation.KINDS] == [4, 1]
  monkeypatch.setitem(lowered.LOWER, "generation", lambda *_: None)
  fits = lambda *_, **__: [compiled.Built("", 1)]
  assert elsewhere._smaller(group, "generation", 1, fits) == {"train.batch_size": 2}


def test_a_step_is_tried_for_methods_whose_prompts_differ_in_length(made):
  """Alone, those with short prompts would have a row for every answer."""
  long = {"max_new_tokens": 128}
  given = [({"rank": n}, {"template": "{{ instruction }} " * n}) for n in (1, 40)]
  gradients.check([
    prepare(complete(made(method=method, data=words, rollout=long))) for method, words in given
  ])  # fmt: skip


def test_as_many_answers_are_scored_at_a_time_as_are_learnt(made):
  """By one program, whatever the longest of them has."""
  trial = prepare(complete(made(train={"accumulate": 2})))
  parallel, program = sharding.make("jit", {"data": 1}), programs.make_program(trial)
  drawn = rollouts.begin([trial], program, first_state(trial)[1], parallel, 1)
  for evaluator in (drawn.policy, drawn.before):
    assert evaluator.options.batch_size * drawn.share == 2
    assert not evaluator.chooses


def test_a_reward_that_was_edited_makes_another_run(made, tmp_path):
  config = made() | {"sweep": {"seed": [0]}}
  jaxtune.sweep(config, tmp_path / "sweep")
  with (tmp_path / "rewards.py").open("a") as file:
    file.write("\n# other\n")
  with pytest.raises(UserError, match="the result of another start or reward: .*rewards.py"):
    jaxtune.sweep(config, tmp_path / "sweep")


def test_code_in_the_folder_of_a_run_is_not_run(made, tmp_path, monkeypatch):
  """It may have come with the run from elsewhere, however the config names it."""
  monkeypatch.setenv("HOME", str(tmp_path))
  at_home = ("~/rewards.py:vowels",)
  for config in (made(), made(rollout={"rewards": at_home})):
    with pytest.raises(UserError, match="has a reward in its own folder"):
      sources.check_foreign(config, tmp_path)
    with pytest.raises(UserError, match=f"reward beside its folder.*the command in {tmp_path} if"):
      sources.check_foreign(config, tmp_path / "run")
    sources.check_foreign(config, tmp_path / "runs" / "run")
    with monkeypatch.context() as patch:
      patch.chdir(tmp_path)
      sources.check_foreign(config, tmp_path / "run")
  assert rewards.make(at_home).functions.keys() == {*at_home}


def test_a_policy_is_exported_as_its_adapter(made, tmp_path):
  config = made("ppo", train={"keep": "last"}, evaluate={"temperature": 1.0}) | {"seed": 7}
  config["data"] = {"tasks": {"words": config["data"]}}
  result = jaxtune.fit(config, tmp_path / "run")
  assert result["mixture"]["words"]["drawn"] == 4 * 4 / 2  # prompts, with two answers each
  first, *_, last = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
  # The same answers are drawn for validation while it trains and at the end.
  assert last["validation_reward"] == result["final"]["validation_reward"]
  assert first["train_clipped"] == 0  # the policy has drawn these answers itself
  assert first["train_kl"] == pytest.approx(0, abs=1e-5)
  jaxtune.export_run(jaxtune.load_run(tmp_path / "run"), tmp_path / "adapter")
  names = load_file(tmp_path / "adapter" / "adapter_model.safetensors").keys()
  assert names and all("lora" in name for name in names)


def test_a_reward_has_the_seconds_that_its_run_gives_it(made):
  trial = prepare(complete(made(rollout={"timeout": 0.2})))
  assert programs.make_rewards(trial).timeout == 0.2


def test_answers_that_a_reward_fails_on_are_left_out(made, tmp_path, monkeypatch):
  made(reward="half")
  functions = rewards.make((f"{tmp_path}/rewards.py:half", "length"), (2.0, 0.0), on_error="skip")
  answers = rewards.Answers(["p"] * 3, ["a", "x", "yz"], [["a"]] * 3, [{"instruction": ""}] * 3)
  found = rewards.score(functions, answers)
  np.testing.assert_array_equal(found["reward"], [np.nan, 2, 2])
  np.testing.assert_array_equal(found["reward_length"], [1, 1, 2])
  # Nor does their length count in a split's means.
  split = data.Split(
    {"example": np.arange(3)}, [[1]] * 3, answers.references, answers.rows, ["x"] * 3
  )
  tokenizer = SimpleNamespace(decode=lambda ids, **_: "".join(map(str, ids)), bos_token_id=None)
  evaluator = SimpleNamespace(tokenizer=tokenizer, rewards=functions)
  monkeypatch.setattr(judged, "continued", lambda *_: [answers.completions])
  (sums,) = judged.rewarded(evaluator, None, None, [split])
  assert sums["weight"].tolist() == [0, 1, 1] and sums["reward_length"].tolist() == [0, 1, 2]
  assert [one["reward"] for one in sums["shown"]] == [None, 2, 2]
  # One that is only reported has the mean of what it did judge, and none where that is nothing.
  reported = rewards.make((f"{tmp_path}/rewards.py:half", "length"), (0.0, 1.0), on_error="skip")
  evaluator.rewards = reported
  for texts, seen, logged in (("axy", {"_half": 1.0}, [1, 1, 1]), ("aei", {}, [np.nan] * 3)):
    monkeypatch.setattr(judged, "continued", lambda *_, texts=texts: [list(texts)])
    (sums,) = judged.rewarded(evaluator, None, None, [split])
    found = judge.summarise(("reward", "reward_half"), sums, "test")
    assert found == {"test_reward": 1.0} | {f"test_reward{k}": x for k, x in seen.items()}
    found = rewards.score(reported, answers._replace(completions=list(texts)))
    filled = rollouts._filled(found["reward_half"], np.isfinite(found["reward"]))
    np.testing.assert_array_equal(filled, logged)


def test_rewards_fail_in_many_ways(made, tmp_path):
  """None of which is a stack trace; one that is only reported leaves no answer out."""
  made()
  kinds = ("leaves", "tensor", "huge", "slow")
  names = [f"{tmp_path}/rewards.py:{kind}" for kind in kinds]
  answers = rewards.Answers(["p"] * 2, ["a", "bc"], [[]] * 2, [{}] * 2)
  says = {
    "few": "returned an array of shape .1,., expected one number for each of",
    "half": "failed with ValueError: a vowel",
    "huge": "returned",
    "leaves": "SystemExit",
    "odd": "returned nan for answer 0, expected a finite number",
    "slow": "took longer than rollout.timeout, 0.2 seconds",
    "tensor": "returned",
    "vowel": "no function 'vowel' there; did you mean 'vowels'",
  }
  for kind, words in says.items():
    with pytest.raises(UserError, match=words):
      rewards.score(rewards.make((f"{tmp_path}/rewards.py:{kind}",), timeout=0.2), answers)
  weights = (0.0, 0.0, 0.0, 0.0, 2.0)
  functions = rewards.make((*names, "length"), weights, timeout=0.2, on_error="skip")
  found = rewards.score(functions, answers)
  assert found["reward"].tolist() == [2, 4]
  assert all(np.isnan(found[f"reward_{kind}"]).all() for kind in kinds)
  assert (tmp_path / "rewards.naps").read_text() == "zz"  # once to stop, once to skip
  with pytest.raises(UserError, match="has 'length' twice"):
    rewards.make(("length", "length"))


def test_a_judgement_of_nothing_is_none(made, tmp_path):
  result = jaxtune.fit(made(reward="odd", rollout={"on_error": "skip"}), tmp_path / "run")
  assert not results.diverged(result)
  assert not [name for name in result["final"] if name.startswith("validation")]
  logged = [json.loads(x) for x in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
  assert {line["step"] for line in logged} == {1, 2, 3, 4}
  assert not any("train_loss" in line for line in logged), "nothing is learnt from them"


def test_rewards_have_names():
  asked = ("exact_match", "matches: ^[0-9]+$", "rougeL")
  answers = rewards.Answers(["?"] * 2, ["12", "a cat"], [["12"], ["a dog"]], [{}] * 2)
  found = rewards.score(rewards.make(asked, (1.0, 0.5, 0.0)), answers)
  np.testing.assert_allclose(found["reward"], [1.5, 0])
  np.testing.assert_allclose(found["reward_rougeL"], [1, 0.5])
  # Nor is a perfect answer of a few words without a reward.
  perfect = rewards.Answers(["?"] * 2, ["12", "a cat"], [["12"], ["no", "a cat"]], [{}] * 2)
  short = rewards.score(rewards.make(("bleu", "chrf", "rouge1", "squad_f1")), perfect)
  np.testing.assert_allclose(short["reward"], 4)
  assert 0 < rewards.score(rewards.make(("bleu",)), answers)["reward"][1] < 1
  with pytest.raises(UserError, match="unknown reward 'exact'; did you mean 'exact_match'"):
    rewards.make(("exact",))
  with pytest.raises(UserError, match="no regular expression"):
    rewards.make(("matches:[",))
  labels = rewards.labels(["a.py:f", "b.py:f_3", "c.py:f"])
  assert labels == {"reward_f": "a.py:f", "reward_f_3": "b.py:f_3", "reward_f_4": "c.py:f"}


@pytest.mark.parametrize(
  "sections, says",
  [
    ({"rollout": {"rewards": ()}}, "rollout.rewards is empty"),
    ({"rollout": {"weights": (1.0, 2.0)}}, "has 2 numbers, expected one for each of 1 rewards"),
    ({"rollout": {"weights": (0.0,)}}, "rollout.weights are all 0"),
    ({"rollout": {"rewards": ("rougeL",)}}, "prompts.jsonl:1 has no answer, which reward 'rougeL'"),
    ({"rollout": {"samples": 3}}, "4 answers, which is no multiple of rollout.samples, 3"),
    ({"rollout": {"samples": 1}}, "expected 2 or more, or objective.advantage='batch'"),
    ({"objective": {"kl_target": 0.1}}, "expected a weight to begin with, such as objective.kl"),
    ({"rollout": {"epochs": 3}}, "train.steps is 4, expected a multiple of"),
    ({"name": "sft", "data": {"text": "instruction"}}, "'sft' draws no answers"),
    ({"data": {"general": "text.jsonl"}}, "data.general is for language models: objective 'sft'"),
    ({"evaluate": {"max_new_tokens": 5}}, "max_new_tokens is 5, expected none, or rollout.max"),
    ({"rollout": {"max_new_tokens": 4000}}, "lower data.max_length, rollout.max_new_tokens or"),
    ({"evaluate": {"generate": True}}, "no answer, which evaluate.generate compares with"),
    ({"evaluate": {"limit": 1}}, "limit is 1, expected None .* held out by data.eval_limit=1"),
    ({"evaluate": {"shots": 2}}, "shots is 2, expected 0 for objective 'grpo'"),
  ],
)
def test_a_rollout_that_cannot_work_is_refused(made, tmp_path, sections, says):
  with pytest.raises(UserError, match=says):
    jaxtune.fit(made(**sections), tmp_path / "run")
  assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_policy_has_no_budget_of_seconds(made, tmp_path):
  sweep = declare.match(["lora"], seconds=1)
  with pytest.raises(UserError, match="seconds is not for objective 'grpo'.*a budget of flops"):
    jaxtune.sweep(made() | {"sweep": sweep}, tmp_path / "sweep")


def test_a_held_out_prompt_leaves_room_for_its_answer(made, tmp_path):
  path = tmp_path / "long.jsonl"
  path.write_text(json.dumps({"instruction": "word " * 500}))
  with pytest.raises(UserError, match="exceed the model's"):
    jaxtune.fit(made(data={"validation": str(path)}), tmp_path / "run")


def test_an_empty_prompt_is_refused(made, tmp_path):
  path = tmp_path / "empty.jsonl"
  path.write_text('{"prompt": "a"}\n{"prompt": " "}\n')
  with pytest.raises(UserError, match="empty.jsonl:2: the prompt is empty"):
    jaxtune.fit(made(data={"train": str(path), "validation": None}), tmp_path / "run")


@pytest.mark.parametrize("conversation", [False, True])
def test_a_reward_model_rewards_as_it_judges_pairs(made, tmp_path, conversation):
  path = tmp_path / "pairs.jsonl"
  rows = [{"prompt": f"Say {c}.\n", "chosen": f"{c} it is", "rejected": c} for c in "abcd"]
  turns = lambda row: {
    "prompt": [{"role": "user", "content": row["prompt"]}],
    **{side: [{"role": "assistant", "content": row[side]}] for side in ("chosen", "rejected")},
  }
  written = [turns(row) if conversation else row for row in rows]
  path.write_text("".join(json.dumps(row) + "\n" for row in written))
  config = made("reward", evaluate={"batch_size": 3})
  config["data"] = {"train": str(path), "test": str(path), "overlap": "allow"}
  config["data"] |= {"chat_template": "plain"} if conversation else {}
  jaxtune.fit(config | {"rollout": {}}, tmp_path / "judge")
  name = f"model:{tmp_path}/judge"
  functions = rewards.make((name,), models=reward_model.find((name,)))
  judge_all = lambda texts, functions=functions: rewards.score(
    functions, rewards.Answers([row["prompt"] for row in rows], texts, [[]] * 4, rows)
  )["reward_model"]
  score = lambda side: judge_all([row[side] for row in rows])
  found = json.loads((tmp_path / "judge" / "result.json").read_text())["final"]
  assert found["test_chosen"] == pytest.approx(score("chosen").mean(), abs=1e-5)
  assert found["test_rejected"] == pytest.approx(score("rejected").mean(), abs=1e-5)
  # What a policy has read and written is what is judged, and not what functions are shown of it.
  shown = rewards.Answers(["x"] * 4, ["y"] * 4, [[]] * 4, rows)
  exact = [(row["prompt"], row["chosen"]) for row in rows]
  found = rewards.score(functions, shown._replace(exact=exact))["reward_model"]
  assert conversation or found.tolist() == score("chosen").tolist()
  # An empty answer, with which a policy may begin, has a reward as any other, as does one alone.
  assert np.isfinite(empty := judge_all(["a it is", "", "b", " "])).all()
  np.testing.assert_allclose(empty[0], score("chosen")[0], atol=1e-5)
  if conversation:  # no turn may hold special tokens
    spelled = ["a", "a<|endoftext|>", "<|endoftext|>", "<|<|endoftext|>endoftext|>b"]
    np.testing.assert_allclose(judge_all(spelled), judge_all(["a", "a", "", "b"]), atol=1e-5)
  weights = tmp_path / "judge" / "tuned.safetensors"
  os.utime(weights, ns=(0, weights.stat().st_mtime_ns + 1))  # as if it had been trained again
  assert reward_model.find((name,))[name] is not functions.functions[name]
  if conversation:  # it rewards a policy's answers, and that policy is no reward model
    asked = [json.dumps({"messages": turns(row)["prompt"]}) for row in rows]
    (tmp_path / "asked.jsonl").write_text("\n".join(asked))
    section = {"chat_template": "plain", "train": f"{tmp_path}/asked.jsonl"}
    policy = made(rollout={"rewards": (name,)}, data=section)
    trained = jaxtune.fit(policy, tmp_path / "run")["final"]
    assert trained["validation_reward"] == trained["validation_reward_model"]
    with pytest.raises(UserError, match="by objective 'grpo', expected a reward model"):
      reward_model.find((f"model:{tmp_path}/run",))
  (tmp_path / "judge" / "result.json").rename(tmp_path / "elsewhere")
  reward_model._loaded.cache_clear()
  with pytest.raises(UserError, match="has no result.json, which says how its texts"):
    reward_model.find((name,))


@pytest.mark.parametrize("adds", [False, True])
def test_a_policy_s_answers_are_known_as_it_has_read_and_written_them(adds):
  """Functions see them without special tokens and spaces, and nobody a BOS that is added."""
  tokenizer = AutoTokenizer.from_pretrained(TINY)
  tokenizer.add_special_tokens({"additional_special_tokens": ["<|user|>"]})
  encode = lambda text: token_ids(tokenizer, [text])[0]
  bos = encode("<|user|>") if adds else []
  if adds:
    tokenizer.bos_token, tokenizer.add_bos_token = "<|user|>", True
  ids = [encode(text) for text in ("<|user|>Is it , A:", " yes\n")]
  found = rewards.answers_of(tokenizer, [bos + ids[0]], [ids[1]], [[]], [{}])
  assert (found.prompts, found.completions) == (["Is it , A:"], ["yes"])
  assert found.exact == [("<|user|>Is it , A:", " yes\n")]
  assert data.encode_prompts(tokenizer, [found.exact[0][0]]) == [bos + ids[0]]


def test_an_empty_answer_in_a_conversation_is_what_begins_and_ends_its_turn():
  tokenizer = AutoTokenizer.from_pretrained(TINY)
  spoken = [reward_model._turn("Say a.", text, {}, "x") for text in (" ", "it is")]
  options = EncodeOptions(64, chat_template="plain")
  split, _ = pairs.encode_answers(tokenizer, spoken, options)
  arrays = reward_model._emptied(split, np.array([True, False]))
  texts = [tokenizer.decode(x[m]) for x, m in zip(*arrays.values(), strict=True)]
  whole = "User:\nSay a.\nAssistant:\n{}" + tokenizer.eos_token + "\n"
  assert texts == [whole.format(""), whole.format("it is")]


def test_a_reward_model_of_tasks_reads_by_the_chat_template_that_they_share(monkeypatch):
  seen = {"splits": {"train": {"chat_template": "a hash"}}}
  report = {"tasks": {"a": seen, "b": seen, "texts": {"splits": {"train": {}}}}}
  monkeypatch.setattr(reward_model.results, "read", lambda _: {"data": report})
  tasks = {"a": {"chat_template": "plain"}, "b": {"chat_template": "plain"}, "texts": {}}
  run = SimpleNamespace(folder="judge", config={"data": {"chat_template": None, "tasks": tasks}})
  assert reward_model._wording(run) == (True, "plain")
  tasks["b"] = {}
  with pytest.raises(UserError, match="tasks with 2 chat templates, expected one for all"):
    reward_model._wording(run)


def test_a_reward_that_is_a_sweep_s_best_trial_has_a_digest(made, tmp_path):
  for name, loss in (("a", 1.0), ("b", 2.0)):
    trial = tmp_path / "judges" / "trials" / name
    trial.mkdir(parents=True)
    (trial / "tuned.safetensors").write_text(name)
    (trial / "scores.safetensors").write_text("what it scored, which nobody starts from")
    stated = {
      "objective": {"name": "reward"},
      "optim": {"learning_rate": 0.1},
      "train": {"steps": 1},
    }
    (trial / "config.json").write_text(json.dumps(stated))
    results.write(trial, {"final": {"validation_loss": loss}})
  config = complete(made(rollout={"rewards": (f"model:{tmp_path}/judges",)}))
  assert list(sources.digests(config)) == [f"{tmp_path}/judges/trials/a/tuned.safetensors"]
