"""Mutants of a module: mutmut's operators, and two of our own, applied to one node at a time.

mutmut's own runner swaps functions for trampolines, which breaks `inspect.signature`, jit's caches,
decorated functions and code at module level. So only its operators are used, and a mutant is the
whole text of a module with one change.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import libcst as cst
from libcst.metadata import MetadataWrapper, PositionProvider
from mutmut.mutation.mutators import mutation_operators, operator_string

# The modules whose numbers are published. A folder stands for all files in it.
MODULES = (
  "training", "runs/group", "evaluation", "metrics", "peft", "objectives", "compose",
  "formats/peft", "data/batches", "data/pack", "data/mix", "data/divide", "data/tokenizer",
  "data/encode", "sweeps/stats",
)  # fmt: skip


class Mutant(NamedTuple):
  """One change of one module.

  Attributes:
    key: a hash of all below but the line number, so that edits elsewhere leave it as it is.
    module: the file below jaxtune/, such as "peft/methods/lora.py".
    function: the function or class that holds it; "" at module level.
    before, after: the code of the node that is replaced.
    lines: the statement's first and last line, of a compound statement its header's.
  """

  key: str
  module: str
  function: str
  line: int
  lines: tuple[int, int]
  operator: str
  before: str
  after: str
  node: cst.CSTNode
  new: cst.CSTNode


def operator_first_argument(node: cst.Call) -> Iterator[cst.CSTNode]:
  """A call becomes its first argument: `fold_in(key, seed)` becomes `key`."""
  if node.args and not node.args[0].star and node.args[0].keyword is None:
    yield node.args[0].value.with_changes(lpar=[cst.LeftParen()], rpar=[cst.RightParen()])


def operator_one_side(node: cst.BinaryOperation) -> Iterator[cst.CSTNode]:
  """An operation becomes its left or its right side: `rate * ratio` becomes `rate`."""
  for side in (node.left, node.right):
    yield side.with_changes(lpar=[cst.LeftParen()], rpar=[cst.RightParen()])


OPERATORS = (
  *mutation_operators,
  (cst.Call, operator_first_argument),
  (cst.BinaryOperation, operator_one_side),
)


class _Finder(cst.CSTVisitor):
  """Collects (operator, node, new node, names of the functions around it, its statement)."""

  METADATA_DEPENDENCIES = (PositionProvider,)

  def __init__(self):
    self.found, self.names, self.statements, self.raising = [], [], [], 0

  def on_visit(self, node: cst.CSTNode) -> bool:
    # What is only read by people or type checkers has no tests; decorators are module structure.
    if isinstance(node, cst.Annotation | cst.Decorator | cst.Import | cst.ImportFrom | cst.Assert):
      return False
    if isinstance(node, cst.Expr) and isinstance(node.value, cst.SimpleString):
      return False
    if isinstance(node, cst.FunctionDef | cst.ClassDef):
      self.names.append(node.name.value)
    if isinstance(node, cst.BaseStatement):
      self.statements.append(node)
    self.raising += isinstance(node, cst.Raise)
    for kind, operator in OPERATORS:
      if isinstance(node, kind) and not (self.raising and operator is operator_string):
        for new in operator(node):
          where = ".".join(self.names), self.statements[-1] if self.statements else node
          self.found.append((operator.__name__.removeprefix("operator_"), node, new, *where))
    return True

  def on_leave(self, original_node: cst.CSTNode) -> None:
    if isinstance(original_node, cst.FunctionDef | cst.ClassDef):
      self.names.pop()
    if isinstance(original_node, cst.BaseStatement):
      self.statements.pop()
    self.raising -= isinstance(original_node, cst.Raise)


def files(package: Path) -> list[str]:
  """Lists the modules to mutate, as paths below the package."""
  found = []
  for name in MODULES:
    folder = package / name
    found += sorted(folder.rglob("*.py")) if folder.is_dir() else [package / f"{name}.py"]
  return [str(path.relative_to(package)) for path in found]


def mutants(package: Path, module: str) -> tuple[cst.Module, list[Mutant]]:
  """Makes all mutants of a module, without writing one; `write` makes the text of one."""
  wrapper, finder = MetadataWrapper(cst.parse_module((package / module).read_text())), _Finder()
  wrapper.visit(finder)
  positions, code = wrapper.resolve(PositionProvider), cst.Module([]).code_for_node
  made, seen = [], {}
  for operator, node, new, function, statement in finder.found:
    before, after = code(node).strip(), code(new).strip()
    identity = (module, function, operator, before, after)
    count = seen[identity] = seen.get(identity, 0) + 1
    key = hashlib.sha256("\0".join([*identity, str(count)]).encode()).hexdigest()[:12]
    line = positions[node].start.line if node in positions else positions[statement].start.line
    lines = _header(statement, positions)
    if before != after:
      made.append(Mutant(key, module, function, line, lines, operator, before, after, node, new))
  return wrapper.module, made


def _header(statement: cst.CSTNode, positions) -> tuple[int, int]:
  place = positions[statement]
  body = getattr(statement, "body", None)
  compound = isinstance(body, cst.BaseSuite) and isinstance(statement, cst.BaseCompoundStatement)
  last = positions[body].start.line - 1 if compound else place.end.line
  return place.start.line, max(place.start.line, last)


def write(tree: cst.Module, mutant: Mutant) -> str | None:
  """Writes the module with the mutant's change; None where that is no Python."""
  try:
    text = cst.ensure_type(tree.deep_replace(mutant.node, mutant.new), cst.Module).code
    ast.parse(text)
  except (SyntaxError, cst.CSTValidationError, TypeError):
    return None
  return text


def sample(found: list[Mutant], count: int, seed: int) -> list[Mutant]:
  """Draws mutants of one module, from each operator in turn.

  The order hangs on (seed, key) alone: a larger sample holds a smaller one, and an edit of the
  module changes the draws that it touches.
  """
  rank = lambda mutant: hashlib.sha256(f"{seed}:{mutant.key}".encode()).hexdigest()
  by_operator = {}
  for mutant in sorted(found, key=rank):
    by_operator.setdefault(mutant.operator, []).append(mutant)
  places = {m.key: i for drawn in by_operator.values() for i, m in enumerate(drawn)}
  return sorted(found, key=lambda mutant: (places[mutant.key], rank(mutant)))[:count]


def quotas(sizes: dict[str, int], total: int, least: int = 4) -> dict[str, int]:
  """Shares a sample among modules by the square roots of their numbers of mutants."""
  weights = {module: size**0.5 for module, size in sizes.items()}
  scale = total / max(sum(weights.values()), 1)
  return {m: min(sizes[m], max(least, round(scale * w))) for m, w in weights.items()}
