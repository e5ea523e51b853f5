"""Every message of a UserError has one form: lower case, no full stop, value and expectation."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

import pytest

import jaxtune
from jaxtune import config

PACKAGE = Path(jaxtune.__file__).parent
SECTIONS = "|".join(sorted(config.KEYS - {"seed", "sweep"}))
NAMES = ("LoRA", "AdaLoRA", "PEFT", "AdapterHub", "JSON", "CSV", "TSV", "Python", "PyTorch", "NaN")


def template(node: ast.expr) -> str | None:
  """Writes a message with {} where values stand; None for one that is made elsewhere."""
  if isinstance(node, ast.Constant):
    return str(node.value)
  if isinstance(node, ast.JoinedStr):
    return "".join(map(lambda part: template(part) or "{}", node.values))
  if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
    return (template(node.left) or "{}") + (template(node.right) or "{}")
  return None


@functools.cache
def messages() -> dict[str, list[tuple[str, str]]]:
  """Lists every message by room, each with its file and line."""
  found: dict[str, list[tuple[str, str]]] = {}
  for path in sorted(PACKAGE.rglob("*.py")):
    name = path.relative_to(PACKAGE)
    for node in ast.walk(ast.parse(path.read_text())):
      called = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.args
      if called and node.func.id in ("UserError", "Rejected"):
        text = template(node.args[0])
        if text is not None:
          found.setdefault(name.parts[0], []).append((f"{name}:{node.lineno}", text))
  return found


def faults(text: str) -> list[str]:
  """Says what is wrong with a message's form."""
  found = []
  if text[:1].isupper() and not text.startswith(NAMES):
    found.append("begins in upper case")
  if text.endswith("."):
    found.append("ends in a full stop")
  if re.search(r"[a-z}'\"]\. [A-Z]", text):
    found.append("is more than one sentence: use a colon or a semicolon")
  key = re.match(rf"({SECTIONS})\.[a-z_.{{}}]+ is \{{\}}", text)
  if re.match(rf"({SECTIONS})\.[a-z_.{{}}]+ ?= ?\{{\}}", text):
    found.append("writes a key and its value as key=value: use 'key is value, expected'")
  if key and "expected" not in text:
    found.append("names a key and its value, and not what was expected")
  return found


@pytest.mark.parametrize("room", sorted(messages()))
def test_messages_have_one_form(room):
  wrong = [
    f"{where}: {', '.join(found)}: {text!r}"
    for where, text in messages()[room]
    if (found := faults(text))
  ]
  assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
  ("text", "fault"),
  [
    ("Wrong: {}", "upper case"),
    ("data.pack is {}, expected a number.", "full stop"),
    ("data.pack is {}", "expected"),
    ("data.pack={}: expected a number", "key=value"),
    ("a is b. Take c", "sentence"),
  ],
)
def test_faults_are_seen(text, fault):
  assert fault in " ".join(faults(text)) and not faults("data.pack is {}, expected a number")
