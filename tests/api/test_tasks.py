"""Every task from its file to its metrics, through the API."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from sklearn import metrics as sklearn
from support import folders
from support.interrupting import resumes

import jaxtune
from jaxtune.errors import UserError


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  folder = tmp_path_factory.mktemp("tasks")
  for family in ("bert", "llama", "t5"):
    folders.base(folder, family)
  return folder


def texts(count: int, seed: int, length: int = 5) -> list[list[str]]:
  rng = np.random.default_rng(seed)
  return [rng.choice(folders.WORDS[20:], length).tolist() for _ in range(count)]


def splits(place, name, make, counts=(24, 8, 8)):
  """Writes train, validation and test of rows that `make` gives for words and a number."""
  kind = ".tsv" if name == "label" else ".jsonl"
  return {
    split: folders.write(
      place, f"{name}_{split}{kind}", [make(row, i) for i, row in enumerate(texts(count, seed))]
    )
    for seed, (split, count) in enumerate(zip(("train", "validation", "test"), counts, strict=True))
  }


def predicted(folder, by="prediction"):
  rows = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
  return [row["references"] for row in rows], [row[by] for row in rows]


def same(found, expected):
  """Compares {metric: value}."""
  assert {*found} <= {*expected}
  for name, value in found.items():
    assert value == pytest.approx(expected[name], rel=1e-4, abs=1e-5), name


def labelled(words, i):
  """The first word tells the class."""
  return {"sentence": " ".join([f"{'ab'[i % 2]}{i % 3}", *words]), "label": ["no", "yes"][i % 2]}


def classified(place, family, **sections):
  data = splits(place, "label", labelled, (48, 8, 16)) | {"rename": {"text": "sentence"}}
  train = {"batch_size": 12, "eval_every": 20}
  return folders.config(str(place / family), data, "classify", 40, train=train, **sections)


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_classes_are_learnt(place, tmp_path, family):
  more = {"seed": 1, "method": {"name": "lora", "rank": 4}, "optim": {"learning_rate": 3e-2}}
  result = jaxtune.fit(classified(place, family, **more if family == "bert" else {}), tmp_path)
  final = result["final"]
  assert final["test_accuracy"] > 90 and final["test_loss"] < result["base"]["test_loss"]
  true, said = predicted(tmp_path)
  score = 100 * sklearn.f1_score(true, said, average="macro")
  assert final["test_macro_f1"] == pytest.approx(score)
  score = 100 * sklearn.f1_score(*predicted(tmp_path, "base"), average="macro")
  assert result["base"]["test_macro_f1"] == pytest.approx(score)
  assert result["chance"]["test_accuracy"] == 50
  difference, low, high = result["differences"]["base"]["test_accuracy"]
  assert difference == pytest.approx(final["test_accuracy"] - result["base"]["test_accuracy"])
  assert low <= difference <= high and high > 0
  assert [row["label"] for row in result["classes"]] == ["no", "yes"]
  counts = np.array(result["confusion"]["counts"])
  assert counts.sum() == 16 and 100 * np.trace(counts) / 16 == final["test_accuracy"]

  run = jaxtune.load_run(tmp_path)
  assert run.labels == ("no", "yes")
  if family == "bert":  # with a class that is not even there any more
    rows = [labelled(words, 1) for words in texts(4, 9)]
    again = jaxtune.evaluate(run, {"data.train": folders.write(place, "yes.tsv", rows)})
    same(again["base"], result["base"])
    same(again["final"], final)
    numbered = [row | {"label": str(i % 2)} for i, row in enumerate(rows)]
    file = folders.write(place, "numbers.tsv", numbered)
    with pytest.raises(UserError, match="is a number, expected one of the names"):
      jaxtune.evaluate(run, {"data.train": file})
    named = {"no": "nein", "yes": "ja"}  # by other names, whose alphabet is another order
    renamed = lambda words, i: (row := labelled(words, i)) | {"label": named[row["label"]]}
    files = splits(tmp_path, "label", renamed, (48, 8, 16))
    other = {f"data.{split}": file for split, file in files.items()}
    again = jaxtune.evaluate(run, other | {"data.labels": ["nein", "ja"]})
    same(again["final"], final)
    with pytest.raises(UserError, match="data.labels has 3 names, expected 2 .*run's: no, yes"):
      jaxtune.evaluate(run, {"data.labels": ["no", "yes", "maybe"]})


@pytest.mark.full
def test_a_head_and_noise_resume(place, tmp_path, monkeypatch):
  noise = {"dropout": 0.1, "neftune": 5.0, "token_dropout": 0.1}
  config = classified(place, "bert", regularize=noise, method={"name": "head"})
  config["train"] |= {"steps": 4, "checkpoint_every": 2, "eval_every": 4}
  resumes(monkeypatch, config, tmp_path, 2)
  flat = load_file(tmp_path / "whole" / "tuned.safetensors")
  assert any("pooler" in name for name in flat), "what the folder lacks is trained with a probe"


def tagged(words, i):
  return {
    "tokens": ["ab"[i % 2] + str(i % 3), *words],
    "ner_tags": ["B-x", "B-y"][i % 2 :][:1] + ["O"] * 5,
  }


def numbered(words, i):
  return {"text": " ".join([f"a{i % 5}", *words]), "label": float(i % 5)}


def asked(words, i):
  context = " ".join([*words, f"a{i % 5}", *words[::-1]])
  answer = {"text": [f"a{i % 5}"], "answer_start": [context.index(f"a{i % 5}")]}
  return {
    "question": words[0] + " ?",
    "context": context,
    "answers": answer,
    "task": "xy"[i % 4 // 3],
  }


@pytest.mark.full
def test_tags(place, tmp_path):
  result = jaxtune.fit(
    folders.config(str(place / "bert"), splits(place, "tags", tagged), "tokens"), tmp_path
  )
  true, said = predicted(tmp_path)
  right = [
    a == b for one, other in zip(true, said, strict=True) for a, b in zip(one, other, strict=True)
  ]
  assert len(right) == 48 and result["final"]["test_accuracy"] == pytest.approx(
    100 * np.mean(right)
  )
  assert result["chance"]["test_span_f1"] == 0 and 0 <= result["final"]["test_span_f1"] <= 100
  assert {row["label"] for row in result["classes"]} == {"x", "y"}


@pytest.mark.full
def test_numbers(place, tmp_path):
  data = splits(place, "numbers", numbered)
  result = jaxtune.fit(folders.config(str(place / "bert"), data, "regression"), tmp_path)
  true, said = predicted(tmp_path)
  final = result["final"]
  assert final["test_mse"] == pytest.approx(np.mean(np.subtract(true, said) ** 2), rel=1e-5)
  assert final["test_loss"] == pytest.approx(final["test_mse"], rel=1e-5)
  assert final["test_pearson"] == pytest.approx(100 * np.corrcoef(true, said)[0, 1], rel=1e-4)
  mean = np.mean([i % 5 for i in range(24)])  # of train, zeros included
  assert result["chance"]["test_mse"] == pytest.approx(np.mean((np.array(true) - mean) ** 2))


@pytest.mark.full
def test_answers_of_tasks_whose_contexts_have_several_windows(place, tmp_path):
  """By a column, and as files of their own: the same examples in another order."""
  whole = splits(place, "asked", asked)
  short = {"max_length": 12, "stride": 2, "overlap": "allow"}
  rows = {
    name: list(map(json.loads, Path(path).read_text().splitlines())) for name, path in whole.items()
  }
  parts = {
    task: {
      name: folders.write(
        place, f"{task}_{name}.jsonl", [row for row in some if row["task"] == task]
      )
      for name, some in rows.items()
    }
    for task in "xy"
  }
  found = {}
  for name, data in (("column", whole | {"tasks": "task"}), ("files", {"tasks": parts})):
    config = folders.config(str(place / "bert"), data | short, "qa", 1)
    result = found[name] = jaxtune.fit(config, tmp_path / name)
    true, said = predicted(tmp_path / name)
    right = np.array([one in accepted for accepted, one in zip(true, said, strict=True)])
    of_y = np.array([row["task"] == "y" for row in rows["test"]])
    of_y = of_y if name == "column" else np.sort(of_y)
    for task, chosen in (("x", ~of_y), ("y", of_y)):
      value = result["final"][f"test_squad_exact_match/{task}"]
      assert value == pytest.approx(100 * right[chosen].mean())
    both = [result["final"][f"test_squad_f1/{task}"] for task in "xy"]
    assert result["final"]["test_squad_f1/mean"] == pytest.approx(np.mean(both))
  same(found["column"]["base"], found["files"]["base"])
  counts = found["files"]["mixture"]
  assert counts["x"]["drawn"] + counts["y"]["drawn"] == 4


def translated(words, i):
  return {
    "prompt": " ".join([*words[: 2 + i % 3], ":"]),
    "completion": words[0],
    "task": "xy"[i % 3 // 2],
  }


@pytest.mark.full
def test_an_encoder_decoder_writes(place, tmp_path):
  """For as many prompts of the one task as of the other, though the other's are rarer."""
  data = splits(place, "translated", translated) | {"tasks": "task"}
  evaluate = {"generate": True, "max_new_tokens": 3, "limit": 4}
  evaluate |= {"metrics": ("exact_match", "bleu")}
  config = folders.config(str(place / "t5"), data, evaluate=evaluate)
  result = jaxtune.fit(config, tmp_path)
  true, said = predicted(tmp_path)
  right = [one in accepted for accepted, one in zip(true, said, strict=True)]
  assert result["final"]["test_exact_match"] == 100 * np.mean(right)
  rows = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
  asked = [json.loads(line) for line in Path(data["test"]).read_text().splitlines()]
  chosen = [asked[n] for n in (0, 1, 2, 5)]
  assert [one["task"] for one in chosen] == ["x", "x", "y", "y"]
  assert [row["where"] for row in rows] == [f"{data['test']}:{n}" for n in (1, 2, 3, 6)]
  assert [row["prompt"].split(" </s>")[0] for row in rows] == [one["prompt"] for one in chosen]
  assert true == [[one["completion"]] for one in chosen]
  assert result["final"]["test_exact_match/y"] == 100 * np.mean(right[2:])
  with pytest.raises(UserError, match="evaluate.limit is 1, expected at least 2: one prompt of"):
    jaxtune.fit(config | {"evaluate": evaluate | {"limit": 1}}, tmp_path / "few")
  loss = result["final"]["test_loss"]
  assert result["final"]["test_perplexity"] == pytest.approx(np.exp(loss), rel=1e-5)
  assert loss < result["base"]["test_loss"]
  assert {*result["chance"]} == {"test_exact_match", "test_bleu"}


def chosen(words, i):
  return {"text": " ".join([f"{'ab'[i % 2]}1", *words]), "answer": ["a0", "b0 b1"][i % 2]}


@pytest.mark.full
def test_label_words_before_and_after_with_demonstrations(place, tmp_path):
  data = splits(place, "chosen", chosen) | {"template": "{{ text }} :", "answer": "answer"}
  data |= {"choices": ["a0", "b0 b1"]}
  config = folders.config(str(place / "llama"), data, "choices", evaluate={"shots": 2})
  result = jaxtune.fit(config, tmp_path)
  true, said = predicted(tmp_path)
  assert {*said} <= {"a0", "b0 b1"} and true == ["a0", "b0 b1"] * 4
  right = 100 * np.mean([a == b for a, b in zip(true, said, strict=True)])
  assert result["final"]["test_accuracy"] == right and result["chance"]["test_accuracy"] == 50
  drawn = result["demonstrations"]
  assert drawn["shots"] == 2 and drawn["used"] in ({"2": 8}, {2: 8})
  assert all("chosen_train.jsonl" in place for place in drawn["demonstrations"])
  before, shots, after = (result[part]["test_loss"] for part in ("base", "shots", "final"))
  assert before != shots
  differences = result["differences"]
  assert differences["base"]["test_loss"][0] == pytest.approx(after - before)
  assert differences["shots"]["test_loss"][0] == pytest.approx(after - shots)


@pytest.mark.full
def test_a_packed_step_is_an_unpacked_one(place, tmp_path):
  """One step of plain descent on all examples at once, of 5, 6 and 7 tokens."""
  general = folders.write(place, "general.jsonl", [{"text": " ".join(x)} for x in texts(5, 9, 20)])
  data = splits(place, "translated", translated) | {"max_length": 12}
  sgd = {"name": "sgd", "learning_rate": 0.1, "clip": None, "weight_decay": 0.0}
  found, flat = {}, {}
  for pack, rows in ((True, 12), (False, 24)):
    more = {"pack": True, "general": general} if pack else {}
    config = folders.config(str(place / "llama"), data | more, steps=1, optim=sgd)
    config["train"] |= {"batch_size": rows}
    found[pack] = jaxtune.fit(config | {"method": {"name": "full"}}, tmp_path / str(pack))
    flat[pack] = load_file(tmp_path / str(pack) / "tuned.safetensors")
  assert found[True]["data"]["packing"]["rows"] == 12
  held = lambda metrics: {k: x for k, x in metrics.items() if k[:4] in ("vali", "test")}
  for part in ("base", "final"):
    metrics = found[True][part]
    same(held(metrics), held(found[False][part]))
    assert metrics["general_perplexity"] == pytest.approx(np.exp(metrics["general_loss"]))
  assert found[True]["final"]["general_loss"] != found[True]["base"]["general_loss"]
  for name, array in flat[True].items():
    np.testing.assert_allclose(array, flat[False][name], atol=2e-6)


@pytest.mark.full
def test_a_mixture_in_buckets_resumes_and_is_judged_by_task(place, tmp_path, monkeypatch):
  data = splits(place, "translated", translated) | {"tasks": "task", "buckets": 2}
  config = folders.config(str(place / "llama"), data, steps=4)
  config["train"] |= {"checkpoint_every": 1}
  result = resumes(monkeypatch, config, tmp_path, 1)
  final, run = result["final"], jaxtune.load_run(tmp_path / "parts")
  names = ("test_loss", "test_perplexity", "test_accuracy", "validation_loss")
  for name in names:
    assert final[f"{name}/mean"] == pytest.approx(np.mean([final[f"{name}/{t}"] for t in "xy"]))
  alone = jaxtune.evaluate(run, {"data.tasks": None, "data.only": {"task": "y"}})
  for part in ("base", "final"):
    same({k: alone[part][k] for k in names}, {k: result[part][f"{k}/y"] for k in names})
  assert sum(one["drawn"] for one in result["mixture"].values()) == 16
  with pytest.raises(UserError, match="metric 'test_loss/z'"):
    jaxtune.sweep(config | {"sweep": ({"seed": [0]},)}, tmp_path / "sweep", "test_loss/z")


@pytest.mark.full
def test_a_streamed_run_resumes(place, tmp_path, monkeypatch):
  data = splits(place, "translated", translated)
  data |= {"stream": 5, "max_length": 8, "overlap": "drop"}
  config = folders.config(str(place / "llama"), data, steps=4)
  config["train"] |= {"checkpoint_every": 1, "batch_size": 8}
  result = resumes(monkeypatch, config, tmp_path, 3)
  assert result["final"]["test_loss"] < result["base"]["test_loss"]
  assert "train_loss" not in result["final"]
