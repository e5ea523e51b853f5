"""The page in a browser: two people judge at once, and the server is killed in between."""

from __future__ import annotations

import re
import time

import pytest
from support import browser, feedback_server, folders

import jaxtune
from jaxtune.evaluation.votes import order, store, voting

HOSTILE = (
  """</p><script>document.title = "1"</script><img src=x onerror='document.title = 2'> "&'"""
)
PAIRS = 10
LONG = " and so on" * 60
ROWS = [
  {"prompt": f"ask {n} {HOSTILE}", "answer_a": f"a{n} {HOSTILE}", "answer_b": f"b{n}{LONG}"}
  for n in range(1, PAIRS + 1)
]


class Judge:
  """A browser with the page, as one rater sees it."""

  def __init__(self, driver, server):
    self.driver, self.server = driver, server

  def open(self, name, width=390, theme="light"):
    """Opens the page anew, and begins under a name."""
    size = dict(width=width, height=844, deviceScaleFactor=1, mobile=width < 500)
    media = [{"name": "prefers-color-scheme", "value": theme}]
    self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    self.driver.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": width < 500})
    self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": media})
    self.driver.get(self.server.address)
    self.wait(lambda: any(map(self.shown, ("#welcome", "#judging", "#finished"))))
    self.run("sessionStorage.clear()")  # of the rater before
    self.driver.get(self.server.address)
    self.wait(lambda: self.shown("#welcome"))
    self.find("#name").send_keys(name)
    self.find("#name-form button").click()
    self.wait(lambda: self.shown("#judging"))
    return self

  def run(self, script, *arguments):
    return self.driver.execute_script(script, *arguments)

  def find(self, selector):
    return self.driver.find_element("css selector", selector)

  def shown(self, selector):
    return self.find(selector).is_displayed()

  def text(self, selector):
    return self.run("return document.querySelector(arguments[0]).textContent", selector)

  def press(self, key):
    """Presses a key on whatever has the focus."""
    self.driver.switch_to.active_element.send_keys(key)

  def tap(self, selector):
    """Touches an element's middle; the title before, or two touches of one place are a double."""
    for touched in ("#heading", selector):
      box = self.run(
        "return document.querySelector(arguments[0]).getBoundingClientRect().toJSON()", touched
      )
      point = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2}
      for kind, points in (("touchStart", [point]), ("touchEnd", [])):
        touch = {"type": kind, "touchPoints": points}
        self.driver.execute_cdp_cmd("Input.dispatchTouchEvent", touch)

  def vote(self, act, on):
    """Votes by an act, `press` of a key or `tap` on an element, and waits for the next pair."""
    before = self.text("#heading"), self.shown("#judging")
    act(on)
    self.wait(lambda: (self.text("#heading"), self.shown("#judging")) != before)

  def number(self):
    return int(re.match(r"ask (\d+) ", self.text("#prompt"))[1])

  def wait(self, until, seconds=20):
    end = time.monotonic() + seconds
    while not until():
      assert time.monotonic() < end, self.find("main").text
      time.sleep(0.03)


@pytest.fixture(scope="module")
def drivers(tmp_path_factory):
  if browser.find() is None:
    pytest.skip(browser.MISSING)
  two = [browser.start(tmp_path_factory.mktemp("downloads")) for _ in range(2)]
  yield two
  for driver in two:
    driver.quit()


@pytest.fixture(scope="module")
def server(tmp_path_factory, drivers):
  folder = tmp_path_factory.mktemp("server")
  server = feedback_server.Server(folder, folders.write(folder, "given.jsonl", ROWS))
  yield server
  server.kill()


@pytest.fixture
def judges(drivers, server):
  for driver in drivers:
    driver.get_log("browser")  # of an earlier test
  return [Judge(driver, server) for driver in drivers]


def votes(server, *raters):
  with store.opened(server.out / store.NAME) as opened:
    given = [vote for vote in voting.votes(opened) if vote.rater in raters]
  return [(vote.rater, vote.pair, vote.choice, vote.reason) for vote in given]


LEFT, RIGHT = "\ue012", "\ue014"  # the arrow keys


@pytest.mark.full
def test_two_raters_at_once_and_a_server_that_is_killed(judges, server):
  phone, desk = judges[0].open("Ann"), judges[1].open("Ben", 1280)
  expected = []
  for n in range(PAIRS):
    number = phone.number()
    assert desk.number() == number, "all raters judge in one order"
    if n == 4:
      server.kill()
      phone.tap(".bar [data-choice=left]")
      desk.press("1")
      for judge in judges:
        judge.wait(lambda judge=judge: "does not answer" in judge.text("#alert"))
        assert judge.text("#heading") == f"Pair 5 of {PAIRS}"
      assert len(votes(server, "Ann", "Ben")) == len(expected), "none of those before is lost"
      server.start()
      for judge in judges:
        judge.wait(lambda judge=judge: judge.text("#heading") == f"Pair 6 of {PAIRS}")
        assert not judge.shown("#alert")
    else:
      phone.vote(phone.tap, ".bar [data-choice=left]")
      desk.vote(desk.press, LEFT)
    expected += [(name, number, order.left(0, name, number), "") for name in ("Ann", "Ben")]
  assert sorted(votes(server, "Ann", "Ben")) == sorted(expected)
  for judge in judges:
    assert judge.shown("#finished") and f"all {PAIRS} pairs" in judge.text("#finished-text")


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_output_of_a_model_is_text_and_nothing_lies_beside_the_screen(judges, width, theme):
  page = judges[0].open(f"{width} {theme}", width, theme)
  assert "token" not in page.driver.current_url
  dark = page.run("return getComputedStyle(document.body).backgroundColor") == "rgb(17, 22, 28)"
  assert dark == (theme == "dark")
  sides = [page.text("#left"), page.text("#right")]
  assert any(HOSTILE in side for side in sides) and HOSTILE in page.text("#prompt")
  assert page.run("return document.querySelectorAll('main img, main script, main svg').length") == 0
  assert page.driver.title == "Which answer is better?"
  for choice in ("left", "tie", "right", "skip"):
    button = page.find(f".bar [data-choice={choice}]").rect
    assert button["width"] >= 44 and button["height"] >= 44, "large enough for a thumb"
  assert page.run("return document.documentElement.scrollWidth") == width
  page.driver.get(page.server.address.replace("/?", "/results?"))
  page.wait(lambda: page.shown("#gate"))
  page.find("#enter").click()
  page.wait(lambda: page.shown("#results"))
  assert page.run("return document.documentElement.scrollWidth") == width
  assert page.driver.get_log("browser") == []


def test_keys_reasons_and_undo(judges, server):
  page = judges[0].open("Cleo", 1280)
  first = page.number()
  assert page.driver.switch_to.active_element.get_attribute("id") == "heading"
  page.press("r")
  page.press("t s 1 2 u")  # written, and no votes
  assert page.text("#heading") == f"Pair 1 of {PAIRS}" and votes(server, "Cleo") == []
  page.press("\ue00c")  # Escape
  page.vote(page.press, "t")
  assert votes(server, "Cleo") == [("Cleo", first, "tie", "t s 1 2 u")]
  assert page.driver.switch_to.active_element.get_attribute("id") == "heading"
  assert page.text("#status") == "Tie." and page.find("#reason").get_attribute("value") == ""
  second = page.number()
  page.vote(page.press, RIGHT)
  page.vote(page.press, "u")
  assert page.number() == second and len(votes(server, "Cleo")) == 1
  assert "taken back" in page.text("#status")
  page.vote(lambda answer: page.find(answer).click(), "#right")  # a click on the answer itself
  other = {"a": "b", "b": "a"}[order.left(0, "Cleo", second)]
  assert votes(server, "Cleo")[-1] == ("Cleo", second, other, "")
  click = "document.querySelector('[data-choice=left]').dispatchEvent(new MouseEvent('click', {}))"
  page.run(click.replace("{}", "{detail: 2}"))  # the second of a double click
  assert (
    page.find("#judging").get_attribute("aria-busy") is None and len(votes(server, "Cleo")) == 2
  )
  page.find(".keys summary").click()
  page.find("#keys").click()
  page.find("#heading").click()
  page.run("document.getElementById('heading').focus()")
  page.press("1")
  page.find(".bar [data-choice=skip]").click()
  page.wait(lambda: len(votes(server, "Cleo")) == 3)
  assert votes(server, "Cleo")[-1][2] == "skip", "keys that are turned off are no votes"


def test_what_a_screen_reader_is_told(judges):
  page = judges[0].open("Dana", 1280)
  named = lambda selector: (page.find(selector).aria_role, page.find(selector).accessible_name)
  assert named(".bar") == ("group", "Your vote")
  assert named(".bar [data-choice=left]") == ("button", "Answer 1 is better")
  assert named(".bar [data-choice=tie]") == ("button", "Tie")
  assert named(".bar .undo") == ("button", "Undo")
  assert named("#reason") == ("textbox", "Reason for your next vote (optional)")
  assert named(".answer[data-choice=right]") == ("article", "Answer 2")
  assert named("#progress")[1] == "Pairs that you have judged"
  assert page.find("#status").aria_role == "status" and page.find("#alert").get_attribute("role")
  assert not page.find(".bar .undo").is_enabled(), "there is nothing to undo"


def test_results_are_hidden_until_asked_for_and_equal_the_command_line_s(judges, server):
  page = judges[0].open("Eve", 1280)
  for key in ("1", "1", "t", "s"):
    page.vote(page.press, key)
  page.find("header a").click()
  page.wait(lambda: page.shown("#gate"))
  assert not page.shown("#results") and page.text("#results") == ""
  page.find("#enter").click()
  page.wait(lambda: page.shown("#results"))
  found = jaxtune.vote_results(server.out)
  low, high = (f"{100 * bound:.0f}" for bound in found["interval"])
  shown = page.text("#results").replace("\xa0", " ")
  assert f"{100 * found['win_rate']:.0f} % win rate of a, 95 % interval {low} to {high} %" in shown
  assert f"{found['judged']} of {PAIRS} pairs judged" in shown and "A tie counts half" in shown
  rows = page.driver.find_elements("css selector", "tbody tr")
  (eve,) = [row.text.split() for row in rows if row.text.startswith("Eve")]
  assert eve[:2] == ["Eve", "4"] and eve[3] == eve[5] == "1" and eve[-2:] == ["100", "%"]


def test_a_wrong_address_and_a_vote_of_another_window_are_said(judges, server):
  page, other = judges[0].open("Fay", 1280), judges[1].open("Fay", 1280)
  page.vote(page.press, "t")
  other.press("1")  # on the pair that is judged by now
  other.wait(lambda: "already" in other.text("#alert"))
  assert other.text("#heading") == f"Pair 2 of {PAIRS}" and len(votes(server, "Fay")) == 1
  page.driver.delete_all_cookies()
  page.driver.get(server.address.partition("?")[0])
  assert "secret token is missing" in page.find("body").text
