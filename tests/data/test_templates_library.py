"""The library of templates: what it promises of every task, and how rows get into it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from jinja2 import Environment, meta

from jaxtune import data, metrics
from jaxtune.data import sources, templates
from jaxtune.data.templates import library
from jaxtune.errors import UserError
from jaxtune.objectives import sft

SHARED = Path(__file__).parents[3] / "shared/data"
LIBRARY = templates.bundled()
NAMES = [template.name for template in LIBRARY]
TASKS = sorted({template.task for template in LIBRARY})
# A row for each task, and the answers that its templates must give.
ROWS = {
  "data_to_text": ({"data": "name : Aida", "reference": ["SECRET", "B"]}, ["SECRET", "B"]),
  "ner": (
    {"tokens": ["Ann", "met", "Bo", "Li"], "ner_tags": ["B-SECRET", "O", "B-y", "I-y"]},
    ["Ann: SECRET; Bo Li: y"],
  ),
  "nli": ({"premise": "p", "hypothesis": "h", "label": 1}, ["maybe"]),
  "qa": ({"context": "c", "question": "q", "answers": {"text": ["SECRET", "b"]}}, ["SECRET", "b"]),
  "review_generation": ({"stars": 4, "title": "t", "text": "SECRET"}, ["SECRET"]),
  "sentiment": ({"sentence": "s", "label": "1"}, ["positive"]),
  "star_rating": ({"text": "r", "stars": 4}, ["4"]),
  "summarisation": ({"article": "a", "summary": "SECRET"}, ["SECRET"]),
  "topic": ({"text": "t", "label": "Sports"}, ["sports"]),
  "translation": (
    {"source": "s", "target": "SECRET", "source_language": "Dutch", "target_language": "Thai"},
    ["SECRET"],
  ),
}  # fmt: skip


def texts(rows, **options):
  columns = list(dict.fromkeys(column for row in rows for column in row))
  form = templates.choose(columns, where="f.jsonl", **options)
  return templates.render(form, rows, [f"f.jsonl:{n}" for n in range(1, len(rows) + 1)])


def reads(jinja):
  """The variables of a template, also those that may be missing."""
  return meta.find_undeclared_variables(Environment().parse(jinja))


def test_what_every_template_has():
  assert set(TASKS) == set(ROWS)
  assert len(set(NAMES)) == len(NAMES)
  for template in LIBRARY:
    assert template.clarity in library.CLARITY
    assert template.metrics
    metrics.check(template.metrics)
    assert templates.resolve(template.name) == template
    assert template.prompt.endswith("\n") and not template.prompt.endswith("\n\n")


@pytest.mark.parametrize("task", TASKS)
def test_templates_of_a_task_differ_in_wording_alone(task):
  row, answers = ROWS[task]
  mine = [one for one in LIBRARY if one.task == task]
  assert {one.clarity for one in mine} == set(library.CLARITY)
  assert {one.name for one in mine} >= {f"{task}/{clarity}" for clarity in library.CLARITY}
  for key in ("columns", "answer_choices", "metrics"):
    assert all(getattr(one, key) == getattr(mine[0], key) for one in mine)
  examples = texts([row], template=[one.name for one in mine])
  assert [one.answers for one in examples] == [answers] * len(mine)
  assert all(tuple(one.choices) == mine[0].answer_choices for one in examples)
  assert len({one.prompt for one in examples}) == len(mine)
  shown = [reads(one.prompt) & set(row) for one in mine]
  assert all(columns == shown[0] for columns in shown)
  hidden = set(row) - shown[0]
  assert len(hidden) == 1 and "SECRET" not in "".join(one.prompt for one in examples)


def test_only_optional_columns_may_be_missing():
  row = {"text": "Fine.", "stars": 4}
  for name in ("vague", "specific", "context", "guess"):
    bare, titled = texts([row, row | {"title": "Good"}], template=f"star_rating/{name}")
    assert "Good" not in bare.prompt and "Good\n" in titled.prompt
    assert bare.prompt.count("\n") < titled.prompt.count("\n")
  with_types = {"tokens": ["A"], "ner_tags": ["O"]}
  plain, typed = texts([with_types, with_types | {"entity_types": "a, b"}], template="ner/context")
  assert "a, b" not in plain.prompt and "a, b" in typed.prompt
  assert plain.answers == ["none"]


def test_clarity_says_what_the_choices_are():
  vague, specific, context = texts(
    [{"sentence": "Nice.", "label": 0}], template=[f"sentiment/{c}" for c in library.CLARITY]
  )
  assert "negative" not in vague.prompt
  assert "negative or positive" in specific.prompt
  assert len(context.prompt) > len(specific.prompt) > len(vague.prompt)


def test_other_choices():
  row = {"sentence": "Well.", "label": 1}
  choices = ("bad", "mixed", "good")
  one = texts([row], template="sentiment/specific", choices=choices)[0]
  assert one.answers == ["mixed"] and tuple(one.choices) == choices
  assert "bad or mixed or good" in one.prompt
  own = {"template": "{{ sentence }}\n", "answer": "{{ answer_choices[label] }}"}
  assert texts([row], choices=choices, **own)[0].answers == ["mixed"]
  with pytest.raises(UserError, match="reads answer_choices, and has none: set data.choices"):
    texts([row], **own)
  two = texts([ROWS["nli"][0]], template="nli/context", choices=("yes", "no"))[0]
  assert two.answers == ["no"] and "maybe" not in two.prompt


def test_rename():
  rows = [{"phrase": "Nice.", "label": "2", "a": "x", "b": None, "c": "y"}]
  mapping = {"sentence": ("text", "phrase"), "label": "{{ label | int - 1 }}"}
  one = texts(rows, template="sentiment/vague", rename=mapping)[0]
  assert one.prompt.startswith("Nice.\n") and one.answers == ["positive"]
  assert one.row is rows[0]
  gathered = {"summary": ("summary", ("a", "b", "c")), "article": "phrase"}
  form = templates.choose(list(rows[0]), where="f", template="summarisation/vague", rename=gathered)
  assert templates.render(form, rows, ["f:1"])[0].answers == ["x", "y"]
  constant = {"source": "phrase", "target": "c", "source_language": "{{ 'English' }}"}
  with pytest.raises(UserError, match="column 'target_language' is missing.*data.rename="):
    texts(rows, template="translation/vague", rename=constant)
  constant["target_language"] = "{{ 'German' }}"
  assert texts(rows, template="translation/vague", rename=constant)[0].prompt == (
    "English: Nice.\nGerman:\n"
  )
  with pytest.raises(
    UserError, match="data.rename of 'label': column 'lable' .*did you mean 'label"
  ):
    texts(rows, template="sentiment/vague", rename={"sentence": "phrase", "label": "lable"})


def test_several_templates_give_several_examples_a_row():
  rows = [{"sentence": f"s{n}", "label": n % 2} for n in range(3)]
  names = ("sentiment/vague", "{{ sentence }}?\n", "sentiment/context")
  options = {"template": names, "answer": "label"}
  with pytest.raises(UserError, match="leave out data.answer"):
    texts(rows, template=names[:1], answer="label")
  examples = texts(rows, **options)
  assert [one.row for one in examples] == [row for row in rows for _ in names]
  assert [one.answers[0] for one in examples[:3]] == ["negative", "0", "negative"]
  for k, name in enumerate(names):
    alone = texts(rows, template=name, answer="label" if k == 1 else None)
    assert alone == examples[k::3]
  assert templates.variants([one.row for one in examples]).tolist() == [
    [0, 1, 2], [3, 4, 5], [6, 7, 8],
  ]  # fmt: skip


def test_variants_of_rows_that_lost_some():
  one, two, same = {"a": 1}, {"a": 2}, {"a": 2}  # equal rows are two rows
  found = templates.variants([one, one, one, two, same, same])
  assert found.dtype == np.int64
  assert found.tolist() == [[0, 1, 2], [3, 3, 3], [4, 5, 4]]
  assert templates.variants([]).shape == (0, 1)


@pytest.mark.parametrize("name", NAMES)
def test_prompts_without_answers_are_those_of_training(name):
  row, _ = ROWS[name.partition("/")[0]]
  template = templates.resolve(name)
  trained = texts([row], template=name)[0].prompt
  bare = {column: row[column] for column in row if column in reads(template.prompt)}
  assert len(bare) < len(row)
  assert templates.render_prompts([bare], name) == [trained]
  made_again = library.Template(**template._asdict())
  assert templates.render_prompts([bare], (made_again,)) == [trained]


def test_the_record_is_plain_and_the_hash_tells_formats_apart():
  columns = ["sentence", "label", "other"]
  forms = [
    templates.choose(columns, where="f", template="sentiment/vague", **options)
    for options in ({}, {"choices": ("a", "b")}, {"rename": {"sentence": "other"}})
  ]
  assert len({form.sha256 for form in forms}) == 3
  record = forms[2].record()
  assert record["templates"][0]["prompt"] == "{{ sentence }}\nFeeling:\n"
  assert record["sha256"] == forms[2].sha256


REFUSED = [
  ({"template": "sentiment/vage"}, "'sentiment/vage'; did you mean 'sentiment/vague'"),
  (
    {"template": "sentimant/vague"},
    "a name in the library .* or FILE.yaml:name; did you mean 'sentiment/vague'",
  ),
  ({"template": "sentiment"}, "is 'sentiment', expected Jinja .* a name in the library"),
  ({"template": ()}, "data.template is empty"),
  ({"template": "sentiment/vague", "answer": "label"}, "brings its own answer"),
  (
    {"template": "topic/vague"},
    "f.jsonl: template 'topic/vague': column 'text' is missing; there are sentence, label.*rename",
  ),
  ({"template": "sentiment/vague", "choices": ("yes",)}, "f.jsonl:2: label 1 is outside the ans"),
  (
    {"template": "{{ sentence }}\n", "answer": "label", "choices": ("0", "2")},
    "f.jsonl:2: the answer '1' is none of the answer choices",
  ),
  ({"template": "{{ sentence }}\n", "answer": "{{ [] | choice }}"}, "f.jsonl:1: choice: the list"),
  ({"template": "{{ range }}\n", "answer": "label"}, "prints a function"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED)
def test_refused(options, message):
  with pytest.raises(UserError, match=message):
    texts([{"sentence": "x", "label": 0}, {"sentence": "y", "label": 1}], **options)


def test_an_empty_answer_is_named_with_its_line(tokenizer, write):
  rows = [{"article": "a", "summary": "s"}, {"article": "b", "summary": " "}]
  path = write("f.jsonl", rows)
  with pytest.raises(UserError, match="f.jsonl:2: no token to train on .the answer is empty"):
    data.load(tokenizer, sft, data.DataOptions(train=path, template="summarisation/vague"))


OWN = """\
task: mood
answer: "{{ answer_choices[label] }}"
answer_choices: [sad, glad]
metrics: [accuracy]
templates:
  - {name: short, clarity: vague, prompt: "{{ text }}\\n"}
  - {name: other, answer: label, answer_choices: ["0", "1"], prompt: "{{ text }}!\\n"}
"""


def test_files_of_ones_own(write):
  path = write("own.yaml", OWN)
  short, other = texts([{"text": "t", "label": 1}], template=[f"{path}:short", f"{path}:other"])
  assert (short.prompt, short.answers, other.prompt, other.answers) == (
    "t\n",
    ["glad"],
    "t!\n",
    ["1"],
  )
  template = templates.resolve(f"{path}:short")
  assert (template.task, template.metrics, template.clarity) == ("mood", ("accuracy",), "vague")
  assert template.columns == {"label", "text"}
  with pytest.raises(UserError, match="own.yaml:shrt'; did you mean '.*own.yaml:short'"):
    templates.resolve(f"{path}:shrt")


@pytest.mark.parametrize(
  ("old", "new", "message"),
  [
    ("task: mood\n", "", "own.yaml has no task"),
    ("clarity: vague", "clarity: vage", "template 1: clarity is 'vage' .*did you mean 'vague'"),
    ("clarity: vague", "clearness: 1", "template 1: unknown key 'clearness'. .*clarity"),
    ("name: short, ", "", "template 1 has no name"),
    ("name: short", "name: other", "2 templates are called"),
    ("[sad, glad]", "[no, yes]", r"answer_choices is \[False, True\], expected .*quote yes, no"),
    ("metrics: [accuracy]", "metrics: accuracy", "metrics is 'accuracy', expected a list"),
    ('"{{ text }}!', '"{{ text !', "own.yaml:other: the template .* is not valid Jinja"),
    ('prompt: "{{ text }}!\\n"', "prompt: 3", "own.yaml:other: prompt is 3 .int., expected text"),
    ("templates:", "templates", r"own.yaml:\d: "),
  ],
)
def test_broken_files_of_ones_own(write, old, new, message):
  assert old in OWN
  with pytest.raises(UserError, match=message):
    templates.resolve(write("own.yaml", OWN.replace(old, new, 1)) + ":other")


REAL = {
  "sentiment": ("sst2/dev.tsv", ("sentence", "label"), {}),
  "star_rating": ("reviews/test.jsonl.gz", None, {}),
  "review_generation": ("reviews/test.jsonl.gz", None, {}),
  "summarisation": (
    "dialogsum/test.jsonl", None,
    {"article": "dialogue", "summary": ("summary", ("summary1", "summary2", "summary3"))},
  ),
  "ner": ("wnut17/dev.jsonl", None, {}),
  "data_to_text": ("e2e/valid_grouped.jsonl", None, {"data": "mr", "reference": ("ref", "refs")}),
}  # fmt: skip


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data")
@pytest.mark.parametrize("task", REAL)
def test_real_rows(task):
  file, columns, rename = REAL[task]
  table = sources.read(str(SHARED / file), columns=columns)
  names = list(dict.fromkeys(column for row in table.rows for column in row))
  form = templates.choose(names, where=file, template=f"{task}/context", rename=rename)
  examples = templates.render(form, table.rows, table.where)
  assert len(examples) == len(table.rows)
  assert all(answer.strip() for one in examples for answer in one.answers)
  assert not any("{{" in one.prompt or "\n\n\n" in one.prompt[:900] for one in examples[:50])
