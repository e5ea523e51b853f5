"""Rows to text."""

from __future__ import annotations

import datetime

import pytest

from jaxtune.data import templates
from jaxtune.errors import UserError


def texts(rows, **options):
  columns = list(dict.fromkeys(column for row in rows for column in row))
  form = templates.choose(columns, where="f.jsonl", **options)
  return templates.render(form, rows, [f"f.jsonl:{n}" for n in range(1, len(rows) + 1)])


def test_known_formats():
  with_input, without = texts(
    [
      {"instruction": "Add.", "input": "1 2", "output": "3"},
      {"instruction": "Greet.", "output": "Hi"},
    ]
  )
  assert "Add.\nInput: 1 2\nResponse:\n" in with_input.prompt
  assert "Greet.\nResponse:\n" in without.prompt
  assert with_input.answers == ["3"]
  assert texts([{"prompt": "a", "completion": 7}])[0][:2] == ("a", ["7"])
  assert texts([{"text": "a"}])[0][:2] == (None, ["a"])


@pytest.mark.parametrize("answers", [("output",), ("completion",), ("output", "completion")])
def test_a_row_of_the_training_data_has_the_prompt_of_training(answers):
  row = {"instruction": "Add.", "prompt": "1 + 2"} | dict.fromkeys(answers, "3")
  assert templates.render_prompts([row]) == [texts([row])[0].prompt]


def test_template_answers_and_text():
  row = {"a": "x", "refs": ["p", "q"], "my label": 1}
  one = texts([row], template="{{ a }} {{ row['my label'] }}\n", answer="refs")[0]
  assert one[:2] == ("x 1\n", ["p", "q"])
  assert texts([row], template="{{ a }}", answer="{{ refs | join('+') }}")[0].answers == ["p+q"]
  assert texts([row], template="{{ a }}", answer=("ref", "refs"))[0].answers == ["p", "q"]
  assert texts([row], text="{{ a }}!")[0][:2] == (None, ["x!"])
  assert texts([{"a": None}, {"a": ["u"]}, {"a": "w"}], text="a")[2].answers == ["w"]


def test_optional_columns_and_globals():
  source = "{% for i in range(2) %}{{ i }}{% endfor %}{{ b | default('-') }}"
  assert texts([{"a": "x"}], template=source, answer="a")[0].prompt == "01-"


REFUSED = [
  ({"template": "{{ tilte }}", "answer": "body"}, "f.jsonl: column 'tilte' .*did you mean 'title'"),
  ({"template": "{{ title }}", "answer": "boddy"}, r"f.jsonl: column 'boddy' .*title, body"),
  ({"template": "{{ title }"}, "data.answer is missing"),
  ({"template": "{{ title", "answer": "body"}, "not valid Jinja"),
  ({"answer": "body"}, "without data.template"),
  ({"text": "body", "answer": "body"}, "leave out"),
  ({}, "no known format in the columns title, body"),
  ({"template": "{{ ''.__class__.__mro__ }}", "answer": "body"}, "f.jsonl:1: .*refused"),
  ({"template": "{{ title.__init__.__globals__ }}", "answer": "body"}, "f.jsonl:1: .*refused"),
  ({"template": "{{ row.update({}) }}", "answer": "body"}, "f.jsonl:1: .*refused"),
  ({"template": "{{ title / 2 }}", "answer": "body"}, "f.jsonl:1: the template failed"),
  ({"template": "{{ title }}", "answer": ()}, "data.answer is empty: expected a column, Jinja or"),
  *(
    ({"template": "{{ a }}", "answer": "body", "rename": {"a": source}}, "rename of 'a' is emp")
    for source in ([], [[]])
  ),
]


@pytest.mark.parametrize(("options", "message"), REFUSED)
def test_refused(options, message):
  with pytest.raises(UserError, match=message):
    texts([{"title": "x", "body": "y"}], **options)


def test_a_row_without_a_column_is_named():
  rows = [{"title": "x", "body": "y"}, {"titel": "x", "body": "y"}, {"title": None, "body": "y"}]
  options = {"template": "{{ title }}", "answer": "body"}
  with pytest.raises(UserError, match="f.jsonl:2: column 'title' is missing; .*mean 'titel'"):
    texts(rows, **options)
  with pytest.raises(UserError, match="f.jsonl:2: column 'title' holds null, expected a value$"):
    texts([rows[0], rows[2]], **options)
  with pytest.raises(UserError, match="f.jsonl:2: column 'output' is missing"):
    texts([{"instruction": "a", "output": "b"}, {"instruction": "a"}])


NO_TEXT = [float("nan"), float("inf"), True, {"a": 1}, ["a", {}], b"x"]


@pytest.mark.parametrize("cell", NO_TEXT, ids=str)
@pytest.mark.parametrize("column", ["title", "body"])
def test_a_cell_that_is_no_text_is_named(column, cell):
  row = {"title": "x", "body": "y"} | {column: [cell] if column == "body" else cell}
  with pytest.raises(UserError, match=f"f.jsonl:1: column '{column}' holds .*expected text or a"):
    texts([row], template="{{ title }}", answer="body")
  (one,) = texts([row], template=f"{{{{ {column} | string }}}}", answer="{{ 'a' }}")
  assert one.prompt == str(row[column]), "Jinja may make a text of it"


@pytest.mark.parametrize("options", [{}, {"text": "text"}])
def test_plain_text_is_one_text(options):
  with pytest.raises(UserError, match=r"f.jsonl:1: column 'text' holds \['a', 'b'\] .list., exp"):
    texts([{"text": ["a", "b"]}], **options)


def test_numbers_and_dates_are_text():
  row = {"a": 3, "b": 0.5, "c": datetime.date(2020, 1, 2)}
  assert texts([row], template="{{ a }} {{ b }} {{ c }}", answer="b")[0][:2] == (
    "3 0.5 2020-01-02",
    ["0.5"],
  )


def test_what_a_template_prints_is_text():
  for source, says in (
    ("{{ a == 'x' }}", "the template prints True .bool., expected text"),
    ("{{ [a, a] }}", r"the template prints \['x', 'x'\]"),
    ("{{ a ~ '\\ud800' }}", "holds half a surrogate pair"),
  ):
    with pytest.raises(UserError, match=f"f.jsonl:1: .*{says}"):
      texts([{"a": "x"}], template=source, answer="a")
  with pytest.raises(UserError, match="f.jsonl:1: one of the answer choices holds half"):
    texts([{"a": "x"}], template="{{ a }}", answer="a", choices=["x", "\ud800"])


def test_the_hash_is_of_the_format():
  one, same, other = (
    templates.choose(["a", "b"], where="f", template=template, answer="b")
    for template in ("{{a}}", "{{a}}", "{{a}} ")
  )
  assert one.sha256 == same.sha256 != other.sha256
