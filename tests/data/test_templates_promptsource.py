"""Promptsource's files: real syntax, against plain Jinja, and what a file may not do."""

from __future__ import annotations

import itertools
import json

import jinja2
import pytest

from jaxtune import data
from jaxtune.data import confined, templates
from jaxtune.data.templates import promptsource, sandbox
from jaxtune.errors import UserError
from jaxtune.objectives import sft

# As promptsource dumps its objects: ids as keys, folded scalars, metadata of several versions.
FILE = """\
dataset: town_news
subset: en
templates:
  0f0f7f4e-1c1b-4c4e-9d0e-6f7a2e9a4c01: !Template
    answer_choices:
    - 'Yes'
    - 'No'
    answer_choices_key: null
    id: 0f0f7f4e-1c1b-4c4e-9d0e-6f7a2e9a4c01
    jinja: 'Is this item about sport?


      {{text}}

      |||

      {{ answer_choices [label] }}'
    metadata: !TemplateMetadata
      _do_eval: false
      _do_train: true
      choices_in_prompt: null
      metrics: []
      original_task: null
    name: old list
    reference: ''
  1b9ad1a0-72b1-4a3e-8c3c-7b7f0e5d2a02: !Template
    answer_choices: Town ||| Sport|||{{ more | join(" ||| ") }}
    id: 1b9ad1a0-72b1-4a3e-8c3c-7b7f0e5d2a02
    jinja: "{% set ways = ['Sort this', 'Where does this go'] %}{{ text }} \\n\\n{{ ways |\\
      \\ choice }}: {{ answer_choices | join(\\", \\") }} ||| \\n{{answer_choices[label] }}"
    metadata: !TemplateMetadata
      choices_in_prompt: true
      languages:
      - en
      metrics:
      - Accuracy
      - Squad
      - Other
      original_task: true
    name: Sort it (choices)
    reference: a person
  2c8be2b1-83c2-4b4f-9d4d-8c8a1f6e3b03: !Template
    answer_choices: null
    id: 2c8be2b1-83c2-4b4f-9d4d-8c8a1f6e3b03
    jinja: '{% if answers.text != [] %}

      Ask about: {{ answers.text | most_frequent | choice | highlight }}

      {% for a, b in zip(answers.text, answers.text) %}{{ a }}{{ b }};{% endfor %} |||

      {{ question | replace("_", " ") }}

      {% endif %}'
    metadata: !TemplateMetadata
      metrics:
      - ROUGE
    name: ask
    reference: ''
  3d7cf3c2-94d3-4c5a-8e5e-9d9b2a7f4c04: !Template
    answer_choices: null
    id: 3d7cf3c2-94d3-4c5a-8e5e-9d9b2a7f4c04
    jinja: '{{ text }} ||| {{ question }} ||| {{ more[0] }}'
    metadata: !TemplateMetadata {}
    name: two targets
    reference: ''
  4e6da4d3-05e4-4d6b-9f6f-0e0c3b8a5d05: !Template
    answer_choices: good ||| bad
    id: 4e6da4d3-05e4-4d6b-9f6f-0e0c3b8a5d05
    jinja: '{{ text }} Not a ||| {{ answer_choices [1-label] }} thing.'
    metadata: !TemplateMetadata {}
    name: choice and more
    reference: ''
"""
NAMES = ("old list", "Sort it (choices)", "ask", "two targets", "choice and more")
ROW = {
  "text": "The match was {{ drawn }} 3|||3.", "label": 1, "more": ["Other|||s"],
  "question": "Who_won?", "answers": {"text": ["b", "a", "b"], "start": [0, 1, 2]},
}  # fmt: skip


@pytest.fixture
def path(write):
  return write("templates.yaml", FILE)


def texts(rows, **options):
  columns = list(dict.fromkeys(column for row in rows for column in row))
  form = templates.choose(columns, where="f.jsonl", **options)
  return templates.render(form, rows, [f"f.jsonl:{n}" for n in range(1, len(rows) + 1)])


def plain(jinja: str, row: dict) -> list[str]:
  """Renders as promptsource documents it, in plain Jinja, the row's own bars out of the way."""
  row = json.loads(json.dumps(row).replace("|||", "BARS"))
  environment = jinja2.Environment()
  environment.globals["zip"] = zip
  environment.filters |= {
    "choice": lambda items: items[0], "most_frequent": lambda items: ["b"], "highlight": str,
  }  # fmt: skip
  return [
    part.strip().replace("BARS", "|||")
    for part in environment.from_string(jinja).render(**row).split("|||")
  ]


@pytest.mark.parametrize(
  ("name", "choices"),
  [
    ("old list", ["Yes", "No"]),
    ("Sort it (choices)", ["Town", "Sport", "Other|||s"]),
    ("ask", []),
    ("two targets", []),
    ("choice and more", []),
  ],
)
def test_renders_as_plain_jinja(path, name, choices):
  one = texts([ROW], template=f"{path}:{name}")[0]
  entries = promptsource.parse(FILE, path)["templates"].values()
  entry = next(entry for entry in entries if entry["name"] == name)
  seen = choices or ["good", "bad"]
  prompt, *answers = plain(entry["jinja"], ROW | {"answer_choices": seen})
  if name.startswith("Sort it"):  # One of the two wordings.
    prompt = prompt.replace(
      "Sort this", "Where does this go" if "Where" in one.prompt else "Sort this"
    )
  assert (one.prompt, one.answers) == (prompt + "\n", answers)
  assert list(one.choices) == choices


def test_what_is_read_of_a_file(path):
  found = [templates.resolve(f"{path}:{name}") for name in NAMES]
  assert found[1].columns == {"label", "more", "text"}
  assert found[1].metrics == ("accuracy", "squad_exact_match", "squad_f1", "Other")
  assert found[2].metrics == ("rouge1", "rouge2", "rougeL")
  assert {one.task for one in found} == {"town_news"}
  assert found[0].name == f"{path}:old list" and found[0].clarity is None


def test_choices_are_drawn_by_the_row(path):
  rows = [ROW | {"text": f"item {n}"} for n in range(200)]
  first, again = (texts(rows, template=f"{path}:Sort it (choices)") for _ in range(2))
  assert first == again
  share = sum("Sort this" in one.prompt for one in first) / len(rows)
  assert 0.35 < share < 0.65
  draws = texts(rows, template="{{ [0, 1] | random }}{{ [0, 1] | choice }}\n", answer="text")
  assert len({one.prompt for one in draws}) == 4
  reordered = [dict(reversed(row.items())) for row in rows]
  assert [one.prompt for one in texts(reordered, template=f"{path}:Sort it (choices)")] == [
    one.prompt for one in first
  ]


def test_most_frequent():
  assert sandbox.most_frequent(["b", "a", "c", "a", "b"]) == ["b", "a"]
  assert sandbox.most_frequent([]) == []


def test_a_row_that_a_template_leaves_out(path, tokenizer, write):
  rows = [ROW, ROW | {"answers": {"text": [], "start": []}}]
  options = {"template": f"{path}:ask"}
  assert texts(rows, **options)[1][:2] == ("", [])
  with pytest.raises(UserError, match="f.jsonl:2: no token to train on"):
    data.load(tokenizer, sft, data.DataOptions(train=write("f.jsonl", rows), **options))
  made = data.load(
    tokenizer, sft, data.DataOptions(train=write("f.jsonl", rows), no_target="skip", **options)
  )
  assert len(made.train.rows) == 1


def test_prompts_without_answers(path):
  bare = {key: ROW[key] for key in ("text", "more")}
  for name in ("old list", "Sort it (choices)", "two targets"):
    trained = texts([ROW], template=f"{path}:{name}")[0].prompt
    made = templates.render_prompts([bare], f"{path}:{name}")[0]
    assert made.split("\n")[0] == trained.split("\n")[0] and made.endswith("\n")
  assert templates.render_prompts([ROW], f"{path}:ask") == [
    texts([ROW], template=f"{path}:ask")[0].prompt
  ]
  with pytest.raises(UserError, match="row 0: column 'question' is missing"):
    templates.render_prompts([{"answers": ROW["answers"]}], f"{path}:ask")


BROKEN = [
  (
    "!TemplateMetadata {}",
    "!!python/object/apply:os.system [id]",
    r":\d+: the tag '.*os.system' is refused",
  ),
  ("!TemplateMetadata {}", "!TemplateMetadataa {}", r":\d+: the tag '!TemplateMetadataa' is refus"),
  ("!TemplateMetadata {}", "!Template 3", r":\d+: expected a mapping node"),
  ("!TemplateMetadata {}", "[1", r":\d+: expected ',' or ']'"),
  ("!TemplateMetadata {}", "\x07", "not readable as YAML"),
  ("    jinja: '{{ text }} Not", "    ginja: '{{ text }} Not", "'choice and more'. has no jinja"),
  ("    name: choice and more\n", "", "template 4e6da4d3.* has no name"),
  ("{{ text }} Not a", "{{ text } Not a", ":choice and more: the template .* is not valid Jinja"),
  ("{{ text }} Not a", "{{ tetx }} Not a", "'tetx' is missing; .*did you mean 'text'"),
  ("{{ text }} Not a", "{{ text.__class__ }}", "f.jsonl:1: the template is refused"),
  ("{{ text }} Not a", "{{ more.append(1) }}", "f.jsonl:1: the template is refused"),
  ("Not a |||", "Not a", "f.jsonl:1: the template gives no '...' between prompt and answer"),
  ("answer_choices [1-label]", "answer_choices [label+1]", "f.jsonl:1: label 2 is outside"),
  ("{{ answer_choices [1-label] }} thing", "{{ answers.txt }}", "f.jsonl:1: the template failed"),
  ("good ||| bad", "[yes, no]", r"answer_choices is \[True, False\]"),
]


@pytest.mark.parametrize(("old", "new", "message"), BROKEN)
def test_refused(write, old, new, message):
  assert old in FILE
  # From the end, where "choice and more" stands.
  broken = new.join(FILE.rsplit(old, 1))
  with pytest.raises(UserError, match=message):
    texts([ROW], template=write("templates.yaml", broken) + ":choice and more")


def test_files_that_are_no_template_files(write, tmp_path):
  for content, message in (
    ("dataset: a\ntemplates: english\n", "templates is 'english', expected !Template entries"),
    ("- 1\n", "expected a mapping with task and a list of templates"),
    ("", "expected a mapping with task and a list of templates"),
    ("when: 2024-99-99\n", "not readable as YAML"),
    (b"\xff\xfe\x00", "bad.yaml: not UTF-8 text"),
  ):
    with pytest.raises(UserError, match=message):
      templates.resolve(write("bad.yaml", content) + ":x")
  with pytest.raises(UserError, match="none.yaml: No such file"):
    templates.resolve(f"{tmp_path}/none.yaml:x")


LETTERS = "abcdefghi"
LAUGHS = "a: &a [x, x]\n" + "".join(
  f"{new}: &{new} [{', '.join(['*' + old] * 30)}]\n" for old, new in itertools.pairwise(LETTERS)
)
MERGES = "a: &a {x: 1}\n" + "".join(
  f"{new}: &{new} {{<<: [{', '.join(['*' + old] * 30)}]}}\n"
  for old, new in itertools.pairwise(LETTERS)
)
ONE = "task: t\ntemplates:\n- {name: x, prompt: p, answer: b, metrics: %s}\n"


@pytest.mark.parametrize(
  ("content", "message"),
  [
    (LAUGHS, "expected a mapping with task"),
    (LAUGHS + "templates: *i", "unknown key 'a'"),
    (LAUGHS + "task: *i", "expected a mapping with task"),
    (
      LAUGHS + "templates: {1: {name: x, jinja: a, metadata: {metrics: *i}}}",
      "metrics is .*, expected a list of text",
    ),
    (MERGES, "expected a mapping|the template took more than 0.3 seconds|the template needed more"),
    ("&a [*a]", "expected a mapping with task"),
    ("task: t\ntemplates: &a [*a]", r"template 1 is \[\[.*, expected name, clarity and prompt"),
    ("[" * 900, "YAML nested too deeply"),
    ("task: " + "x" * 1_100_000, "more than 1,000,000 bytes"),
    ("task: " + "9" * 9999, "not readable as YAML: Exceeds the limit"),
    ("{[1]: 2}", ":1: found unhashable key"),
    ("a: 1\n---\nb: 2", ":2: but found another document"),
    ("a: 1:" + "1:" * 40_000 + "1", "expected a mapping|the template took more than 0.3 seconds"),
    ("a: !!binary 'é'", ":1: failed to convert base64"),
    (ONE % "3", "metrics is 3, expected a list of text"),
    (ONE.replace("p,", '"\\ud800",') % "[]", "half a surrogate pair|half of a surrogate pair"),
    (ONE.replace("p,", "'{{ " + "(" * 3000 + "',") % "[]", ":x: the template .* not valid Jinja"),
  ],
)
def test_files_made_to_harm(write, monkeypatch, content, message):
  monkeypatch.setattr(confined, "SECONDS", 0.3)
  with pytest.raises(UserError, match=rf"bad.yaml.*({message})") as error:
    templates.resolve(write("bad.yaml", content) + ":x")
  assert "\n" not in str(error.value)


def test_nothing_is_run_when_a_file_is_read(write, tmp_path):
  made = tmp_path / "made"
  call = (
    f"!!python/object/apply:pathlib.Path.touch\n    - !!python/object/apply:pathlib.Path ['{made}']"
  )
  with pytest.raises(UserError, match="bad.yaml:2: the tag .* is refused"):
    templates.resolve(write("bad.yaml", f"templates:\n  a: {call}\n") + ":a")
  assert not made.exists()
