"""Mixtures of tasks and runs of one task alone, as trials of one sweep."""

import json
from collections import Counter

import pytest
from support import folders

import jaxtune
from jaxtune import data
from jaxtune.api import sweep as sweeps
from jaxtune.errors import UserError
from jaxtune.runs.trial import load_data
from jaxtune.sweeps import table


def rows(first: int, sizes: dict[str, int]) -> list[dict]:
  return [
    {"task": task, "prompt": f"a{i % 10} b{(first + i) % 10} {mark}", "completion": f" b{i % 10}"}
    for task, mark in (("long", ":"), ("short", "?"))
    for i in range(sizes[task])
  ]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  folder = tmp_path_factory.mktemp("mixtures")
  folders.base(folder, "llama")
  folders.write(folder, "train.jsonl", rows(0, {"long": 9, "short": 3}))
  folders.write(folder, "test.jsonl", rows(5, {"long": 4, "short": 3}))
  return folder


@pytest.fixture(scope="module")
def config(place):
  files = {name: str(place / f"{name}.jsonl") for name in ("train", "test")}
  return folders.config(str(place / "llama"), files | {"overlap": "allow"}, steps=3)


@pytest.mark.full
def test_mixtures_share_a_program_and_a_base_and_say_what_was_drawn(place, config):
  tasks = {task: {"only": {"task": task}} for task in ("long", "short")}
  config = config | {"data": config["data"] | {"tasks": tasks}}
  config["sweep"] = (
    {"data.mixture": ["proportional", "equal"]},
    {"data.temperature": [2.0]},
    {"data.mixture": [{"long": 1, "short": 0}]},
  )
  results = jaxtune.sweep(config, place / "mixed", "test_loss/mean")
  assert {result["trials_in_program"] for result in results} == {4}
  assert len({json.dumps(result["base"]) for result in results}) == 1
  losses = set()
  for result, one in zip(sorted(results, key=lambda r: r["trial"]), _named(config), strict=True):
    split = load_data(one).train
    drawn = Counter()
    for step in range(3):
      part, rows_B = data.mix.draw(split.order, one["seed"], step, 4)
      drawn.update(split.tasks[row] for row in rows_B)
    assert {task: count["drawn"] for task, count in result["mixture"].items()} == {
      task: drawn[task] for task in ("long", "short")
    }
    assert result["mixture"]["long"]["epochs"] == drawn["long"] / 9
    losses.add(result["final"]["test_loss"])
  assert len(losses) == 4
  report = (place / "mixed" / "report.md").read_text()
  assert report.count("base (untuned)") == 3, "two rows for the base, and a column of the tasks"
  header, *body = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in report.split("each task\n\n")[1].splitlines()
    if line.startswith("|") and "---" not in line
  ]
  assert len(header) == 2 + 3 * 4 and [row[:2] for row in body] == [["long", "9"], ["short", "3"]]
  at = header.index(next(name for name in header if "equal" in name and "drawn" in name))
  assert [row[at - 1 : at + 2] for row in body] == [["50.0", "6", "0.67"], ["50.0", "6", "2.00"]]


def _named(config):
  names, _, configs = sweeps.expand(config)
  return [one for _, one in sorted(zip(names, configs, strict=True), key=lambda pair: pair[0])]


@pytest.mark.full
def test_each_task_alone_is_judged_on_its_own_examples(place, config):
  config = config | {"sweep": ({"data.only": [{"task": "long"}, {"task": "short"}]},)}
  config["evaluate"] = config["evaluate"] | {"generate": True, "max_new_tokens": 2}
  long, short = sorted(jaxtune.sweep(config, place / "alone"), key=lambda result: result["trial"])
  assert long["trials_in_program"] == 2 and table.mixtures([long, short]) is None
  assert long["data"]["splits"]["test"]["kept"] == 4
  assert short["data"]["splits"]["train"]["kept"] == 3
  lines = (place / "alone" / "trials" / short["trial"] / "predictions.jsonl").read_text()
  assert len(lines.splitlines()) == 3
  # The bases were judged together: alone, a base scores the same.
  full = {k: v for k, v in config.items() if k != "sweep"}
  full["data"] = full["data"] | {"only": {"task": "short"}}
  run = jaxtune.load_run(short["folder"])
  for name, value in jaxtune.evaluate(run)["base"].items():
    assert value == pytest.approx(short["base"][name], rel=1e-5), name


def test_rows_to_keep_are_named(place, config):
  with pytest.raises(UserError, match="data.only: no row of train has 'shirt' as its task; did"):
    load_data(sweeps.expand(config | {"sweep": ({"data.only": [{"task": "shirt"}]},)})[2][0])
  (one,) = sweeps.expand(config | {"sweep": ({"data.only": [{"task": ["long", "short"]}]},)})[2]
  assert load_data(one).train.examples == 12
