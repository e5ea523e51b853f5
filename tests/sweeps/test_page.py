"""The page of a sweep in a browser: what a reader sees, and what the buttons do."""

from __future__ import annotations

import csv
import io
import json
import time
from functools import partial

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image
from support import browser, made_sweep

import jaxtune
from jaxtune.sweeps import comparison, pairs

GIVEN = made_sweep.config(made_sweep.lora([1, 4, 16]), made_sweep.prefix([5, 20]))


class Page:
  """The page in a browser, with what the tests ask it."""

  def __init__(self, driver, path, downloads):
    self.driver, self.path, self.downloads = driver, path, downloads

  def open(self, width=1400, theme="light"):
    size = dict(width=width, height=900, deviceScaleFactor=1, mobile=False)
    media = [{"name": "prefers-color-scheme", "value": theme}]
    self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": media})
    self.driver.get(f"file://{self.path}")
    return self

  def run(self, script, *arguments):
    return self.driver.execute_script(script, *arguments)

  def find(self, selector):
    return self.driver.find_elements("css selector", selector)

  def labels(self):
    """Lists the configurations of the table, from top to bottom."""
    cells = self.find("#configurations tr[data-c] td:first-child")
    return [cell.text.partition("\n")[0].lstrip("▸▾ ") for cell in cells]

  def type(self, text):
    box = self.find("#filter")[0]
    box.clear()
    box.send_keys(text)

  def saved(self, button):
    """Clicks a button and returns the content of the file that it saves."""
    self.run("arguments[0].click()", button)
    for _ in range(200):  # a file has another name until it is whole
      for path in self.downloads.glob("[!.]*"):
        if path.suffix in (".csv", ".png", ".svg"):
          content = path.read_bytes()
          path.unlink()
          return content
      time.sleep(0.05)
    raise AssertionError("nothing was saved")


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
  if browser.find() is None:
    pytest.skip(browser.MISSING)
  downloads = tmp_path_factory.mktemp("downloads")
  driver = browser.start(downloads)
  yield driver, downloads
  driver.quit()


@pytest.fixture(scope="module")
def made(tmp_path_factory, driver):
  folder = tmp_path_factory.mktemp("made") / "ranks & lengths"
  results = made_sweep.write(folder, GIVEN)
  made_sweep.analyse(folder, results)
  return Page(driver[0], jaxtune.report([folder]), driver[1]), results


@pytest.mark.parametrize("width", [1400, 390])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_no_error_and_nothing_beside_the_screen(made, width, theme):
  page = made[0].open(width, theme)
  assert page.driver.get_log("browser") == []
  assert page.run("return document.documentElement.scrollWidth") == width
  assert len(page.find("section")) == 11 and len(page.find("figure svg")) == 12
  dark = page.run("return getComputedStyle(document.body).backgroundColor") == "rgb(17, 22, 28)"
  assert dark == (theme == "dark")
  outside = """return [...document.querySelectorAll('figure svg text')].filter((text) => {
    const [box, all] = [text, text.ownerSVGElement].map((one) => one.getBoundingClientRect());
    return box.left < all.left - 1 || box.right > all.right + 1 || box.bottom > all.bottom + 1;
  }).map((text) => text.textContent)"""
  assert page.run(outside) == [], "no label is cut off"


def test_what_has_no_place_on_an_axis_is_counted(made):
  page = made[0].open()
  assert "2 without rank are not drawn" in page.find("#axes svg")[0].text
  assert len(page.find("#axes g[data-c]")) == 3


def test_output_of_a_model_is_text(made):
  page = made[0].open()
  assert page.driver.title == "ranks & lengths"
  assert made_sweep.HOSTILE in page.find("#samples .card.wide")[0].text
  assert page.find("img") == []


def test_sorts_by_any_column(made):
  page = made[0].open()
  best_first = [f"lora rank={r}" for r in (16, 4, 1)]
  assert [label for label in page.labels() if "lora" in label] == best_first
  heads = page.find("#configurations th button")
  assert len(heads) == 5, "five columns a person would read"
  heads[3].click()  # trained parameters
  sizes = lambda: [
    int(cell.text.replace(",", "")) for cell in page.find("tr[data-c] td:nth-child(4)")
  ]
  assert sizes() == [1000, 4000, 5000, 16000, 20000]
  page.find("th[aria-sort] button")[0].send_keys("\n")
  assert sizes() == [20000, 16000, 5000, 4000, 1000]


def test_filters_the_table_and_the_plots(made):
  page = made[0].open()
  for text, count in (
    ("lora", 3),
    ("lora rank>=4", 2),
    ("rank=4", 1),
    ("test_loss<1.3", 1),
    ("xyz", 0),
  ):
    page.type(text)
    assert len(page.labels()) == count, text
    drawn = {int(mark.get_attribute("data-c")) for mark in page.find("#pareto g[data-c]")}
    assert len(drawn) == count
  asked = """const values = { "test_rougeL/mean": { mean: 3 } };
    return matches({ settings: {}, costs: {}, values }, arguments[0])"""
  assert page.run(asked, "test_rougel/mean>=3") and not page.run(asked, "test_rougel/mean<3")
  assert page.driver.get_log("browser") == []


def test_opens_to_the_seeds(made):
  page, results = made
  page.open().find('[aria-label="seeds of lora rank=4"]')[0].click()
  shown = [row.text for row in page.find("tr.seed")]
  losses = [r["final"]["test_loss"] for r in results if "lora-rank=4-" in r["trial"]]
  assert len(shown) == 3
  for row, value in zip(shown, losses, strict=True):
    assert f"{value:.3f}" in row


def test_the_differences_are_those_of_the_comparison(made):
  """The matrix holds each pair twice, with opposite signs, and the table the column of the best."""
  page, results = made
  compared = comparison.compare(results, "test_loss")
  page.open()
  for pair in compared.pairs:
    found, turned = page.run(
      """const index = (label) => data.configurations.find((one) => one.label === label).index;
      const [a, b] = [...arguments].map(index);
      return [pairOf(a, b), pairOf(b, a)]""",
      pair.a,
      pair.b,
    )
    low, high = pair.test.interval
    assert [found[k] for k in ("mean", "low", "high", "p")] == [
      pair.test.difference, low, high, pair.p_adjusted,
    ]  # fmt: skip
    assert [turned["mean"], turned["low"], turned["high"]] == [-pair.test.difference, -high, -low]
  best, *others = (row.text for row in page.find("#configurations tr[data-c]"))
  p = pairs.find(compared.pairs, "lora rank=4", "lora rank=16").p_adjusted
  assert "the best" in best and any(f"p = {p:.2g}" in row for row in others if "rank=4" in row)


def test_more_columns_on_demand(made):
  page = made[0].open()
  page.find("#configurations summary")[0].click()
  page.find("#configurations details input")[-1].click()
  assert page.find("#configurations th")[-1].text.startswith("test accuracy")


def test_a_point_tells_its_mean_to_pointer_and_keyboard(made):
  page, results = made
  page.open().run("document.getElementById('axes').scrollIntoView()")
  losses = [r["final"]["test_loss"] for r in results if "lora-rank=4-" in r["trial"]]
  expected = f"lora rank=4\ntest loss: {np.mean(losses):.2f} ["
  place = page.run("""const marks = [...document.querySelectorAll('#axes g[data-c]')];
    const wanted = data.configurations.find((one) => one.label === 'lora rank=4').index;
    const mark = marks.find((one) => Number(one.dataset.c) === wanted).lastChild;
    const box = mark.getBoundingClientRect(); return [box.x + 4, box.y + 4]""")
  move = dict(type="mouseMoved", x=place[0], y=place[1])
  page.driver.execute_cdp_cmd("Input.dispatchMouseEvent", move)
  assert page.find("#tip")[0].text.startswith(expected)
  assert "focusing" in page.find("main")[0].get_attribute("class")
  assert len(page.find("#configurations tr.on")) == 1, "the table shows which one it is"
  page.driver.execute_cdp_cmd("Input.dispatchMouseEvent", move | dict(x=1, y=1))
  picture = page.find("#curves svg")[0]
  picture.send_keys("\ue014")  # arrow right
  assert "step 2: train loss" in page.find("#tip")[0].text
  picture.send_keys("\ue00c")  # escape
  assert not page.find("#tip")[0].is_displayed()


def test_an_estimate_has_the_digits_that_its_interval_tells(made):
  estimate = "return estimate({mean: arguments[0], low: arguments[1], high: arguments[2]}, signed)"
  run = partial(made[0].open().driver.execute_script, estimate)
  assert run(0.0051, -0.004814, 0.0151) == "+0.005 [-0.005, +0.015]"
  assert run(12.345, 11.2, 13.4) == "+12.3 [+11.2, +13.4]"
  assert run(4.1e-7, 3.9e-7, 4.3e-7) == "+4.1e-7 [+3.9e-7, +4.3e-7]"
  assert run(0.5, 0.5, 0.5) == "+0.500 [+0.500, +0.500]"


def test_smoothing_is_the_unbiased_exponential_mean(made):
  page = made[0].open()
  values = [3.0, 1.0, 2.0]
  found = page.run("return smoothed([[1, 3], [2, 1], [3, 2]], 0.5)")
  weights = [np.array([0.5 ** (n - i) for i in range(n + 1)]) for n in range(3)]
  wanted = [np.dot(w, values[: len(w)]) / w.sum() for w in weights]
  np.testing.assert_allclose([value for _, value in found], wanted)
  before = page.find("#curves path")[1].get_attribute("d")
  page.run("const s = document.getElementById('smooth'); s.value = 0.9; "
           "s.dispatchEvent(new Event('input'))")  # fmt: skip
  assert page.find("#curves path")[1].get_attribute("d") != before


def test_saves_csv_of_what_is_shown(made):
  page, results = made
  page.open().type("lora")
  text = page.saved(page.find("#csv")[0]).decode()
  rows = {row["trial"]: row for row in csv.DictReader(io.StringIO(text))}
  expected = {r["trial"]: r["final"]["test_loss"] for r in results if r["method"] == "lora"}
  assert {name: float(row["test_loss"]) for name, row in rows.items()} == expected
  assert {row["rank"] if "rank" in row else row["method.rank"] for row in rows.values()} == {
    "1", "4", "16",
  }  # fmt: skip


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_saves_pictures_in_the_colours_of_the_page(made, theme):
  page = made[0].open(theme=theme)
  image = Image.open(io.BytesIO(page.saved(page.find("#pareto figcaption button")[0])))
  svg = page.find("#pareto svg")[0]
  assert image.size == (2 * svg.size["width"], 2 * svg.size["height"])
  pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
  paper = {"light": (255, 255, 255), "dark": (17, 22, 28)}[theme]
  assert tuple(pixels[0]) == paper
  line = {"light": (0, 114, 178), "dark": (93, 180, 240)}[theme]  # of the first method
  assert (pixels == line).all(1).sum() > 20
  text = page.saved(page.find("#pareto figcaption button")[1]).decode()
  assert f"stroke: rgb{line}" in text, "a saved SVG has its colours, without the page's style"


def test_on_paper_the_controls_are_left_out(made):
  page = made[0].open(theme="dark")
  paper = dict(width=794, height=1123, deviceScaleFactor=1, mobile=False)  # A4 at 96 dots an inch
  page.find("#differences summary")[0].click()
  page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print", "features": []})
  assert not any(one.is_displayed() for one in page.find("nav, .controls, figcaption"))
  assert all(one.is_displayed() for one in page.find("table, figure svg"))
  page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", paper)
  assert page.run("return document.documentElement.scrollWidth") <= paper["width"]


def test_a_sweep_under_way_shows_its_curves(driver, tmp_path):
  made_sweep.write(tmp_path, GIVEN, running=(0, 3))
  curve = {"rates": [0.1, 0.2, 0.3], "losses": [2.0, 1.0, None], "chosen": 0.2, "at_edge": False}
  (tmp_path / "notes.json").write_text(json.dumps({"assumed prompt": "column 'question'"}))
  (tmp_path / "tuning.json").write_text(json.dumps({"a": curve, "b": curve | {"at_edge": True}}))
  page = Page(driver[0], jaxtune.report([tmp_path]), driver[1]).open()
  assert page.driver.get_log("browser") == []
  states = [one.text for one in page.find(".state")]
  assert states == ["stopped 1 of 3"] * 2
  page.type("stopped")
  assert len(page.labels()) == 2
  lines = page.run("""return data.configurations.flatMap((one) => one.trials)
    .filter((one) => one.state === 'stopped').map((one) => one.curves.train_loss.length)""")
  assert lines == [10, 10]
  assert page.find("#warnings dd")[0].text == "column 'question'", "what was assumed is on top"
  rings = page.find('#rates circle[fill="none"]')
  assert len(rings) == 2 and "may lie beyond: b." in page.find("#rates .note")[0].text


def test_warnings_are_folded_and_open_on_paper(made):
  page = made[0].open(width=390)
  texts = page.run("return data.warnings")
  assert page.find("#warnings h2")[0].text.startswith(f"{len(texts)} warnings")
  items = page.find("#warnings details.warning")
  heads = [item.find_elements("css selector", "summary")[0].text for item in items]
  assert all(text.startswith(head) for text, head in zip(texts, heads, strict=True))
  longest = next(i for i, text in enumerate(texts) if text.startswith("The best method.rank"))
  assert heads[longest].endswith("the highest of 3."), "its first sentence"
  rest = lambda: items[longest].find_elements("css selector", "p")[0]
  assert not rest().is_displayed()
  items[longest].find_elements("css selector", "summary")[0].send_keys("\n")
  assert rest().is_displayed() and f"{heads[longest]} {rest().text}" == texts[longest]
  page.run("dispatchEvent(new Event('beforeprint'))")
  assert all(item.get_attribute("open") for item in items)
  page.run("dispatchEvent(new Event('afterprint'))")
  assert [bool(item.get_attribute("open")) for item in items].count(True) == 1
  page.find("#warnings h2 button")[0].click()
  assert all(item.get_attribute("open") for item in items)


def drag(page, axis, *ends):
  """Drags the pointer along an axis, from one value of it to another, beyond both by 4 pixels."""
  x, ys = page.run(
    """document.getElementById('parallel').scrollIntoView();
    const box = document.querySelector(`[data-axis="${arguments[0]}"]`).getBoundingClientRect();
    const axis = coordinates(data.configurations).find(({key}) => key === arguments[0]);
    const values = data.configurations.map(axis.value);
    const wide = Math.max(...values) > 20 * Math.min(...values);
    const to = scale(values, 310, 50, { log: wide, own: true, room: 0.03 });
    const ratio = box.height / 280;
    return [box.x + box.width / 2, arguments[1].map((v) => box.y + (to.at(v) - 40) * ratio)]""",
    axis,
    list(ends),
  )
  low, high = max(ys) + 4, min(ys) - 4
  for kind, y in (
    ("Pressed", low),
    ("Moved", (low + high) / 2),
    ("Moved", high),
    ("Released", high),
  ):
    page.driver.execute_cdp_cmd(
      "Input.dispatchMouseEvent",
      dict(type=f"mouse{kind}", x=x, y=y, button="left", buttons=1, clickCount=1),
    )


def test_a_range_of_an_axis_filters_the_page(made):
  page = made[0].open()
  drag(page, "trained_parameters", 4000, 16000)
  left = ["lora rank=16", "lora rank=4", "prefix length=5 learning_rate=0.3"]
  assert page.labels() == left
  assert page.find("#count")[0].text == "3 of 5 configurations, in ranges of 1 parallel coordinates"
  assert {int(mark.get_attribute("data-c")) for mark in page.find("#pareto g[data-c]")} == {0, 1, 3}
  assert len(page.find("#parallel .outside")) == 2, "the others stay where they were, and are pale"
  ends = lambda: page.find('[data-end="test_loss"]')
  ends()[1].send_keys("\ue015")  # arrow down: the highest loss is left out
  assert page.labels() == left, "it was left out already"
  for _ in range(2):
    page.driver.switch_to.active_element.send_keys("\ue015")
  assert page.labels() == ["lora rank=16", "lora rank=4"], "the focus stays on the end"
  assert ends()[1].get_attribute("aria-valuetext") == page.run(
    "return short(data.configurations[1].values.test_loss.mean)"
  )
  page.driver.switch_to.active_element.send_keys("\ue00c")  # escape
  assert page.labels() == left
  drag(page, "trained_parameters", 15000, 15001)
  assert len(page.labels()) == 5, "a range without any configuration is none"
  drag(page, "trained_parameters", 4000, 5000)
  page.find("#clear-ranges")[0].click()
  assert len(page.labels()) == 5 and page.driver.get_log("browser") == []


@pytest.mark.parametrize("cost", ["flops", "memory", "trained_parameters", "seconds"])
def test_the_pareto_front_is_what_nothing_beats(made, cost):
  page, results = made
  page.open().run(
    """const box = document.querySelector('#pareto select'); box.value = arguments[0];
    box.dispatchEvent(new Event('change'))""",
    cost,
  )
  means = {}
  for result in results:
    means.setdefault((result["method"], result[cost]), []).append(result["final"]["test_loss"])
  points = [(price, np.mean(losses)) for (_, price), losses in means.items()]
  best = [p for p in points if not any(q[0] <= p[0] and q[1] < p[1] for q in points)]
  line = page.find("#pareto .front")[0].get_attribute("d")
  assert line.count("L") == 2 * (len(best) - 1)
  names = page.run(
    "return front(visible(), arguments[0]).map((one) => one.costs[arguments[0]])", cost
  )
  assert names == sorted(price for price, _ in best)
  offered = [option.get_attribute("value") for option in page.find("#pareto option")]
  assert "tokens" not in offered, "all have seen as many"


def test_the_config_on_the_page_is_the_config(made, tmp_path):
  page = made[0].open()
  shown = page.find("#reproduce pre")[0].text
  command = page.find("#reproduce dd")[0].text
  again = "jaxtune sweep --config 'ranks & lengths.py' --workdir 'runs/again/ranks & lengths'"
  assert command == again
  (tmp_path / "again.py").write_text(shown)
  assert jaxtune.load_config(tmp_path / "again.py").to_dict() == ConfigDict(GIVEN).to_dict()


@pytest.mark.parametrize("width", [1400, 390])
def test_heat_maps_change_with_what_is_chosen(made, width):
  page, found = made[0].open(width), json.loads((made[0].path.parent / "analysis.json").read_text())
  heads = [head.text for head in page.find("#heat h3")]
  assert len(heads) == len(page.find("#heat figure svg")) == 7, "six groups and the confusions"
  choose = """const select = [...document.querySelectorAll('#heat select')].find((one) =>
      one.parentElement.textContent.startsWith(arguments[0]) && [...one.options].some((option) =>
      option.value === arguments[1]));
    select.value = arguments[1]; select.dispatchEvent(new Event('change'));"""
  page.run(choose, "configuration", "lora rank=4")
  page.run(choose, "measure", "effective rank")
  cells = lambda: [
    text.text for text in page.find("#heat figure")[1].find_elements("css selector", "text")
  ]
  matrices = [
    [x["effective_rank"] for x in entry["weights"].values()]
    for name, entry in found["trials"].items()
    if "rank=4" in name
  ]
  # Behind the names of the two modules: a row for each layer, its name first.
  shown = np.array([float(text) for text in cells()[2:]]).reshape(3, 3)
  np.testing.assert_allclose(shown[:, 1:], np.mean(matrices, 0).T, atol=0.006)
  picture = page.find("#heat figure svg")[3]
  picture.send_keys("\ue014")  # arrow right
  assert "random subspaces: 0.125" in page.find("#tip")[0].text
  picture.send_keys("\ue00c")  # escape
