"""Values from files and the command line are checked against annotations, and JSON is bounded."""

from typing import Literal, Required

import pytest
from typing_extensions import TypedDict

from jaxtune import schema
from jaxtune.errors import UserError


class Entries(TypedDict, total=False):
  __pydantic_config__ = schema.STRICT

  size: Required[schema.Count]
  names: list[str]
  share: schema.Rate | None


@pytest.mark.parametrize(
  ("value", "expected"),
  [
    (1, schema.Count),
    (2**31 - 1, schema.Count),
    (1, float),
    (0, schema.Seed),
    (["a"], tuple[str, ...]),
    (("a",), tuple[str, ...]),
    (2, int | tuple[int, ...]),
    ([2, 3], int | tuple[int, ...]),
    ("file", str | tuple[str, ...] | float | int | None),
    ({"size": 1, "names": ["a"], "share": None, "unknown": 1.5}, Entries),
  ],
)
def test_what_fits_passes(value, expected):
  schema.check("key", value, expected)


@pytest.mark.parametrize(
  ("value", "expected", "says"),
  [
    (0, schema.Count, "key is 0 (int), expected at least 1"),
    (2**31, schema.Count, "expected at most 2147483647"),
    (1.0, schema.Rate, "key is 1.0 (float), expected below 1"),
    (True, int, "key is True (bool), expected int"),
    (1.0, int, "key is 1.0 (float), expected int"),
    ("1", int | None, "key is '1' (str), expected int or None"),
    (float("nan"), float, "key is nan (float), expected a finite number"),
    (10**400, float, "expected float"),
    ("ab", tuple[str, ...], "key is 'ab' (str), expected list"),
    (["a", 1], tuple[str, ...], "key[1] is 1 (int), expected text"),
    (True, str | tuple[str, ...] | float | None, "expected text or list or float or None"),
    ("x" * 10**5, int, "xxx...xxx"),
    ({}, Entries, "key.size is missing"),
    ({"a": {"b": 1}}, dict[str, str | list[str]], "key.a is {'b': 1} (dict), expected text"),
    ([1], Entries, "key is [1] (list), expected dict"),
    ({"size": -1}, Entries, "key.size is -1 (int), expected at least 1"),
    ({"size": 1, "names": ["a", None]}, Entries, "key.names[1] is None (NoneType), expected text"),
    ({"size": 1, "share": float("inf")}, Entries, "key.share is inf"),
    (2**32, schema.Seed, "expected at most 2147483647"),
    ("erorr", Literal["error", "skip"], "expected 'error' or 'skip'; did you mean 'error'?"),
    ("no", Literal["error", "skip"] | None, "expected 'error' or 'skip' or None"),
    ({"dta": 1}, dict[Literal["data"], int], "key has the key 'dta' (str), expected 'data'; did"),
    ({"a": ["b", 1]}, dict[str, str | tuple[str, ...]], "key.a[1] is 1 (int), expected text"),
  ],
)
def test_what_does_not_fit_is_named(value, expected, says):
  with pytest.raises(UserError) as error:
    schema.check("key", value, expected)
  assert says in str(error.value) and len(str(error.value)) < 300


def test_a_number_of_thousands_of_digits_is_not_written_out():
  with pytest.raises(UserError, match="key is a number of thousands of digits"):
    schema.check("key", 10**5000, schema.Count)


@pytest.mark.parametrize(
  ("text", "says"),
  [
    ("[" * 100_000, "nested too deeply"),
    ('{"a":' * 100_000, "nested too deeply"),
    ("1" * 5000, "cannot be read"),
    ('{"a": "\\ud800"}', "half a surrogate pair"),
    ('{"a": 1', "malformed JSON at column 8"),
    ('{"a":\n 1', "malformed JSON at line 2, column 3"),
    ('{"a": "\udc80"}', "half a surrogate pair"),
    (b"\xff\xfe", "not UTF-8"),
  ],
)
def test_json_of_strangers_is_refused_in_a_line(text, says):
  with pytest.raises(UserError, match=says) as error:
    schema.parse_json(text, "file.json")
  assert str(error.value).startswith("file.json: ")


def test_an_error_that_quotes_a_book_is_cut():
  message = str(UserError("begin " + "x" * 10**6 + " end"))
  assert len(message) < 2100 and message.startswith("begin") and message.endswith("end")
