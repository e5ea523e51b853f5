"""What is known before a run: chunk sizes, costs and metrics."""

import dataclasses
import math

import jax
import numpy as np
import pytest
from support import made_trials, tiny

from jaxtune import data, sharding, tree
from jaxtune.errors import UserError
from jaxtune.models.decoder import Decoder
from jaxtune.preflight import checks, cost, judging, lowered
from jaxtune.runs import identity
from jaxtune.runs.trial import with_config
from jaxtune.training.options import TrainOptions


@pytest.mark.parametrize(("limit", "chunk"), [(1000, 16), (99, 4), (50, 2), (1, 1)])
def test_a_chunk_is_halved_until_it_fits(limit, chunk):
  assert cost.fit_chunk(16, limit, lambda n: 20 * n) == chunk


def test_a_cpu_takes_one_trial_at_a_time_unless_told(llama):
  setup = made_trials.make(llama)
  configs = [made_trials.complete({"name": "lora"}, {"seed": seed}) for seed in range(3)]
  assert cost.choose_chunk([with_config(setup, c) for c in configs]) == 1
  told = [made_trials.complete({"name": "lora"}, {"train.chunk": 2})]
  assert cost.choose_chunk([with_config(setup, c) for c in told]) == 2


def test_processes_of_one_run_have_one_mesh_and_the_same_bases(llama, monkeypatch):
  made, said = made_trials.make(llama), []
  monkeypatch.setattr(checks.hosts, "check_same", lambda what, value: said.append((what, value)))
  configs = [
    made_trials.complete({"name": "lora"}, changes)
    for changes in (
      {}, {"train.compilation_cache": "x"}, {"train.mesh": {"fsdp": 1}}, {"search.places": 2}
    )
  ]  # fmt: skip
  for config in configs:
    identity.check_configs([config])
  assert said[0] == said[1] and len({*said}) == 3
  for other in ("a", "b"):
    identity.check_same([made, made._replace(fingerprint=other)])
  assert len({value for what, value in said if what == "base"}) == 2
  config = dataclasses.replace(made.pretrained.model.config, logit_scale=0.5)
  edited = made._replace(pretrained=made.pretrained._replace(model=Decoder(config)))
  for second in (made, edited):
    identity.check_same([made, second])
  assert len({value for what, value in said if what == identity.CONFIG}) == 2


def test_a_warm_up_until_the_end_is_warned_of(capsys):
  numbers = [(5, 6), (6, 6), (9, 6), (9, 6)]
  changes = [{"optim.warmup": warmup, "train.steps": steps} for warmup, steps in numbers]
  checks.warn([made_trials.complete({"name": "lora"}, one) for one in changes])
  first, second = capsys.readouterr().err.splitlines()
  assert "optim.warmup is 6, expected fewer than train.steps, 6: the learning" in first
  assert "optim.warmup is 9" in second


@pytest.mark.parametrize(
  ("mesh", "count"), [({"data": 1}, 2), ({"trial": 2, "fsdp": 2}, 4)], ids=str
)
def test_other_devices_take_as_many_trials_as_fit(llama, monkeypatch, mesh, count):
  """Each of them by the largest peak of a group's programs, as their compiler states it."""
  changes, generate = {"train.compilation_cache": None}, {"generate": True, "max_new_tokens": 3}
  changes |= {"train.mesh": mesh}
  trials = [
    with_config(
      made_trials.make(llama),
      made_trials.complete({"name": "lora"}, changes | {"seed": seed}, evaluate=generate),
    )
    for seed in range(count)
  ]
  group = lowered.outline(trials)
  peak = cost._peak(group, lowered.batches(group), 2)
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  for limit, chunk in ((peak, 2), (peak - 1, 1)):
    monkeypatch.setattr(cost.fit, "room", lambda limit=limit: limit)
    assert cost.choose_chunk(trials) == chunk
  monkeypatch.setattr(cost.fit, "room", lambda: math.inf)
  search = {"search": trials[0].config["search"] | {"places": count // 2}}
  assert cost.choose_chunk([t._replace(config=t.config | search) for t in trials]) == 1


def test_a_mesh_of_more_devices_than_are_here_is_costed(llama, monkeypatch):
  seen = []
  lower = lambda group, *_: seen.append(group.parallel) or jax.jit(lambda: 0.0).lower()
  monkeypatch.setattr(lowered, "lower_step", lower)
  config = made_trials.complete({"name": "ia3"}, {"train.mesh": {"fsdp": 16}})
  assert cost.cost([with_config(made_trials.make(llama), config)])["GFLOP_per_step"] > 0
  assert seen == [sharding.ALONE]


@pytest.mark.parametrize(
  ("changes", "says"),
  [
    (
      {"train.batch_size": 1, "objective": {"name": "kto"}},
      "train.batch_size is 1, expected 2 or more: objective 'kto'",
    ),
    ({"rollout.rewards": ("length",)}, "'sft' draws no answers"),
    ({"objective": {"name": "grpo"}, "rollout.rewards": ("lenth",)}, "did you mean 'length'"),
    (
      {"objective": {"name": "grpo"}, "rollout.rewards": ("length",)},
      "4 answers, which is no multiple of rollout.samples, 8",
    ),
  ],
)
def test_what_the_config_alone_shows_is_found_before_a_model_is_loaded(changes, says):
  with pytest.raises(UserError, match=says):
    checks.check_options(made_trials.complete({"name": "lora"}, changes))


@pytest.mark.full
def test_cost_counts_every_layer_and_trial(llama):
  setup = made_trials.make(llama)
  one, two = (
    cost.cost(
      [
        with_config(setup, c)
        for c in [made_trials.complete({"name": "full"}, {"seed": s}) for s in range(n)]
      ]
    )
    for n in (1, 2)
  )
  options = TrainOptions(**made_trials.complete({"name": "full"})["train"])
  tokens = options.batch_size * setup.dataset.train.width
  weights = sum(leaf.size for path, leaf in tree.flatten(llama.params).items() if "kernel" in path)
  products = 6 * weights * tokens / 1e9  # forward, and both gradients, of every matrix
  assert products < one["GFLOP_per_step"] < 2.5 * products
  assert two["GFLOP_per_step"] == pytest.approx(2 * one["GFLOP_per_step"], rel=0.01)
  assert one["frozen_MB"] == 0


def test_a_metric_that_no_trial_will_have(llama):
  setup, config = made_trials.make(llama), made_trials.complete({"name": "lora"})
  judging.check_metric("test_loss", with_config(setup, config))
  with pytest.raises(UserError, match="test_bleu.*test_loss.*evaluate.generate"):
    judging.check_metric("test_bleu", with_config(setup, config))
  own = setup.dataset.test._replace(choices=[[f"{n} a", f"{n} b"] for n in range(8)])
  setup = setup._replace(dataset=setup.dataset._replace(test=own))
  config = made_trials.complete({"name": "lora"}, {"objective": {"name": "choices"}})
  judging.check_metric("test_accuracy", with_config(setup, config))
  with pytest.raises(UserError, match="no trial will have the metric 'test_macro_f1'"):
    judging.check_metric("test_macro_f1", with_config(setup, config))
  asked = config | {"evaluate": config["evaluate"] | {"metrics": ["accuracy", "matthews"]}}
  with pytest.raises(UserError, match="has 'matthews', expected 'accuracy': among the rows"):
    checks.check(with_config(setup, asked))


@pytest.mark.parametrize(("labels", "tags", "says"), [
  (("NN", "O"), ["O"], "has the tag 'NN'"), (("B-x", "I-x", "O"), ["O", "I-x"], "behind 'O'"),
])  # fmt: skip
def test_tags_that_make_no_spans(llama, labels, tags, says):
  setup = made_trials.make(llama, False)
  test = setup.dataset.test._replace(references=[tags] * 8)
  setup = setup._replace(dataset=setup.dataset._replace(test=test, labels=labels))
  config = made_trials.complete({"name": "lora"}, {"objective": {"name": "tokens"}})
  with pytest.raises(UserError, match=f"{says}.* or evaluate.metrics=()"):
    judging.check(with_config(setup, config))
  no_split = setup._replace(dataset=setup.dataset._replace(test=None))
  assert judging.check(with_config(no_split, config)) == 0
  silent = config | {"evaluate": config["evaluate"] | {"metrics": ()}}
  assert judging.check(with_config(setup, silent)) == 0


def test_a_task_that_a_policy_s_prompts_never_reach(llama):
  """In 6 steps of batch 4 there are 24 draws, but with 4 answers to each prompt only 6."""
  setup = made_trials.make(llama)
  train = data.arrange(setup.dataset.train._replace(tasks=["a"] * 39 + ["b"]))
  setup = setup._replace(dataset=setup.dataset._replace(train=train))
  config = made_trials.complete({"name": "lora"})
  checks.check(with_config(setup, config))
  rollout = {"samples": 4, "max_new_tokens": 2, "rewards": ["length"]}
  changes = {"objective": {"name": "grpo"}, **{f"rollout.{k}": x for k, x in rollout.items()}}
  policy = with_config(setup, made_trials.complete({"name": "lora"}, changes))
  with pytest.raises(UserError, match="1 of 2 tasks would get none of the 6 examples"):
    checks.check(policy)
  several = policy.config | {"rollout": policy.config["rollout"] | {"minibatches": 2, "epochs": 3}}
  assert [with_config(setup, several).draws(n) for n in (6, 7)] == [(1, 2), (2, 2)]


def test_a_method_that_trains_nothing_is_refused(llama):
  setup = made_trials.make(llama)
  config = made_trials.complete({"name": "regularize", "dropout": 0.1})
  with pytest.raises(UserError, match="'regularize' trains no array: add a method that does"):
    checks.check(with_config(setup, config))


def test_what_an_encoder_reads_must_fit_too():
  setup, config = made_trials.make(tiny.make("bart")), made_trials.complete({"name": "lora"})
  wide = lambda split: split._replace(
    arrays=split.arrays | {"inputs": np.zeros((split.examples, 48), np.int32)}
  )
  splits = {name: wide(getattr(setup.dataset, name)) for name in ("train", "validation", "test")}
  setup = setup._replace(dataset=setup.dataset._replace(**splits))
  with pytest.raises(UserError, match="48 tokens.* 40 positions"):
    checks.check(with_config(setup, config))


def test_texts_of_a_row_need_token_types_of_the_model(llama):
  setup, config = made_trials.make(llama), made_trials.complete({"name": "lora"})
  model = Decoder(dataclasses.replace(setup.pretrained.model.config, types=1))
  train = setup.dataset.train
  train = train._replace(arrays=train.arrays | {"types": np.ones((train.examples, 4), np.int32)})
  setup = setup._replace(
    pretrained=setup.pretrained._replace(model=model), dataset=setup.dataset._replace(train=train)
  )
  with pytest.raises(UserError, match="tells 2 texts of a row apart, expected at most 1, as"):
    checks.check(with_config(setup, config))
