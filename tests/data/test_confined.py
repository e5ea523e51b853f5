"""The process that templates render in: its limits, and that nothing of it shows otherwise."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from jaxtune.data import confined, templates
from jaxtune.data.templates import sandbox
from jaxtune.errors import UserError

LOOPS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
TOO_LONG = "the template took more than 0.3 seconds of computing, and was stopped"
TOO_LARGE = "the template needed more than 64 MiB of memory, and was stopped"
TOO_MUCH = r"the template wrote more than 10,\d+ bytes for one row"
ROW = [{"n": 1}]
HOSTILE = [
  (LOOPS, TOO_LONG),
  ("{{ 'a' * n ** 9 }}", TOO_LARGE),
  ("{% for i in range(n ** 4) %}{{ i }}{% endfor %}", TOO_MUCH),
]


@pytest.fixture
def short(monkeypatch):
  """Limits that are soon reached."""
  monkeypatch.setattr(confined, "SECONDS", 0.3)
  monkeypatch.setattr(confined, "MEMORY", 2**26)
  monkeypatch.setattr(confined, "OUTPUT", 10_000)


def render(template, rows):
  form = templates.choose([*rows[0]], where="f.jsonl", template=template, answer="n")
  where = [f"f.jsonl:{line}" for line in range(1, len(rows) + 1)]
  return [one.prompt for one in templates.render(form, rows, where)]


@pytest.mark.parametrize(("source", "message"), HOSTILE)
def test_what_a_row_s_rendering_may_take(short, source, message):
  rows = [{"n": 1}, {"n": 10}, {"n": 1}]
  template = "{% if n > 1 %}" + source + "{% endif %}"
  with pytest.raises(UserError, match=f"^f.jsonl:2: {message}$"):
    render(template, rows)
  assert render(template, rows[:1]) == [""]  # in a new process


def test_a_single_prompt_has_the_same_limits(short):
  with pytest.raises(UserError, match=f"^row 0: {TOO_MUCH}$"):
    templates.render_prompts([{"n": 10}], HOSTILE[-1][0])


def test_what_doubles_a_text_or_computes_while_it_is_compiled(short):
  double = "{% set s.x = s.x ~ s.x %}"
  with pytest.raises(UserError, match=TOO_LARGE):
    render("{% set s = namespace(x='ab') %}{% for i in range(40) %}" + double + "{% endfor %}", ROW)
  with pytest.raises(UserError, match=TOO_LONG + ": '{{ 7"):
    sandbox.variables("{{ 7" + " ** 99" * 9 + " }}")


@pytest.mark.parametrize(
  ("source", "message"),
  [
    ("{{ " + "(" * 30_000, "not valid Jinja: "),
    ("{% for a in b %}" * 30 + "x" + "{% endfor %}" * 30, "too many statically nested blocks"),
    ("{{ " + "9" * 5000 + " }}", "not valid Jinja: Exceeds the limit"),
    ("{{ x | nothing }}", "not valid Jinja: No filter named 'nothing'"),
    ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "f.jsonl:1: the template failed: maximum"),
    ("{{ '%s%s' | format(1) }}", "f.jsonl:1: the template failed: not enough arguments"),
    ("{% for i in 3 %}{% endfor %}", "f.jsonl:1: the template failed: .* not iterable"),
    ("{{ 1 // 0 }}", "division"),
    ("{% include 'x' %}", "f.jsonl:1: the template failed: no loader"),
    ("{{ '\\ud800' }}", "half a surrogate pair"),
  ],
)
def test_errors_of_any_kind_are_one_line(source, message):
  with pytest.raises(UserError, match=message) as error:
    render(source, ROW)
  assert "\n" not in str(error.value)


@pytest.mark.parametrize(
  "source",
  [
    LOOPS, "{{ x * 9 }}", "{{ x ** 9 }}", "{{ x % 9 }}", "{{ x | center(9) }}", "{{ x.center(9) }}",
    "{{ x | indent(9) }}", "{{ x | replace('a', 'b') }}", "{% set y = x ~ x %}{{ y }}",
    "{{ x | join('" + "y" * 99 + "') }}", "{{ x | join(y) }}", "{{ x | join('a') | join('b') }}",
    "{{ (x ~ x) | join('a') }}", "{{ x | trim(y) }}", "{{ x | format(y) }}", "{{ range(9) }}",
    "{% macro m() %}{% endmacro %}", "{% include x %}", "{% filter upper %}{% endfilter %}",
    "{{ [[[x] | string] | string] | string }}", "{{ [[x] ~ ''] ~ '' }}",
    "{{ [(x ~ [y])[1:]] ~ x }}", "{{ x | join(*y) }}", "{{ x | join(**y) }}", "{{ x | d(*y) }}",
    "{{ x }}" * 500, "x" * 30_000, "{{ x | spans(y) }}", "{% with %}{% endwith %}",
  ],
)  # fmt: skip
def test_what_could_reach_a_limit_is_not_plain(source):
  assert not sandbox.is_plain(source)


def test_what_only_prints_cells_is_plain():
  for source in (
    templates.INSTRUCTION, "{{ x }}", "{{ answer_choices[label - 1] }}", "{{ x[:200] | trim }}",
    "{% if x is defined and y == 'a' %}{{ x.y | lower }}{% else %}{{ y ~ 1 }}{% endif %}",
    "{{ answer_choices | join(', ') }}", "{{ ['no', x.y, z[0]][label] }}",
  ):  # fmt: skip
    assert sandbox.is_plain(source), source


def test_results_are_those_of_this_process():
  rows = [{"n": n, "text": f"größe {n}\n漢字 '\"\\ \x00", "list": ["a", n]} for n in range(600)]
  source = "{% for i in list %}{{ [text, i] | choice }}{{ loop.index }}{% endfor %}{{ row.n }}\n"
  expected = [sandbox._compiled(source)(row) for row in rows]
  assert not sandbox.is_plain(source) and render(source, rows) == expected
  with ThreadPoolExecutor(4) as pool:
    assert list(pool.map(lambda start: render(source, rows[start::4]), range(4))) == [
      expected[start::4] for start in range(4)
    ]


def test_a_row_that_cannot_be_sent_is_an_error_of_its_own():
  deep = []
  for _ in range(100_000):
    deep = [deep]
  with pytest.raises(UserError, match="f.jsonl:2: the template failed: maximum recursion"):
    render("{{ n * 2 }}", [{"n": 1}, {"n": 1, "deep": deep}])


def test_an_answer_to_a_call_that_was_interrupted_is_not_taken_for_the_next(monkeypatch):
  assert render("{{ n * 2 }}", [{"n": 1}]) == ["2"]
  pipe = confined._running.pipe

  def interrupted(*args):
    raise KeyboardInterrupt

  monkeypatch.setattr(pipe, "poll", interrupted)
  with pytest.raises(KeyboardInterrupt):
    render("{{ n * 2 }}", [{"n": 2}])
  assert render("{{ n * 2 }}", [{"n": 3}]) == ["6"]


def test_memory_is_watched_where_the_kernel_does_not_limit_it(monkeypatch):
  monkeypatch.setattr(confined, "_WATCHED", True)
  monkeypatch.setattr(confined, "MEMORY", 2**20)
  with pytest.raises(UserError, match="f.jsonl:1: the template needed more than 1 MiB"):
    render("{% if n %}" + LOOPS + "{% endif %}", [{"n": 1}])


def running(process):
  state = subprocess.run(["ps", "-o", "stat=", "-p", str(process)], capture_output=True, text=True)
  return state.stdout.strip()[:1] not in ("", "Z")


@pytest.mark.parametrize("source", ["{{ 2 * n }}", LOOPS])
def test_it_ends_with_the_process_that_asks_and_imports_nothing_from_the_folder(tmp_path, source):
  (tmp_path / "jinja2.py").write_text("open('imported', 'w')")
  code = f"""
    import threading, time
    from jaxtune.data import confined
    from jaxtune.data.templates import sandbox
    confined.SECONDS = 1.0
    print(confined.one(sandbox._rendering, ({{"n": 4}}, {{}}), "{{{{ 2 * n }}}}"), flush=True)
    print(confined._running.process.pid, flush=True)
    confined.one(sandbox._rendering, ({{"n": 4}}, {{}}), {source!r})
    time.sleep(60)
  """
  parent = subprocess.Popen(
    [sys.executable, "-P", "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, cwd=tmp_path,
    stderr=subprocess.PIPE, env=os.environ | {"PYTHONPATH": os.getcwd()}, text=True,
  )  # fmt: skip
  assert parent.stdout.readline() == "8\n"
  worker = int(parent.stdout.readline())
  assert running(worker)
  parent.send_signal(signal.SIGKILL)
  parent.wait()
  parent.stdout.close()
  for _ in range(300):
    if not running(worker):
      break
    time.sleep(0.1)
  assert not running(worker) and not (tmp_path / "imported").exists()
  assert parent.stderr.read() == ""
  parent.stderr.close()
