"""Objectives beside trl's own code: losses and gradients on the same logits.

trl's trainers compute a loss in a method of theirs, which is called here with a stand-in for the
trainer and for the model. ORPO is left out, as trl trains it on the prompt too; test_preferences
has it from the paper.
"""

from collections import defaultdict
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import torch
from trl.experimental.cpo.cpo_trainer import CPOTrainer
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.kto_trainer import KTOTrainer
from trl.trainer.reward_trainer import RewardTrainer
from trl.trainer.rloo_trainer import RLOOTrainer

from jaxtune import objectives
from jaxtune.objectives import grpo

B, T, V = 4, 7, 11
RNG = np.random.default_rng(1)
TOKENS = RNG.integers(0, V, (B, 2, T)).astype(np.int32)
LOGITS = RNG.normal(size=(B, 2, T, V)).astype(np.float32) * 2
STARTS = RNG.integers(1, 4, (B, 1, 1))
ENDS = RNG.integers(4, T + 1, (B, 2, 1))
WEIGHTS = ((np.arange(T) >= STARTS) & (np.arange(T) < ENDS)).astype(np.float32)
REFERENCE = (RNG.normal(size=(B, 2)) * 2 - 8).astype(np.float32)
PAIRS = {
  "tokens": TOKENS, "mask": np.ones((B, 2, T), bool), "weights": WEIGHTS,
  "labels": np.zeros(B, np.int32), "reference": REFERENCE,
  "difference": RNG.integers(1, 4, B).astype(np.float32),
}  # fmt: skip
same = lambda x, **_: x
ACCELERATOR = SimpleNamespace(
  gather=same, gather_for_metrics=same, reduce=same, device="cpu", num_processes=1
)


def trainer(**fields):
  """Stands in for a trainer that evaluates."""
  known = dict(
    accelerator=ACCELERATOR, model=SimpleNamespace(training=False), aux_loss_enabled=False,
    ld_alpha=None, f_divergence_type="reverse_kl", use_weighting=False, loss_weights=[1.0],
    precompute_ref_logps=True, calculate_KL=True, _total_train_tokens=0, _metrics=defaultdict(
      lambda: defaultdict(list)
    ),
  )  # fmt: skip
  return SimpleNamespace(**known | fields)


def log_of(logits, tokens):
  """log p of each token but the first."""
  targets = torch.tensor(tokens[..., 1:]).long()[..., None]
  return logits[..., :-1, :].log_softmax(-1).gather(-1, targets)[..., 0]


def model_of(logits, tokens, weights):
  """Stands in for a model that trl has patched to return log-probabilities."""
  log = log_of(logits, tokens) * torch.tensor(weights[..., 1:])
  return lambda **_: SimpleNamespace(
    log_probs=log, entropy=log, mean_logits=log, is_top1=log > 0, logits=logits
  )


def sides(array):
  """Lays pairs (B, 2, ...) out as trl does, all chosen answers first: (2 B, ...)."""
  return np.concatenate([array[:, 0], array[:, 1]])


def compare(objective, theirs, options, batch=PAIRS, logits=LOGITS):
  """Compares the mean loss of a batch, and its gradient, with theirs(torch logits)."""

  def ours(logits):
    flat = logits.reshape(-1, T, V)

    def forward(batch, score, targets, places=slice(None)):
      return score(flat[:, places], targets)

    return objective.loss(forward, batch, **options)[0].mean()

  loss, gradient = jax.value_and_grad(ours)(logits)
  tensor = torch.tensor(logits, requires_grad=True)
  expected = theirs(tensor)
  expected.backward()
  assert float(loss) == pytest.approx(expected.item(), rel=1e-5)
  np.testing.assert_allclose(gradient, tensor.grad, atol=1e-5)


@pytest.mark.parametrize(
  ("kind", "options"),
  [
    ("sigmoid", {}),
    ("hinge", {"kind": "hinge"}),
    ("ipo", {"kind": "ipo"}),
    ("robust", {"kind": "robust", "label_smoothing": 0.2}),
    ("sigmoid_norm", {"normalise": True}),
  ],
)
def test_dpo(kind, options):
  def theirs(logits):
    flat = torch.cat([logits[:, 0], logits[:, 1]])
    inputs = {
      "input_ids": torch.tensor(sides(TOKENS)).long(),
      "attention_mask": torch.ones(2 * B, T),
      "completion_mask": torch.tensor(sides(WEIGHTS)).long(),
      "ref_chosen_logps": torch.tensor(REFERENCE[:, 0]),
      "ref_rejected_logps": torch.tensor(REFERENCE[:, 1]),
    }
    stand_in = trainer(loss_types=[kind], beta=0.3, label_smoothing=0.2)
    model = model_of(flat, sides(TOKENS), sides(WEIGHTS))
    return DPOTrainer._compute_loss(stand_in, model, inputs, False)

  compare(objectives.module("dpo"), theirs, {"beta": 0.3} | options)


def test_kto():
  labels = np.array([1, 0, 1, 0], np.int32)

  def theirs(logits):
    own, other = (model_of(logits[:, i], TOKENS[:, i], WEIGHTS[:, i]) for i in (0, 1))
    inputs = {
      "label": torch.tensor(labels).bool(),
      "input_ids": torch.tensor(TOKENS[:, 0]).long(),
      "attention_mask": torch.ones(B, T),
      "completion_mask": torch.tensor(WEIGHTS[:, 0]).long(),
      "ref_logps": torch.tensor(REFERENCE[:, 0]),
      "ref_KL_logps": torch.tensor(REFERENCE[:, 1]),
    }
    stand_in = trainer(
      beta=0.3, loss_type="kto", desirable_weight=1.5, undesirable_weight=0.7,
      _compute_kl_logps=lambda *_: other().log_probs.sum(-1).detach(),
    )  # fmt: skip
    return KTOTrainer._compute_loss(stand_in, own, inputs, False)

  options = {"beta": 0.3, "desirable": 1.5, "undesirable": 0.7}
  compare(objectives.module("kto"), theirs, options, PAIRS | {"labels": labels})


@pytest.mark.parametrize("name", ["simpo", "cpo"])
def test_simpo_and_cpo(name):
  def theirs(logits):
    log = (log_of(logits, TOKENS) * torch.tensor(WEIGHTS[..., 1:])).sum(-1)
    tokens = torch.tensor(WEIGHTS[..., 1:].sum(-1))
    kind, scored = ("simpo", log / tokens) if name == "simpo" else ("sigmoid", log)
    stand_in = trainer(
      alpha=0.0, beta=0.3, loss_type=kind, simpo_gamma=0.6, label_smoothing=0.0
    )  # fmt: skip
    losses, *_ = CPOTrainer.cpo_loss(stand_in, scored[:, 0], scored[:, 1])
    imitation = -(log / tokens)[:, 0] if name == "cpo" else 0.0
    return (losses + imitation).mean()

  options = {"gamma": 0.6} if name == "simpo" else {"alpha": 1.0}
  compare(objectives.module(name), theirs, {"beta": 0.3} | options)


def test_reward():
  scores = RNG.normal(size=(B, 2)).astype(np.float32)
  ours = lambda scores: (
    objectives.module("reward")
    .loss(lambda batch: scores.reshape(-1), PAIRS, margin=0.4, centring=0.1)[0]
    .mean()
  )
  loss, gradient = jax.value_and_grad(ours)(scores)
  tensor = torch.tensor(scores, requires_grad=True)
  model = lambda **_: SimpleNamespace(logits=torch.cat([tensor[:, 0], tensor[:, 1]])[:, None])
  stand_in = trainer(args=SimpleNamespace(center_rewards_coefficient=0.1))
  margins = 0.4 * torch.tensor(PAIRS["difference"])
  expected = RewardTrainer.compute_loss(stand_in, model, {"margin": margins})
  expected.backward()
  assert float(loss) == pytest.approx(expected.item(), rel=1e-5)
  np.testing.assert_allclose(gradient, tensor.grad, atol=1e-5)


ANSWERS = WEIGHTS[:, 0, 1:]  # a row is a prompt of one token and one answer
REWARDS = np.array([1.0, 0.0, 0.5, 2.0])


def sampled(spread):
  """Answers to two prompts, drawn by a policy that differs by so much from the logits' own.

  The reference is far away, so that the divergence keeps the loss from being a small sum of terms
  of both signs, of which rounding is a larger share.
  """
  log = log_of(torch.tensor(LOGITS[:, 0]), TOKENS[:, 0]).numpy()
  noise = RNG.normal(size=(2, B, T - 1)).astype(np.float32)
  policy, reference = (log + x * by for x, by in zip(noise, (spread, 1.5), strict=True))
  return grpo.Sampled(REWARDS, 2, ANSWERS, policy, reference, None, T)


def answers(found, advantage, length):
  """The batch of sampled answers."""
  known = {name: np.ones(B, np.float32) for name in ("reward", *grpo.COUNTED)}
  known |= {"weights": ANSWERS, "policy": found.policy, "reference": found.reference}
  known |= grpo.learn(found, advantage, length)
  return {"tokens": TOKENS[:, 0]} | {name: x[:, None] for name, x in known.items()}


@pytest.mark.parametrize(
  ("kind", "advantage", "length", "ratio"),
  [
    ("grpo", "group_std", "answer", "token"),
    ("grpo", "group_std", "answer", "sequence"),
    ("dr_grpo", "group", "fixed", "token"),
    ("dapo", "group_std", "batch", "token"),
  ],
)
def test_grpo(kind, advantage, length, ratio):
  found = sampled(0.3)
  batch = answers(found, advantage, length)
  pairs = torch.tensor(REWARDS).reshape(-1, 2)
  expected = pairs - pairs.mean(1, keepdim=True)
  if advantage == "group_std":
    expected = expected / (pairs.std(1, keepdim=True) + 1e-4)
  expected = expected.flatten().float()

  def theirs(logits):
    stand_in = trainer(
      _get_per_token_logps_and_entropies=lambda *_, **__: (
        log_of(logits, TOKENS[:, 0]), torch.zeros(B, T - 1), None
      ),
      top_entropy_quantile=1.0, off_policy_mask_threshold=None, importance_sampling_level=ratio,
      beta=0.2, loss_type=kind, epsilon_low=0.1, epsilon_high=0.3, use_vllm=False,
      max_completion_length=T, _entropy_bonus_enabled=False,
      args=SimpleNamespace(delta=None, use_bias_correction_kl=False, steps_per_generation=1),
    )  # fmt: skip
    inputs = {
      "prompt_ids": torch.tensor(TOKENS[:, 0, :1]), "prompt_mask": torch.ones(B, 1),
      "completion_ids": torch.tensor(TOKENS[:, 0, 1:]),
      "completion_mask": torch.tensor(ANSWERS), "advantages": expected,
      "old_per_token_logps": torch.tensor(found.policy),
      "ref_per_token_logps": torch.tensor(found.reference),
      "num_items_in_batch": torch.tensor(ANSWERS.sum()),
    }  # fmt: skip
    return GRPOTrainer._compute_loss(stand_in, None, inputs)

  options = {"clip_low": 0.1, "clip_high": 0.3, "kl": 0.2, "ratio": ratio}
  compare(grpo, theirs, options, batch, LOGITS[:, 0])


def test_rloo_on_its_own_answers():
  """trl's ratio is of whole answers; of answers of its own, the policy's gradient is the same."""
  found = sampled(0.0)
  batch = answers(found, "leave_one_out", "sum")
  others = torch.tensor(REWARDS).reshape(-1, 2).flip(1).flatten()
  expected = (torch.tensor(REWARDS) - others).float()
  ours = lambda logits: grpo.loss(
    lambda batch, score, targets, places: score(logits[:, places], targets), batch
  )[0].mean()
  gradient = jax.grad(ours)(LOGITS[:, 0])
  logits = torch.tensor(LOGITS[:, 0], requires_grad=True)
  stand_in = trainer(
    _get_per_token_logps_and_entropies=lambda *_, **__: (
      log_of(logits, TOKENS[:, 0]), torch.zeros(B, T - 1), None
    ),
    epsilon_low=0.2, epsilon_high=0.2,
  )  # fmt: skip
  mask = torch.tensor(ANSWERS)
  RLOOTrainer._compute_loss(stand_in, None, {
    "prompt_ids": torch.tensor(TOKENS[:, 0, :1]), "prompt_mask": torch.ones(B, 1),
    "completion_ids": torch.tensor(TOKENS[:, 0, 1:]), "completion_mask": mask,
    "old_logps": (torch.tensor(found.policy) * mask).sum(1), "advantages": expected,
  }).backward()  # fmt: skip
  np.testing.assert_allclose(gradient, logits.grad, atol=1e-5)
