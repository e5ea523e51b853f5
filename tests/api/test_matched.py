"""Budgets are met by the nearest size, as the trials themselves count it."""

import json

import pytest
from support import folders

import jaxtune
from jaxtune.api import matched
from jaxtune.errors import UserError
from jaxtune.preflight import budgets, checks
from jaxtune.sweeps import declare, matching

BUDGET = 700


@pytest.fixture(scope="module")
def config(tmp_path_factory):
  folder = tmp_path_factory.mktemp("matched")
  rows = [{"prompt": f"a{i % 10} b{i // 10} :", "completion": " c1"} for i in range(24)]
  parts = {"train": rows[:12], "validation": rows[12:18], "test": rows[18:]}
  files = {name: folders.write(folder, f"{name}.jsonl", some) for name, some in parts.items()}
  return folders.config(folders.base(folder, "llama"), files, steps=2)


def sweep(*methods, **budgets):
  return declare.product(declare.match(methods, **budgets), {"seed": [0, 1]})


METHODS = (
  {"name": "adalora", "target_rank": 2, "init_rank": "match"},
  {"name": "stack", "prefix": {"length": 2}, "adapter": {"width": "match"}},
)


@pytest.mark.full
def test_results_have_the_parameters_that_were_promised(config, tmp_path):
  asked = config | {"sweep": declare.match(METHODS, parameters=BUDGET)}
  found = matched.match(asked)
  reached = {line.split()[0]: line for line in found.reached}
  results = jaxtune.sweep(asked, tmp_path)
  assert {result["method"] for result in results} == {"adalora", "stack"}
  for result in results:
    said = f" {result['trained_parameters']:,} of 700 trained parameters"
    assert said in reached[result["method"]]
  note = json.loads((tmp_path / "notes.json").read_text())[matched.NOTE]
  assert note == "; ".join(found.reached)
  assert note in (tmp_path / "report.md").read_text()
  assert f"  {found.reached[0]}\n" in str(jaxtune.dry_run(asked))


def test_a_size_is_a_multiple_of_what_the_method_needs(config):
  method = {"name": "compacter", "n": 2, "width": "match"}
  found = matched.match(config | {"sweep": sweep(method, parameters=BUDGET)})
  widths = {setting["method"][0]["width"] for setting in found.config["sweep"]}
  assert len(widths) == 1 and widths.pop() % 2 == 0
  method = {"name": "compacter", "width": "match"}
  axes = declare.product(sweep(method, parameters=1300), {"method.n": [8]})
  (setting, _) = matched.match(config | {"sweep": axes}).config["sweep"]
  assert setting["method"][0]["width"] % 8 == 0
  with pytest.raises(UserError, match="method.rank is left open for parameters: declare it by"):
    matched.match(config | {"sweep": {"method.rank": [{"match": {"parameters": 700}}]}})


def test_no_other_size_is_nearer(config):
  asked = config | {"sweep": sweep("lora", "prefix", parameters=BUDGET)}
  chosen = [setting["method"][0] for setting in matched.match(asked).config["sweep"][::2]]
  for section, size in zip(chosen, ("rank", "length"), strict=True):
    trial_of = lambda n, s=section, z=size: matched._trial(config, {}, {"method": s | {z: n}})
    distances = {n: abs(budgets.parameters(trial_of(n)) - BUDGET) for n in range(1, 8)}
    assert section[size] == min(distances, key=distances.get)


def test_updates_meet_a_budget_of_flops(config):
  asked = config | {"sweep": sweep("lora", "full", flops=2e8)}
  lora, full = matched.match(asked).config["sweep"][::2]
  for setting in (lora, full):
    trial = matched._trial(config, {}, {"method": setting["method"][0]})
    count, steps = budgets.flops(trial), setting["train.steps"][0]
    assert count(steps) == steps * count(1) and abs(count(steps) - 2e8) <= count(1) / 2
  assert full["train.steps"] < lora["train.steps"], "a gradient of every weight costs more"


def test_policies_end_with_a_whole_rollout(config):
  rollout = {"samples": 2, "max_new_tokens": 4, "rewards": ("exact_match",), "epochs": 7}
  asked = config | {"objective": {"name": "grpo"}, "rollout": rollout | {"minibatches": 1}}
  (setting,) = matched.match(asked | {"sweep": declare.match(["lora"], flops=1e9)}).config["sweep"]
  trial = matched._trial(asked, {}, {key: value for key, (value,) in setting.items()})
  count, steps = budgets.flops(trial), setting["train.steps"][0]
  assert steps % 7 == 0 and abs(count(steps) - 1e9) <= count(7) / 2
  checks.check(trial)


def test_a_time_is_measured_once_and_kept(config, tmp_path, monkeypatch):
  asked = config | {"sweep": sweep("lora", seconds=30)}
  first = matched.match(asked)
  assert first.config["sweep"][0]["train.steps"][0] >= 1 and "of 30 seconds" in first.reached[0]
  matched.keep(first, tmp_path)
  monkeypatch.setattr(budgets, "seconds", lambda trial: lambda n: 0.001 * n)
  assert matched.match(asked, tmp_path) == first, "what was found at first"
  moved = asked | {"train": asked["train"] | {"mesh": {"data": 2}}, "search": {"places": 2}}
  again = matched.match(moved, tmp_path)
  assert again.config == moved | {"sweep": first.config["sweep"]}, "it goes on elsewhere"
  other = asked | {"sweep": sweep("lora", seconds=0.02)}
  assert matched.match(other, tmp_path).config["sweep"][0]["train.steps"] == [20]


@pytest.mark.parametrize(
  ("methods", "given", "says"),
  [
    (["lora"], {"parameters": 50}, "lora cannot have parameters=50, expected at least 336 trained"),
    (
      ["lora"],
      {"parameters": 10**6},
      "5,376 trained parameters, those of rank=16: method.rank is 17",
    ),
    (["full"], {"parameters": 700}, "'full' has no rank, length or width that meets a budget"),
    ([{"name": "lora", "rank": 2}], {"parameters": 700}, "'lora' has rank=2 already: leave it out"),
    (["lora"], {"flops": 10}, "lora cannot have flops=10, expected at least"),
    (["lora"], {}, "match has no budget, expected parameters, flops or seconds"),
    (["lora"], {"flops": 1.0, "seconds": 2}, "match has flops, seconds, expected"),
    (["lora"], {"parameters": -1}, "parameters=-1, expected a positive number"),
    ("lora", {"parameters": 7}, "expected a list such as ['lora', 'prefix']"),
    (["lora"], {"parameters": 7, "learning_rate": {"x": 1}}, "no learning_rate for 'lora'"),
  ],
)
def test_mistakes_are_named(config, methods, given, says):
  with pytest.raises(UserError) as error:
    matched.match(config | {"sweep": declare.match(methods, **given)})
  assert says in str(error.value)


@pytest.mark.parametrize(("budget", "says"), [
  ({}, "match has no budget, expected one of parameters, flops, seconds"),
  ({"flops": 1e9, "seconds": 2}, "match has flops, seconds, expected one of"),
  ({"parametres": 7}, "match has parametres, expected one of parameters"),
  ({"seconds": "7"}, "match has seconds='7', expected a positive number"),
])  # fmt: skip
@pytest.mark.parametrize("axis", ["method.rank", "train.steps"])
def test_mistakes_in_budgets_written_by_hand_are_named(config, axis, budget, says):
  with pytest.raises(UserError, match=says):
    matched.match(config | {"sweep": [{axis: [{"match": budget}]}]})


def test_each_method_has_its_own_rates():
  rates = {"lora": declare.tune([0.1, 0.2]), "ia3": 0.3}
  made = declare.match(["lora", "ia3"], flops=7.0, learning_rate=rates)
  assert [one["optim.learning_rate"] for one in made] == [[{"tune": [0.1, 0.2]}], [0.3]]
  assert all(one["train.steps"] == [{"match": {"flops": 7.0}}] for one in made)


def test_the_nearest_number_is_found():
  """Beside a search of all numbers, also where large ones are impossible, or change nothing."""

  def limited(n):
    if n > 13:
      raise UserError("too large")
    return 3 * n * n

  for budget in range(3, 700):
    (number, reached), why = matching.solve(limited, budget)
    best = min(range(1, 14), key=lambda n: abs(limited(n) - budget))
    assert (number, reached) == (best, limited(best))
    assert bool(why) == (budget > 507 + (507 - 432) / 2), budget
  assert matching.solve(limited, 2) == ((1, 3), "this is the least")

  def from_7_on(n):
    return limited(n) if n >= 7 else limited(99)

  assert matching.solve(from_7_on, 300) == ((10, 300), "")
  assert matching.solve(from_7_on, 2) == ((7, 147), "this is the least")
  with pytest.raises(UserError, match="too large"):
    matching.solve(lambda n: limited(99), 2)
  assert "does not grow" in matching.solve(lambda n: min(n, 5), 9)[1]
