"""What a trial scored by example is read as it was written, or an error names the file."""

from types import SimpleNamespace

import numpy as np
import pytest
from support import made_trials

from jaxtune.errors import UserError
from jaxtune.evaluation import judge
from jaxtune.evaluation.options import EvaluateOptions
from jaxtune.metrics import intervals
from jaxtune.objectives import sft
from jaxtune.runs import results, scores

SPLIT = made_trials.split(8, 2)
RNG = np.random.default_rng(0)
ROWS = {name: RNG.uniform(1, 3, 8).astype(np.float32) for name in ("loss", "weight", "correct")}
JUDGED = judge.Judged({"test_loss": 1.0, "test_perplexity": 2.7}, "test", ROWS)


def write(folder, judged=JUDGED, resamples=50):
  """Writes scores and a result, and returns the result."""
  evaluate = EvaluateOptions(resamples=resamples)._asdict()
  dataset = SimpleNamespace(test=SPLIT)
  trial = SimpleNamespace(config={"evaluate": evaluate}, objective=sft, dataset=dataset)
  folder.mkdir(exist_ok=True)
  scores.write(folder, trial, judged)
  return results.write(folder, {"final": judged.metrics})


def test_what_was_written_is_read(tmp_path):
  result = write(tmp_path)
  found = scores.read(tmp_path, result)
  assert found.examples == scores.identity(SPLIT)
  for name, x in ROWS.items():
    np.testing.assert_array_equal(found.rows[name], x)
  expected = intervals.ratio_draws(ROWS["loss"], ROWS["weight"], resamples=50)
  np.testing.assert_array_equal(found.draws["test_loss"], expected)
  np.testing.assert_array_equal(found.draws["test_perplexity"], np.exp(expected))
  before = (tmp_path / scores.NAME).read_bytes()
  assert write(tmp_path) == result and (tmp_path / scores.NAME).read_bytes() == before


@pytest.mark.parametrize(("judged", "resamples"), [(JUDGED, 0), (judge.Judged({"x": 1.0}), 50)])
def test_a_trial_without_resamples_or_examples_has_none(tmp_path, judged, resamples):
  result = write(tmp_path, judged, resamples)
  assert not (tmp_path / scores.NAME).exists() and scores.read(tmp_path, result) is None


def test_other_examples_have_another_identity():
  other = SPLIT._replace(rows=[{"prompt": i} for i in range(8)])
  fewer = made_trials.split(7, 2)._replace(rows=SPLIT.rows)
  assert len({scores.identity(split) for split in (SPLIT, other, fewer)}) == 3
  assert scores.identity(SPLIT, range(8)) == scores.identity(SPLIT, list(range(8)))
  assert scores.identity(SPLIT, range(8)) != scores.identity(SPLIT, range(4))
  windows = lambda *of: SPLIT._replace(arrays=SPLIT.arrays | {"example": np.array(of)})
  assert scores.identity(windows(*range(8))) == scores.identity(SPLIT)  # each is drawn alone
  assert scores.identity(windows(0, 0, *range(1, 7))) != scores.identity(SPLIT)


@pytest.mark.parametrize("content", [b"", b"{}", b"\x08\x00\x00\x00\x00\x00\x00\x00{}      "])
def test_a_damaged_file_is_named(tmp_path, content):
  result, path = write(tmp_path), tmp_path / scores.NAME
  path.write_bytes(content)
  with pytest.raises(UserError, match=f"{scores.NAME} is damaged"):
    scores.read(tmp_path, result)
  result = results.write(tmp_path, {"final": {}})  # with the hash of the damaged file
  with pytest.raises(UserError, match=f"{scores.NAME} is damaged"):
    scores.read(tmp_path, result)
  path.unlink()
  assert scores.read(tmp_path, result) is None
