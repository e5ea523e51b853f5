"""Every confound is named where it is, with its trials, and not where it is not."""

from __future__ import annotations

import json
import math

import pytest

from jaxtune import config
from jaxtune.runs.scores import Scores
from jaxtune.sweeps import comparison, pairs

LORA = {"method": {"name": "lora", "alpha": 16.0, "scale": None, "rslora": False}}
SEEDS = range(3)


def said(results, kind, metric="test_loss", **more):
  """Returns the texts of the warnings of a kind, and their trials."""
  found = comparison.compare(results, metric, **more).warnings
  return [(one.text, one.trials) for one in found if one.kind == kind]


def along(made, path, losses, method="lora", **more):
  """Returns results of three seeds for {value of `path`: loss}."""
  return [
    made.result({path: value, "seed": seed}, loss + 0.01 * seed, method=method, **more)
    for value, loss in losses.items()
    for seed in SEEDS
  ]


def test_alpha_by_rank(made):
  results = made.ranks({1: [2.0], 4: [1.5]})
  ((text, trials),) = said(results, "scale", config=LORA)
  assert "alpha = 16 is fixed" in text and "(ranks 1, 4)" in text and "set method.scale" in text
  assert trials == ("rank=4,seed=0", "rank=1,seed=0"), "the best first"
  root = {"method": LORA["method"] | {"rslora": True}}
  assert "alpha / the root of the rank" in said(results, "scale", config=root)[0][0]
  fixed = {"method": LORA["method"] | {"scale": 2.0}}
  assert not said(results, "scale", config=fixed) and not said(results, "scale")
  assert not said(results[:1], "scale", config=LORA)
  section = lambda rank, **more: made.result({"method": {"name": "lora", "rank": rank} | more}, 2.0)
  assert not said([section(r, alpha=2 * r) for r in (1, 4)], "scale", config=LORA)
  assert said([section(r) for r in (1, 4)], "scale", config=LORA)


def test_one_rate_for_all(made):
  config = {"optim": {"learning_rate": 0.005}}
  sizes = made.ranks({1: [2.0], 4: [1.5]})
  ((text, trials),) = said(sizes, "one_rate", config=config)
  assert "One learning rate, 0.005, for all settings of lora" in text and len(trials) == 2
  methods = [made.result({"method.name": m}, 2.0, method=m) for m in ("lora", "prefix")]
  assert "0.005, for lora and prefix" in said(methods, "one_rate", config=config)[0][0]
  methods[0]["settings"]["optim.learning_rate"] = 0.1
  assert not said(methods, "one_rate", config=config), "each has its own"
  swept = [
    made.result({"method.rank": rank, "optim.learning_rate": rate}, 2.0)
    for rank in (1, 4)
    for rate in (0.1, 0.01)
  ]
  assert not said(swept, "one_rate", config=config)
  curve = {"rank=1": {"rates": [0.1, 0.2], "losses": [1, 2], "chosen": 0.1, "at_edge": True}}
  sizes[0]["own_rate"] = True
  assert not said(sizes, "one_rate", config=config), "one is left, with this rate"
  three = made.ranks({1: [2.0], 4: [1.5], 16: [1.0]})
  three[0]["own_rate"] = True
  ((_, trials),) = said(three, "one_rate", config=config)
  assert trials == ("rank=16,seed=0", "rank=4,seed=0"), "rank 1 has chosen its own"
  assert "tried: 0.1 for rank=1" in said(sizes, "edge", curves=curve)[0][0]


def test_the_best_size_is_at_an_edge_whatever_rate_it_chose(made):
  rates = {1: 0.01, 4: 0.01, 16: 0.003}
  best_last = [
    made.result({"method.rank": r, "optim.learning_rate": x}, 2.0 - r / 10, own_rate=True)
    for r, x in rates.items()
  ]
  ((text, _),) = said(best_last, "edge")
  assert "method.rank" in text and "16, the highest of 3" in text


@pytest.mark.parametrize(
  ("path", "losses", "says"),
  [
    ("optim.learning_rate", {0.01: 2.0, 0.1: 1.0}, "0.1, the highest of 2"),
    ("optim.learning_rate", {0.01: 1.0, 0.1: 2.0, 1.0: 3.0}, "0.01, the lowest of 3"),
    ("optim.learning_rate", {0.01: 2.0, 0.1: 1.0, 1.0: 3.0}, None),
    ("method.rank", {1: 2.0, 2: 1.5, 4: 1.0}, "4, the highest of 3"),
    ("method.rank", {1: 2.0, 4: 1.0}, None),  # of two sizes one is always the best
    ("data.limit", {1: 2.0, 2: 1.5, 4: 1.0}, None),
  ],
)
def test_the_best_value_at_an_edge(made, path, losses, says):
  found = said(along(made, path, losses), "edge")
  assert bool(found) == bool(says) and (not says or f"{path} is at an edge" in found[0][0])
  assert not says or says in found[0][0]


def test_each_configuration_has_its_own_best_rate(made):
  results = [
    made.result({"method.rank": rank, "optim.learning_rate": rate}, loss)
    for rank, losses in {1: [2.0, 1.0, 3.0], 4: [2.0, 3.0, 4.0]}.items()
    for rate, loss in zip((0.01, 0.1, 1.0), losses, strict=True)
  ]
  ((text, trials),) = said(results, "edge")
  assert "0.01, the lowest of 3 for rank=4." in text and trials == ("rank=4,learning_rate=0.01",)


def test_few_seeds(made):
  assert not said(made.ranks({1: [2.0, 2.1, 2.2]}), "few_seeds")
  ((text, trials),) = said(made.ranks({1: [2.0, 2.1, 2.2], 4: [1.0, 1.1]}), "few_seeds")
  assert "lora rank=4 (2)" in text and trials == ("rank=4,seed=0", "rank=4,seed=1")


def test_selection_on_what_is_reported(made):
  results = made.ranks({1: [2.0], 4: [1.5]})
  assert "chosen on the test set" in said(results, "selection")[0][0]
  assert not said(results[:1], "selection")
  for result in results:
    result["final"]["validation_loss"] = 1.0
  assert "Validation chose" in said(results[:1], "selection", "validation_loss")[0][0]


@pytest.mark.parametrize("path, values", [("data.template", ["a", "b"]), ("data.limit", [8, 16])])
def test_configurations_of_one_base_and_one_test_set_are_a_selection(
  made, monkeypatch, path, values
):
  results = [
    made.result({path: value}, 2.0 + at, folder=str(at), base_fingerprint="f")
    for at, value in enumerate(values)
  ]
  known = {str(at): Scores("one set", {}, {}) for at in range(2)}
  monkeypatch.setattr(pairs, "read_scores", lambda _: known)
  assert "best of 2 configurations" in said(results, "selection")[0][0]
  apart = [result | {"base_fingerprint": str(at)} for at, result in enumerate(results)]
  known["1"] = Scores("another", {}, {})
  for others in (apart, results):  # of another base too, or of another test set alone
    assert bool(said(others, "selection")) == (path == "data.limit")


def test_validation_says_what_to_report(made):
  results = made.ranks({1: [2.0], 4: [1.5]})
  for result, loss in zip(results, (1.0, 1.1), strict=True):
    result["final"]["validation_loss"] = loss
  ((text, _),) = said(results, "selection")
  assert text.endswith("its lowest loss is that of lora rank=1, with a test loss of 2.")


def test_budgets_that_differ(made):
  of = lambda name, size, **more: made.result(
    {"method": {"name": name} | more}, 2.0, method=name, parameters=size
  )
  lora, prefix, full = of("lora", 1000), of("prefix", 2000), of("full", 40_000)
  assert not said([lora, prefix], "parameters")
  ((text, trials),) = said([lora, prefix, full], "parameters")
  assert "lora trains 1,000 parameters and full 40,000, 40 times as many" in text
  assert len(trials) == 3
  swept = [of("lora", 1000 * rank, rank=rank) for rank in (1, 4)]
  assert not said([*swept, full], "parameters"), "lora's sizes were swept"
  assert said([*swept, prefix, full], "parameters"), "and those of the others were not"
  other = full | {"base_parameters": 99}
  assert not said([lora, prefix, other], "parameters")


def test_different_amounts_of_data(made):
  data = {"splits": {"train": {"tokens": 200, "kept": 20}}}
  config = {"train": {"batch_size": 4}}
  same = [made.result({"method.rank": r}, 2.0, data=data) for r in (1, 4)]
  assert not said(same, "tokens", config=config) and not said(same, "tokens")
  counted = [one | {"tokens": n} for one, n in zip(same, (100, 104), strict=True)]
  assert not said(counted, "tokens", config=config)
  counted[1]["tokens"] = 106
  assert "from about 100 tokens (lora rank=1) to 106" in said(counted, "tokens")[0][0]
  same[1]["stopped_at"] = 5
  ((text, _),) = said(same, "tokens", config=config)
  assert "about 200 tokens (lora rank=4) to 400 (lora rank=1)" in text
  assert not said(same, "tokens", config=config | {"rollout": {"rewards": ["length"]}})
  mixed = [
    made.result({"data.mixture": name}, 2.0, data={"tasks": tasks}, mixture=drawn)
    for name, tasks, drawn in (
      ("equal", {"a": data, "b": {"splits": {"train": {"tokens": 90, "kept": 3}}}},
       {"a": {"drawn": 20}, "b": {"drawn": 20}}),
      ("capped", {"a": data}, {"a": {"drawn": 40}}),
    )
  ]  # fmt: skip
  ((text, _),) = said(mixed, "tokens", config=config)
  assert "about 400 tokens" in text and "to 800 " in text


def test_figures_that_are_not_of_the_same_task(made, monkeypatch):
  results = [made.result({"model.path": str(i)}, 2.0, bleu=3.0, folder=str(i)) for i in range(2)]
  assert not said(results, "other_tokens") and not said(results, "other_examples")
  for i, result in enumerate(results):
    result["data"] = {"tokenizer": str(i)}
  assert "test loss is per token" in said(results, "other_tokens")[0][0]
  assert not said(results, "other_tokens", "test_bleu")
  for result in results:  # of an objective whose loss is by example
    del result["final"]["test_perplexity"]
  assert not said(results, "other_tokens")
  known = {str(i): Scores(f"hash {i}", {}, {}) for i in range(2)}
  monkeypatch.setattr(pairs, "read_scores", lambda _: known)
  ((text, trials),) = said(results, "other_examples")
  assert "2 different sets of examples" in text and trials == tuple(r["trial"] for r in results)


def test_losses_that_are_not_one_function(made):
  """As of another beta: that of IPO is (0.5 / beta)^2 before anything is learnt."""
  dpo = {"objective": {"name": "dpo", "kind": "ipo", "beta": 0.1, "label_smoothing": 0.0}}
  found = lambda path, values, config=dpo, **more: said(
    along(made, path, values), "other_losses", config=config, **more
  )
  ((text, trials),) = found("objective.beta", {0.1: 25.0, 0.5: 1.0})
  assert text.startswith("Trials differ in objective.beta, on which their test loss depends")
  assert len(trials) == 6
  ((text, _),) = found("objective.name", {"dpo": 25.0, "simpo": 1.0})
  assert text.startswith("Trials differ in objective.name, on which")
  assert not found("objective.beta", {0.1: 25.0, 0.5: 1.0}, metric="test_perplexity")
  assert not found("objective.label_smoothing", {0.0: 2.0, 0.1: 1.0}), "it is of training alone"
  ((text, _),) = found("method.start", {"runs/a": 2.0, "runs/b": 1.0})
  assert text.startswith("Trials differ in method.start, on which"), "the reference starts there"
  assert not found("method.start", {"a": 2.0, "b": 1.0}, {"objective": {"name": "simpo"}})
  policy = {"objective": {"name": "grpo", "kl": 0.0}}
  assert not found("objective.kl", {0.0: -1.0, 0.1: -0.9}, policy), "their loss is a reward"
  ((text, _),) = found("rollout.weights", {(1.0,): -1.0, (2.0,): -2.0}, policy)
  assert text.startswith("Trials differ in rollout.weights, on which")
  assert not found("objective.name", {"grpo": -1.0, "ppo": -0.9}, policy)


def test_a_loss_of_before_an_option_is_that_of_its_default(made, tmp_path):
  """The config.json of an earlier version lacks it."""
  results = []
  for rank, without in ((1, "kind"), (2, "")):
    asked = {"method": {"name": "lora", "rank": rank}, "objective": {"name": "dpo"}}
    full = config.complete(asked | {"data": {"train": "x"}, "model": {"path": "y"}})
    full["objective"].pop(without, None)
    (tmp_path / str(rank)).mkdir()
    (tmp_path / str(rank) / "config.json").write_text(json.dumps(full))
    results.append(made.result({"method.rank": rank}, 2.0, folder=str(tmp_path / str(rank))))
  assert not said(results, "other_losses")


def test_a_base_that_is_far_from_the_task(made):
  assert not said(made.ranks({1: [1.0]}), "far_base")
  ((text, _),) = said(made.ranks({1: [1.0], 4: [0.5]}), "far_base")
  assert f"perplexity of {math.exp(3.0):.4g} is 12.2 times" in text
  assert not said(made.ranks({1: [1.0], 4: [0.8]}), "far_base")


def test_differences_that_are_smaller_than_their_noise(made):
  noisy = made.ranks({1: [2.0, 2.5, 1.5], 4: [1.9, 2.4, 1.6]})
  ((text, _),) = said(noisy, "wide")
  assert text.startswith("By test loss and test perplexity the configurations differ less")
  ((text, trials),) = said(noisy, "unresolved")
  assert "apart from lora rank=4 by test loss" in text and "lora rank=1 (p = 0.67, 97 seeds" in text
  assert trials == ("rank=1,seed=0", "rank=1,seed=1", "rank=1,seed=2")
  # Without a correction p is 0.03.
  corrected = made.ranks({1: [2.0, 2.1], 2: [2.01, 2.12], 4: [1.0, 1.0]})
  ((text, _),) = said(corrected, "unresolved")
  assert "seeds needed" not in text
  clear = made.ranks({1: [2.0, 2.1, 2.2], 4: [1.0, 1.1, 1.21]})
  assert not said(clear, "wide") and not said(clear, "unresolved")


def test_what_was_learnt_by_heart_and_what_diverged(made):
  results = made.ranks({1: [2.0, 2.0], 4: [1.5, math.nan]})
  results[0]["final"]["train_loss"] = 0.9
  ((text, trials),) = said(results, "memorized")
  assert "Learnt by heart (1 of 4 trials)" in text and trials == ("rank=1,seed=0",)
  late = {"train": {"keep": "last"}}
  results[0] |= {"best_step": 5}
  results[1] |= {"best_step": 6}
  ((text, trials),) = said(results, "overfitted", config=late)
  assert "rank=1,seed=0 (step 5 of 10)" in text and trials == ("rank=1,seed=0",)
  assert not said(results, "overfitted"), "the best weights were kept"
  ((text, trials),) = said(results, "diverged")
  assert "rank=4,seed=1 (in its final metrics)" in text and trials == ("rank=4,seed=1",)


@pytest.mark.parametrize(
  ("config", "says"),
  [
    ({}, "a new head, the order of the training examples and dropout all at once"),
    ({"model": {"path": None}}, "dropout and the weights of the base all"),
    ({"evaluate": {"shots": 2, "temperature": 0.7}}, "the demonstrations and the generated text"),
  ],
)
def test_what_differs_between_seeds(made, config, says):
  found = comparison.compare(made.ranks({1: [2.0, 2.1]}), config=config)
  assert says in found.replicates
  assert comparison.compare(made.ranks({1: [2.0]})).replicates.startswith("One seed each")
