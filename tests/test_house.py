"""The layout keeps its rules: no import runs in a circle, and files and functions stay small.

A room is a folder or a module directly in jaxtune/. Its floor is one above the highest room that it
imports. `python tests/test_house.py` prints all rooms, the highest floor first.
"""

import ast
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "jaxtune"
Graph = dict[str, set[str]]


def name(path: Path) -> str:
  """Names a file as an import does: "jaxtune.models.hf"."""
  parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
  return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def trees() -> dict[str, ast.Module]:
  return {name(path): ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}


@cache
def imports() -> Graph:
  """Finds the modules of jaxtune that each module imports, also those imported in a function."""
  graph = {}
  for module, tree in trees().items():
    said = set()
    for node in ast.walk(tree):
      if isinstance(node, ast.Import):
        said |= {alias.name for alias in node.names}
      elif isinstance(node, ast.ImportFrom) and node.module:
        inner = {f"{node.module}.{alias.name}" for alias in node.names}
        said |= {whole if whole in trees() else node.module for whole in inner}
    graph[module] = said & trees().keys() - {module}
  return graph


def rooms() -> Graph:
  """Finds the rooms that each room imports; the package's own __init__ is none."""
  room = lambda module: module.split(".")[1]
  graph = {room(module): set() for module in imports() if module != "jaxtune"}
  for module, others in imports().items():
    if module != "jaxtune":
      graph[room(module)] |= {room(o) for o in others if o != "jaxtune"} - {room(module)}
  return graph


def floors(graph: Graph) -> dict[str, int]:
  """Returns each room's floor, from 1; raises CycleError where imports run in a circle."""
  made: dict[str, int] = {}
  for room in TopologicalSorter(graph).static_order():
    made[room] = 1 + max((made[other] for other in graph[room]), default=0)
  return made


def functions():
  """Yields (place, function) of every function of the package."""
  for module, tree in trees().items():
    for node in ast.walk(tree):
      if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        yield f"{module}:{node.lineno} {node.name}", node


def length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
  """Counts a function's lines, without decorators and without its docstring."""
  first, docstring = function.body[0], 0
  if ast.get_docstring(function) is not None:
    docstring = (first.end_lineno or 0) - first.lineno + 1
  return (function.end_lineno or 0) - function.lineno + 1 - docstring


def positional(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
  arguments = [a.arg for a in (*function.args.posonlyargs, *function.args.args)]
  return [a for a in arguments if a not in ("self", "cls")]


def test_no_import_between_rooms_runs_upwards_or_in_a_circle():
  assert max(floors(rooms()).values()) <= 12
  assert len(rooms()) <= 24


def test_no_file_imports_itself_through_others():
  floors(imports())


def test_few_modules_lie_beside_the_folders():
  modules = [path.name for path in PACKAGE.glob("*.py") if path.name != "__init__.py"]
  assert len(modules) <= 10, modules


def test_files_are_short():
  lines = {name(path): len(path.read_text().splitlines()) for path in PACKAGE.rglob("*.py")}
  assert not {module: count for module, count in lines.items() if count > 300}


def test_functions_are_short():
  assert not {place: length(f) for place, f in functions() if length(f) > 40}


def test_functions_have_few_positional_parameters():
  assert not {place: positional(f) for place, f in functions() if len(positional(f)) > 6}


if __name__ == "__main__":
  graph = rooms()
  for room, floor in sorted(floors(graph).items(), key=lambda item: (-item[1], item[0])):
    print(f"{floor:>2} {room:<11}{', '.join(sorted(graph[room]))}")
