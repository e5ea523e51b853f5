from __future__ import annotations

import numpy as np
from matplotlib.colors import to_rgb

from jaxtune.metrics.kinds import label
from jaxtune.sweeps import canvas, confusion


def of_counts(counts):
  return label.Confusion(tuple(f"class {i}" for i in range(len(counts))), np.array(counts))


def numbers(figure):
  return {text.get_position(): text for text in figure.axes[0].texts if text.get_text().isdigit()}


def test_true_classes_go_down_and_predicted_ones_across():
  figure = confusion.draw(of_counts([[7, 1, 0], [0, 5, 0], [2, 0, 3]]), "topics")
  axes = figure.axes[0]
  found = {place: text.get_text() for place, text in numbers(figure).items()}
  # (across, down); a 0 is left empty.
  assert found == {(0, 0): "7", (1, 0): "1", (1, 1): "5", (0, 2): "2", (2, 2): "3"}
  assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted class", "true class")
  assert [label.get_text() for label in axes.get_yticklabels()] == ["class 0", "class 1", "class 2"]
  np.testing.assert_allclose(axes.images[0].get_array()[2], [0.4, 0, 0.6])
  assert "topics" in [line for text in axes.texts for line in text.get_text().splitlines()]


def test_every_number_can_be_read_on_its_shade():
  seen = set()
  for first in (1, 26):  # a row for each percentage and what is missing to 100
    counts = np.zeros((25, 25), int)
    counts[:, 0] = np.arange(first, first + 25)
    counts[:, 1] = 100 - counts[:, 0]
    for text in numbers(confusion.draw(of_counts(counts))).values():
      seen.add(percent := int(text.get_text()))
      shade = canvas.SHADES(percent / 100)[:3]
      light, dark = sorted(map(luminance, (text.get_color(), shade)))[::-1]
      assert (light + 0.05) / (dark + 0.05) > 4.5, percent  # WCAG's AA
  assert seen == set(range(1, 100))


def luminance(color):
  linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(color)]
  return float(np.dot([0.2126, 0.7152, 0.0722], linear))


def test_rare_classes_become_one():
  rng = np.random.default_rng(0)
  counts = rng.integers(0, 9, (40, 40))
  counts[[3, 17]] = 0  # classes without references
  found = confusion.merge_rare(of_counts(counts), 29)
  assert found.counts_CC.shape == (30, 30) and found.labels[-1] == "other (11)"
  assert found.counts_CC.sum() == counts.sum()
  assert "class 3" not in found.labels and "class 17" not in found.labels
  first = int(found.labels[0].split()[1])
  assert found.counts_CC[0, 0] == counts[first, first]
  figure = confusion.draw(of_counts(counts))
  assert len(figure.axes[0].get_yticklabels()) == 30
  assert "29 most frequent of 40" in " ".join(text.get_text() for text in figure.axes[0].texts)


def test_the_title_fits_and_names_do_not_collide():
  for classes, name in ((2, "x"), (12, "a name that is far too long for a plot"), (30, "intent")):
    named = of_counts(np.eye(classes, dtype=int) * 1234)._replace(labels=(name,) * classes)
    figure = confusion.draw(
      named, "lora-rank=8-scale=2.0,learning_rate=0.003,weight_decay=0.01,seed=0"
    )
    figure.draw_without_rendering()
    right = figure.bbox.x1
    assert all(t.get_window_extent().x1 <= right for t in figure.axes[0].texts)
    heights = [label.get_window_extent() for label in figure.axes[0].get_yticklabels()]
    assert all(above.y0 >= below.y1 for above, below in zip(heights, heights[1:], strict=False))
    cell = figure.axes[0].get_window_extent().width / classes
    assert all(t.get_window_extent().width < cell for t in numbers(figure).values())
