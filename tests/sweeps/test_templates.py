"""Templates as an axis: one program, each trial as it is alone, and a base of its own."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from support import folders

import jaxtune
from jaxtune.preflight import gradients
from jaxtune.runs import baseline, group

TEMPLATES = ["{{ text }} :", "? {{ text }} a1 a2 a3 a4 a5 a6 :"]
PARTS = (("train", 12), ("test", 6))


@pytest.fixture(scope="module")
def config(tmp_path_factory):
  """A language model that chooses among label words, which differ between the templates."""
  folder, rng = tmp_path_factory.mktemp("templates"), np.random.default_rng(0)
  data = {"template": TEMPLATES[0], "answer": "{{ answer_choices[label] }}"}
  for name, count in PARTS:
    words = rng.choice(folders.WORDS[20:], (count, 4))
    rows = [{"text": " ".join(row), "label": i % 2} for i, row in enumerate(words)]
    data[name] = folders.write(folder, f"{name}.jsonl", rows)
  data["choices"] = ["b0", "b1"]
  return folders.config(folders.base(folder, "llama"), data, "choices")


@pytest.mark.full
def test_each_trial_is_compared_with_the_demonstrations_of_its_seed(config, tmp_path, monkeypatch):
  class Stop(BaseException):
    pass

  def stop(trials, folders, bases, *rest):
    given.extend(zip(trials, bases, strict=True))
    raise Stop

  given = []
  monkeypatch.setattr(group, "train", stop)
  monkeypatch.setattr(gradients, "check", lambda *args: None)
  config = config | {"evaluate": config["evaluate"] | {"shots": 3}, "sweep": ({"seed": [0, 1]},)}
  with pytest.raises(Stop):
    jaxtune.sweep(config, tmp_path)
  drawn = [base.drawn["demonstrations"] for _, base in given]
  assert len(drawn) == 2 and drawn[0] != drawn[1]
  for trial, base in given:
    (alone,) = baseline.evaluate_bases([trial])
    assert base.drawn == alone.drawn
    for mine, theirs in ((base.base, alone.base), (base.shots, alone.shots)):
      assert mine.metrics == pytest.approx(theirs.metrics, rel=1e-5)
  assert given[0][1].base is given[1][1].base, "without demonstrations it is judged once"


@pytest.mark.full
def test_two_templates_are_one_program(config, tmp_path, capsys):
  """The second one's prompts are longer, and it has three answers of several tokens."""
  axes = {
    "data": [
      config["data"],
      config["data"] | {"template": TEMPLATES[1], "choices": ["b0 b5", "b1 b2 b3", "b9"]},
    ]
  }
  results = jaxtune.sweep(config | {"sweep": (axes,)}, tmp_path / "sweep")
  out = capsys.readouterr().out
  assert re.findall(r"program \d of \d: \d trials", out) == ["program 1 of 1: 2 trials"]
  results = {"?" in result["settings"]["data"]["template"]: result for result in results}
  for longer, data in enumerate(axes["data"]):
    alone = jaxtune.fit(config | {"data": data}, tmp_path / str(longer))
    grouped = results[bool(longer)]
    for part in ("base", "final"):
      for name, value in alone[part].items():
        assert grouped[part][name] == pytest.approx(value, rel=1e-4, abs=1e-5), name
    folders = tmp_path / str(longer), Path(grouped["folder"])
    expected, found = (load_file(folder / "tuned.safetensors") for folder in folders)
    for name, array in expected.items():
      np.testing.assert_allclose(found[name], array, atol=1e-5)
    lines = [(folder / "predictions.jsonl").read_text().splitlines() for folder in folders]
    rows = [list(map(json.loads, some)) for some in lines]
    assert [row["prompt"] for row in rows[0]] == [row["prompt"] for row in rows[1]]
    assert all(row["prompt"].startswith("?") == bool(longer) for row in rows[0])
  assert results[True]["base"]["test_loss"] != results[False]["base"]["test_loss"]
  report = (tmp_path / "sweep" / "report.md").read_text()
  assert report.count("base (untuned)") == 4 and "most frequent answer" in report
