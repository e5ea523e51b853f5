from __future__ import annotations

import json
import math
import subprocess
import sys

import matplotlib
import numpy as np
import pytest

from jaxtune.runs import folder
from jaxtune.sweeps import canvas, plot, stats


def grid_results(made):
  return [
    made.result(
      {"method.rank": rank, "optim.learning_rate": rate, "seed": seed},
      2 - 0.1 * rank + rate + 0.01 * seed,
      parameters=1000 * rank,
    )
    for rank in (1, 2, 4, 8)
    for rate in (0.001, 0.01)
    for seed in (0, 1, 2)
  ]


def texts(figure):
  return " ".join(
    [figure.axes[0].get_title(loc="left"), *(text.get_text() for text in figure.axes[0].texts)]
  )


def test_one_plot_an_axis_and_one_of_size(made):
  drawn = plot.figures(grid_results(made), "test_loss")
  assert list(drawn) == [
    "test_loss-rank",
    "test_loss-learning_rate",
    "test_loss-trained_parameters",
  ]
  axes = drawn["test_loss-rank"].axes[0]
  assert axes.get_ylabel() == "test loss" and axes.get_xlabel() == "rank (log scale)"
  assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "2", "4", "8"]
  _, labels = axes.get_legend_handles_labels()
  assert labels == ["learning_rate=0.001", "learning_rate=0.01"]


def test_lines_show_means_and_intervals(made):
  results = made.ranks({1: [2.0, 2.1, 2.2], 2: [1.0, 1.3, 1.1]})
  axes = plot.figures(results, "test_loss")["test_loss-rank"].axes[0]
  line, caps, bars = axes.containers[0]
  np.testing.assert_allclose(line.get_ydata(orig=False), [2.1, 3.4 / 3])
  half_width = stats.summarize([2.0, 2.1, 2.2]).half_width
  np.testing.assert_allclose(bars[0].get_segments()[0][:, 1], [2.1 - half_width, 2.1 + half_width])


def test_the_base_is_a_line_unless_it_squashes_the_rest(made):
  near = made.ranks({1: [2.0], 2: [1.0]}, base=2.2)
  figure = plot.figures(near, "test_loss")["test_loss-rank"]
  assert any(line.get_linestyle() == "--" for line in figure.axes[0].lines)
  far = made.ranks({1: [2.0], 2: [1.9]}, base=9.0)
  figure = plot.figures(far, "test_loss")["test_loss-rank"]
  assert not any(line.get_linestyle() == "--" for line in figure.axes[0].lines)
  assert "base without tuning: 9 (above the plot)" in texts(figure)
  assert figure.axes[0].get_ylim()[1] < 3


def test_diverged_seeds_are_marked(made):
  figure = plot.figures(made.ranks({1: [2.0, 2.1], 2: [math.nan, 1.0]}), "test_loss")[
    "test_loss-rank"
  ]
  assert [line.get_marker() for line in figure.axes[0].lines].count("x") == 1
  assert "a seed diverged" in texts(figure)


def test_methods_side_by_side(made):
  results = made.ranks({1: [2.0], 4: [1.8]}) + [
    made.result(
      {"method": {"name": "prefix", "length": n}, "seed": 0},
      2.0 - n / 100,
      method="prefix",
      parameters=100 * n,
    )
    for n in (5, 10, 20)
  ]
  drawn = plot.figures(results, "test_loss")
  assert list(drawn) == ["test_loss-rank", "test_loss-length", "test_loss-trained_parameters"]
  assert drawn["test_loss-length"].axes[0].get_xlabel() == "prefix length (positions)"
  size = drawn["test_loss-trained_parameters"]
  assert size.axes[0].get_legend_handles_labels()[1] == ["lora", "prefix"]
  assert "length=10" in texts(size) and "rank=4" in texts(size)


@pytest.mark.parametrize(
  "losses",
  [
    {1: [2.0]},
    {1: [math.nan]},
    {1: [math.nan], 2: [math.nan]},
    {0: [2.0], 2: [1.0]},
    {1: [2.0], 2: [math.nan]},
  ],
)
def test_little_or_nothing_to_draw(made, losses):
  results = made.ranks(losses)
  for figure in plot.figures(results, "test_loss").values():
    figure.draw_without_rendering()
  assert plot.figures(results, "test_bleu") == {}


def test_learning_curves_average_the_steps_that_all_seeds_have(made, tmp_path):
  lines = [{"step": s, "train_loss": 3 - s / 10} for s in (1, 2, 3)]
  path = tmp_path / "metrics.jsonl"
  path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 4, "tr')
  assert folder.read_history(tmp_path) == lines and folder.read_history(tmp_path / "none") == []
  results = made.ranks({1: [2.0, 2.1]})
  resumed = [
    {"step": 1, "train_loss": 9.0},
    {"step": 1, "train_loss": 3.1},
    {"step": 2, "train_loss": 3.0},
  ]
  histories = {results[0]["trial"]: lines, results[1]["trial"]: resumed}
  axes = plot.figures(results, "test_loss", histories)["learning_curves"].axes[0]
  np.testing.assert_allclose(axes.lines[0].get_xydata(), [[1, 3.0], [2, 2.9]])
  assert len(axes.collections) == 1


def test_bands_are_announced_where_they_are_drawn(made):
  for settings, drawn in ((2, True), (6, False)):
    results = made.ranks({rank: [2.0, 2.1] for rank in range(1, settings + 1)})
    lines = [{"step": 1, "train_loss": 3.0}, {"step": 2, "train_loss": 2.0}]
    histories = {result["trial"]: lines for result in results}
    figure = plot.figures(results, "test_loss", histories)["learning_curves"]
    assert bool(figure.axes[0].collections) == drawn == ("bands" in texts(figure))


def test_many_lines_have_colours_of_their_own():
  labels = [f"{method} n={n}" for method in ("lora", "prefix") for n in range(6)]
  assert len({tuple(look.color) for look in canvas.looks(labels).values()}) == 12
  assert len({tuple(look.color) for look in canvas.looks(labels[:6] * 2 + ["x"]).values()}) == 7


@pytest.mark.full
def test_nothing_global_changes(made):
  before = dict(matplotlib.rcParams)
  for figure in plot.figures(grid_results(made), "test_loss").values():
    figure.draw_without_rendering()
  assert dict(matplotlib.rcParams) == before
  code = "import sys, jaxtune.sweeps.plot; assert 'matplotlib.pyplot' not in sys.modules"
  subprocess.run([sys.executable, "-c", code], check=True)


def test_intervals_end_where_values_do(made):
  """Of two seeds 90 and 99 the interval reaches beyond 100 %."""
  results = made.ranks({1: [90.0, 99.0], 2: [2.0, 3.0]})
  for result in results:
    for part in ("base", "final"):
      result[part]["test_accuracy"] = result[part]["test_loss"]
  axes = plot.figures(results, "test_accuracy")["test_accuracy-rank"].axes[0]
  assert axes.get_ylim() == pytest.approx((-3, 103))
  low, high = plot.figures(results, "test_loss")["test_loss-rank"].axes[0].get_ylim()
  assert high > 110
  # The loss of a policy is its negative reward.
  rewarded = made.ranks({1: [-3.0, -3.2], 2: [-3.6, -3.5]})
  low, high = plot.figures(rewarded, "test_loss")["test_loss-rank"].axes[0].get_ylim()
  assert low < -3.6 and high > -3.0
  for result in results:
    result["base"]["test_accuracy"] = 71.0
    result["final"]["test_accuracy"] = 80.0 + result["settings"]["seed"]
  drawn = plot.figures(results, "test_accuracy")["test_accuracy-trained_parameters"].axes[0]
  assert drawn.get_ylim()[0] < 71 < drawn.get_ylim()[1], "the base's line is in the plot"
