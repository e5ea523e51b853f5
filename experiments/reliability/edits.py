"""Damage to files, as hypothesis draws it: it keeps what failed, and makes it smaller.

A case is {path: content} of a folder. Bytes are flipped, cut, doubled and spliced; in JSON, in the
header of safetensors and in the words of a text single values are replaced as well, since bytes
alone seldom get past the parser.
"""

from __future__ import annotations

import json
import re
import struct

from hypothesis import strategies as st

# Texts that json.dumps cannot make, put in for their names behind it.
RAW = {
  "<deep>": "[" * 5000 + "]" * 5000,
  "<digits>": "9" * 5000,
  "<huge>": "1e999",
  "<surrogate>": '"\\ud800"',
}
VALUES = (
  None, True, False, 0, 1, -1, 2, 3, 7, 1.5, -0.5, 2**31, 2**63, -(2**63), 10**30, 1e12, 1e308,
  float("nan"), float("inf"), "", " ", "a", "a1", "0", "nan", "../../x", "/etc/passwd", "\0",
  "a" * 100_000, "é" * 9, [], [[]], {}, {"a": 1}, [0], [-1], ["x"], [None], [[1], "a"],
  "(.*)*(.*)*(.*)*(.*)*x$", "{{ x }}", "{{ 'a' * 10**9 }}", "lambda x: x", *RAW,
  "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
  "{{ ''.__class__.__mro__ }}", "__import__('os').system('true')", "builtins.eval",
)  # fmt: skip
KEYS = ("", "a", "auto_map", "quantization_config", "__class__", "prompt", "jaxtune", "0")
WORDS = re.compile(rb"[A-Za-z_]\w*|-?\d+(?:\.\d+)?|\"[^\"\n]*\"|[^\w\s]")
TEXTS = tuple(str(v).encode() for v in VALUES if not isinstance(v, (list, dict))) + (
  b"!!python/object/apply:os.system ['true']", b"&a [*a, *a]", b"*a", b"{{", b"{%", b"|||", b": ",
  b"- ", b"\t", b"\r\n", b'"', b"'", b",", b"\xff", b"\xef\xbb\xbf", b"\xed\xa0\x80",
)  # fmt: skip

_leaves = st.sampled_from(VALUES) | st.integers() | st.floats() | st.text(max_size=5)
VALUE = _leaves | st.recursive(
  _leaves, lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=3), x, max_size=3),
  max_leaves=5,
)  # fmt: skip


def written(value: object) -> bytes:
  """Writes JSON, with what only a stranger writes."""
  text = json.dumps(value)
  for name, raw in RAW.items():
    text = text.replace(json.dumps(name), raw)
  return text.encode()


@st.composite
def value_edit(draw, value):
  """Replaces, drops, adds or wraps one value within JSON."""
  inner = isinstance(value, (dict, list)) and len(value)
  if inner and draw(st.integers(0, 5)):
    keys = sorted(value) if isinstance(value, dict) else range(len(value))
    key = draw(st.sampled_from(list(keys)))
    changed = dict(value) if isinstance(value, dict) else list(value)
    if draw(st.integers(0, 7)) == 7:
      del changed[key]
    else:
      changed[key] = draw(value_edit(value[key]))
    return changed
  if isinstance(value, dict) and draw(st.booleans()):
    return value | {draw(st.sampled_from(KEYS)): draw(VALUE)}
  if isinstance(value, list) and draw(st.booleans()):
    return value + [draw(VALUE)]
  return draw(VALUE)


@st.composite
def byte_edit(draw, content: bytes):
  """Flips, cuts, drops, doubles or puts in bytes; or replaces all of them."""
  kind = draw(st.sampled_from(("flip", "cut", "drop", "double", "insert", "whole")))
  at = draw(st.integers(0, max(len(content) - 1, 0)))
  size = draw(st.integers(1, 64))
  if kind == "flip" and content:
    flipped = content[at] ^ (1 << draw(st.integers(0, 7)))
    return content[:at] + bytes([flipped]) + content[at + 1 :]
  if kind == "cut":
    return content[:at]
  if kind == "drop":
    return content[:at] + content[at + size :]
  if kind == "double":
    return content[:at] + content[at : at + size] * 2 + content[at + size :]
  if kind == "insert":
    return content[:at] + draw(st.sampled_from(TEXTS) | st.binary(max_size=8)) + content[at:]
  return draw(st.binary(max_size=16))


@st.composite
def word_edit(draw, content: bytes):
  """Replaces one word, number or quoted text of a text."""
  words = list(WORDS.finditer(content))
  if not words:
    return draw(byte_edit(content))
  word = draw(st.sampled_from(words))
  others = [word[0] + word[0], *(w[0] for w in words[:40])]
  new = draw(st.sampled_from(TEXTS) | st.sampled_from(others))
  return content[: word.start()] + new + content[word.end() :]


@st.composite
def header_edit(draw, content: bytes):
  """Changes the header of safetensors, which stays as long as it says unless that is the change."""
  (size,) = struct.unpack("<Q", content[:8])
  try:
    header = json.loads(content[8 : 8 + size])
    inside = json.loads(header.get("__metadata__", {}).get("jaxtune", "null"))
  except (ValueError, AttributeError, TypeError, RecursionError):  # a change before broke it
    return draw(byte_edit(content))
  if inside and draw(st.booleans()):  # a run's record, JSON within JSON
    record = written(draw(value_edit(inside))).decode()
    header["__metadata__"]["jaxtune"] = record
    text = json.dumps(header).encode()
  else:
    text = written(draw(value_edit(header)))
  if draw(st.integers(0, 9)) == 9:
    size = draw(st.sampled_from((0, 1, len(text) + 1, 2**31, 2**63, 2**64 - 1)))
  else:
    size = len(text)
  return struct.pack("<Q", size) + text + content[8 + struct.unpack("<Q", content[:8])[0] :]


@st.composite
def edit(draw, name: str, content: bytes):
  """Draws one change that suits the kind of the file."""
  ways = [byte_edit(content)]
  if name.endswith(".safetensors") and len(content) > 8:
    ways += [header_edit(content)] * 3
  else:
    try:
      content.decode()
      ways += [word_edit(content)] * 2
      ways += [_json_edit(content)] * 4
    except ValueError:
      pass
  return draw(st.sampled_from(ways).flatmap(lambda way: way))


@st.composite
def _json_edit(draw, content: bytes):
  try:
    return written(draw(value_edit(json.loads(content))))
  except (ValueError, RecursionError):
    lines = content.splitlines()
  number = draw(st.integers(0, max(len(lines) - 1, 0)))
  try:
    lines[number] = written(draw(value_edit(json.loads(lines[number]))))
  except (ValueError, RecursionError, IndexError):
    return draw(word_edit(content))
  return b"\n".join(lines) + b"\n"


@st.composite
def damaged(draw, files: dict[str, bytes]):
  """Draws a folder: a valid one with one to three changes; None stands for a file that is gone."""
  changed = dict(files)
  for _ in range(draw(st.integers(1, 3))):
    name = draw(st.sampled_from(sorted(n for n, c in changed.items() if c is not None)))
    kind = draw(st.integers(0, 19))
    if kind == 19 and len(files) > 1:
      changed[name] = None
      if not any(c is not None for c in changed.values()):
        break
    elif kind == 18:  # a folder in its place
      changed[name] = None
      changed[f"{name}/file"] = b""
    else:
      changed[name] = draw(edit(name, changed[name]))
  return changed
