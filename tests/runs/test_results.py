"""What is read back of a finished trial is what was written, or an error names the file."""

import json

import jax
import numpy as np
import pytest
from support import made_trials

from jaxtune import peft, tree
from jaxtune.errors import UserError
from jaxtune.runs import folder as runs
from jaxtune.runs import results


@pytest.fixture
def folder(tmp_path):
  for name in results.FILES:
    (tmp_path / name).write_text(f"the content of {name}")
  results.write(tmp_path, {"final": {"test_loss": float("nan"), "x": 1e-7}, "at": tmp_path})
  return tmp_path


def sweep(folder, trials):
  """Writes the finished trials of a sweep, {name: (its result, its objective[, its rollout])}."""
  for name, (result, objective, *rollout) in trials.items():
    (trial := folder / "trials" / name).mkdir(parents=True)
    config = {"objective": objective, "optim": {"learning_rate": 0.1}, "train": {"steps": 1}}
    (trial / "config.json").write_text(json.dumps(config | {"rollout": dict(*rollout)}))
    results.write(trial, result)


def test_a_sweep_whose_losses_cannot_be_compared_has_no_best_trial(tmp_path):
  result = {"final": {"validation_loss": 1.0}}
  dpo = lambda **options: (result, {"name": "dpo"} | options)
  policy = lambda **options: (result, {"name": "grpo"} | options)
  left = ({"exited_at": 3} | result, {"name": "orpo"})
  alike = {"a": dpo(beta=1, label_smoothing=0.1), "b": dpo(beta=1), "c": left}
  for n, trials in enumerate((alike, {"a": policy(kl=1), "b": policy(kl=2)})):
    sweep(tmp_path / str(n), trials)
    assert results.best_trial(tmp_path / str(n)).name == "a"
  rewarded = lambda *names, **more: (*policy(), {"rewards": names} | more)
  for n, (trials, says) in enumerate((
    ((dpo(beta=0.1), dpo(beta=0.5)), "objective.beta is 0.1 and 0.5"),
    ((rewarded("length"), rewarded("rougeL")), r"rollout.rewards is \['length'\] and \['rougeL'\]"),
    ((rewarded("bleu"), rewarded("bleu", weights=[2])), r"rollout.weights is \[1.0\] and \[2.0\]"),
  )):  # fmt: skip
    sweep(tmp_path / f"apart {n}", dict(zip("ab", trials, strict=True)))
    with pytest.raises(UserError, match=f"no best trial, as {says}.*name one"):
      results.best_trial(tmp_path / f"apart {n}")


def test_a_trial_that_left_early_does_not_speak_for_its_sweep(tmp_path):
  of = lambda loss, left: ({"final": {"validation_loss": loss}, "exited_at": left}, {"name": "sft"})
  sweep(tmp_path, {"a": of(0.1, 5), "b": of(2.0, None), "c": of(1.0, None)})
  assert results.best_trial(tmp_path).name == "c"


def test_a_sweep_has_its_best_trial_by_one_metric(tmp_path):
  """Of b nothing of validation could be judged."""
  of = lambda **loss: ({"final": loss | {"test_loss": 1.0}}, {"name": "sft"})
  sweep(tmp_path, {"a": of(validation_loss=2.0), "b": of(), "c": of(validation_loss=1.5)})
  assert results.best_trial(tmp_path).name == "c"


@pytest.mark.parametrize(
  ("name", "says"),
  [
    ("", "holds no finished run; expected .*, valid choices: lora, wide$"),
    ("lore/a", "holds no finished run: it is not there, .*, did you mean 'lora'[?]$"),
  ],
)
def test_a_run_that_is_not_there_names_those_that_are(tmp_path, name, says):
  runs.write(tmp_path / "lora", peft.Overlay({}, {}), "base", {}, (), ())
  sweep(tmp_path / "wide", {"a": ({"final": {}}, {"name": "sft"})})
  with pytest.raises(UserError, match=says):
    results.best_trial(tmp_path / name)


def test_weights_whose_padding_was_cut_off_are_written_as_they_are(tmp_path):
  """A view of a larger array has gaps in memory, which a file must not copy."""
  padded = {"params": {}, "peft": {"a": np.arange(24.0).reshape(2, 3, 4), "rate": np.float32(3)}}
  shapes = {"params": {}, "peft": {"a": np.zeros((2, 3, 2)), "rate": np.float32(0)}}
  tuned = tree.crop(padded, shapes)
  runs.write(
    tmp_path, peft.Overlay(tuned, {}), "base", made_trials.complete({"name": "lora"}), [], []
  )
  *_, found = runs.read(tmp_path)
  jax.tree.map(np.testing.assert_array_equal, found, tree.flatten(tuned | {"hyper": {}}))


def test_what_was_written_is_read(folder):
  result = results.read(folder)
  assert result["at"] == str(folder) and {*result["files"]} == {*results.FILES}
  results.check_files(folder, result)
  assert results.read(folder / "none") == {}


def test_a_group_that_goes_on_elsewhere_leaves_results_as_they_are(folder):
  """Its configs name another mesh; it may be killed again before its results are written."""
  runs.begin([folder, folder / "left"], [{"train": {"mesh": {"fsdp": 2}}}] * 2)
  results.check_files(folder, results.read(folder))
  assert (folder / "left" / "config.json").exists()


@pytest.mark.parametrize("name", results.FILES)
@pytest.mark.parametrize("harm", ["flip", "cut", "remove", "folder"])
def test_a_damaged_file_is_named(folder, name, harm):
  path = folder / name
  content = path.read_bytes()
  path.unlink()
  if harm == "folder":
    path.mkdir()
  elif harm != "remove":
    path.write_bytes(content[:-1] + (bytes([content[-1] ^ 1]) if harm == "flip" else b""))
  says = "is missing" if harm == "remove" else "is damaged or changed"
  with pytest.raises(UserError, match=f"{name} {says} since result.json was written"):
    results.check_files(folder, results.read(folder))
  if name == "tuned.safetensors":
    with pytest.raises(UserError, match=says if harm != "remove" else "holds no finished run"):
      runs.read(folder)


def test_every_flipped_bit_of_a_result_is_found(folder):
  """But for those that change the layout alone."""
  path = folder / "result.json"
  content, right = path.read_bytes(), results.read(folder)
  for at in range(0, len(content), 3):
    path.write_bytes(content[:at] + bytes([content[at] ^ 1 << at % 8]) + content[at + 1 :])
    try:
      found = results.read(folder)
    except UserError as error:
      assert "result.json" in str(error)
    else:
      assert json.dumps(found) == json.dumps(right)


@pytest.mark.parametrize("key", ["files", "sha256"])
def test_a_result_without_its_hashes_is_refused(folder, key):
  path = folder / "result.json"
  path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != key}))
  with pytest.raises(UserError, match=f"{key} is missing"):
    results.read(folder)


@pytest.mark.parametrize("content", ["", "[]", "3", '{"final": 3}', '{"final"', "[" * 10**5])
def test_a_result_that_is_none(tmp_path, content):
  (tmp_path / "result.json").write_text(content)
  with pytest.raises(UserError, match="result.json"):
    results.read(tmp_path)
