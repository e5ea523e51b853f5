"""What a dry run says of a sweep, counted by hand."""

import pytest
from support import folders

import jaxtune
from jaxtune import data
from jaxtune.api import dry_run, plan, sweep
from jaxtune.evaluation import judge
from jaxtune.preflight import lowered, pace
from jaxtune.runs.trial import load_data, outline
from jaxtune.sweeps import declare

STEPS, BATCH, LENGTH = 5, 4, 5  # a prompt of three words, an answer and its end
# Of validation 2 batches, at steps 2, 4 and 5; at the end 2 of it, 2 of train and 3 of test.
JUDGED = 3 * 2 + 2 + 2 + 3


@pytest.fixture(scope="module")
def config(tmp_path_factory):
  folder = tmp_path_factory.mktemp("dry")
  made = lambda first, count: [
    {"prompt": f"a{i % 10} b{i // 10} :", "completion": " c1"} for i in range(first, first + count)
  ]
  parts = (("train", 0, 20), ("validation", 20, 6), ("test", 26, 10))
  files = {name: folders.write(folder, f"{name}.jsonl", made(*size)) for name, *size in parts}
  config = folders.config(folders.base(folder, "llama"), files, steps=STEPS)
  config["train"]["eval_every"] = 2
  config["sweep"] = declare.chain(
    {"method.rank": [1, 2], "optim.learning_rate": [declare.tune([1e-3, 1e-2])], "seed": [0, 1]},
    {"method": [{"name": "prefix", "length": 2}]},
  )
  return config


def test_counts_are_those_of_the_batches(config, monkeypatch, tmp_path):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(pace, "rate", lambda trial: 1.0)
  found = jaxtune.dry_run(config)
  lora, prefix = found.groups
  dataset = load_data(of_prefix(config))
  seen = sum(data.batch(dataset.train, 0, step, BATCH)["mask"].sum() for step in range(STEPS))
  assert lora.tokens == prefix.tokens == seen == STEPS * BATCH * LENGTH
  assert (len(lora.trials), lora.rates, len(prefix.trials), prefix.rates) == (4, 4, 1, 0)
  assert found.trials == 9 and found.tokens == 9 * seen
  assert (lora.differs["method.name"], prefix.differs) == ("lora", {"method.name": "prefix"})
  group = lowered.outline([outline(of_prefix(config))])
  work = {kind: lowered.flops(group, x, kind) for kind, x in lowered.batches(group).items()}
  alone = STEPS * work["training step"] + JUDGED * work["evaluation"]
  assert prefix.seconds == pytest.approx(alone)
  text = str(found)
  assert "5 trials in 2 compiled programs, which differ in method.name" in text
  for name in (*lora.trials, "rank=2,learning_rate=tuned,seed=1"):
    assert f"\n  {name}\n" in text
  assert "and before them 4 trials that choose learning rates" in text
  assert not list(tmp_path.iterdir())


def test_rates_are_chosen_beside_a_stated_one(config):
  rates = [1e-4, declare.tune([1e-3, 1e-2])]
  for axis in (rates, rates[::-1]):
    swept = declare.grid({"method.rank": [1, 2], "optim.learning_rate": axis})
    names, settings, completed = sweep.expand(config | {"sweep": swept})
    choosing = dry_run._choosing(config | {"sweep": swept}, names, settings, completed)
    assert sorted(choosing.values()) == [0, 0, 2, 2]


def test_the_tokens_that_a_policy_draws_are_not_known(config, monkeypatch):
  monkeypatch.setattr(pace, "rate", lambda trial: 1.0)
  rows = {"data": config["data"] | {"validation": None, "test": None}, "sweep": {"seed": [0]}}
  policy = {"objective": {"name": "grpo"}, "rollout": {"rewards": ("length",), "samples": 2}}
  train = config["train"] | {"steps": 4, "patience": None}
  found = jaxtune.dry_run(config | rows | policy | {"train": train})
  assert found.tokens is None and "as many tokens as the policies draw" in str(found)


def of_prefix(config):
  """Returns the completed config of the prefix."""
  return sweep.expand(config)[2][-1]


@pytest.mark.full
def test_a_run_judges_as_often(config, tmp_path, monkeypatch):
  calls, real = [], judge.stack
  monkeypatch.setattr(judge, "stack", lambda batches: calls.append(1) or real(batches))
  alone = {key: value for key, value in config.items() if key != "sweep"}
  jaxtune.fit(alone, tmp_path)
  assert len(calls) == JUDGED + 2 + 3, "and of the base validation and test"


def test_times_of_a_named_device(config):
  """Where its compiler states none, at least the products or the traffic take their time."""
  trial = outline(of_prefix(config))
  times = {"ms": None, "floor_ms": 2.0, "traffic_ms": 3.0}
  programs = {"training step": times, "evaluation": times | {"ms": 7.0}, "generation": times}
  program = lambda figures: plan.Program(["p"], "", "", {"programs": figures}, [trial])
  assert dry_run._seconds(program(programs)) == pytest.approx((STEPS * 3 + JUDGED * 7) / 1000)
  more = trial.config["train"] | {"mesh": {"fsdp": 16}}  # than there are devices here
  assert pace.seconds([trial._replace(config=trial.config | {"train": more})]) is None
  programs["evaluation"] = {"does_not_fit": "its peak is 1 TB"}
  assert dry_run._seconds(program(programs)) is None
