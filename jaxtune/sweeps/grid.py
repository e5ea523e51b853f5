"""The trials that a sweep's axes describe, and their names."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from jaxtune.errors import UserError

Settings = dict[str, Any]
Grid = Mapping[str, Sequence]
_LONGEST = 180  # bytes of a trial's name; file systems allow 255, and suffixes are added
_PLAIN = re.compile(r"(?!(None|True|False|nan|inf)$)[A-Za-z_][\w.-]*", re.ASCII)


def count(sweep: Grid | Sequence[Grid]) -> int:
  """Counts the trials of a sweep without listing them; a trial of several grids counts repeatedly.

  Raises:
    UserError: as `expand`.
  """
  return sum(math.prod(map(len, axes.values())) for axes in plain(sweep))


def expand(sweep: Grid | Sequence[Grid]) -> list[Settings]:
  """Lists the settings of every trial of a sweep, each once.

  Args:
    sweep: a grid {axis: list of values}, which stands for the Cartesian product of its lists, the
      last axis varying fastest; or a list or tuple of grids, which stands for their union. An axis
      is a path in the configuration such as "optim.learning_rate", or a whole section such as
      "method" with plain dicts as values.

  Raises:
    UserError: no axis, an empty axis, an axis that is not a list, a value that is not plain data,
      a section named after one of its own keys, or an axis "sweep".
  """
  trials: dict[str, Settings] = {}
  for axes in plain(sweep):
    for values in itertools.product(*axes.values()):
      settings = dict(zip(axes, values, strict=True))
      trials.setdefault(json.dumps(settings, sort_keys=True), settings)
  return list(trials.values())


def name(settings: Settings, axes: Iterable[str] = (), paths: bool = False) -> str:
  """Returns a trial's name, which is safe as a folder's: "rank=4,learning_rate=0.001,seed=0".

  An axis is named by the last part of its path, or by the whole path where another axis ends in
  the same part. A section's name and keys are joined: "lora-rank=4". Unusual characters of a text
  are replaced, and a hash is added.

  Args:
    settings: an item of what `expand` returns.
    axes: all axes of the sweep, where its grids have different axes.
    paths: whether keys in a section are named by their whole paths: "stack-lora.rank=4".
  """
  short = short_keys(itertools.chain(settings, axes))
  whole = ",".join(_piece(short[key], value, paths) for key, value in settings.items()) or "trial"
  if len(whole) <= _LONGEST:
    return whole
  return whole[: _LONGEST - 9].rstrip(",=-") + "-" + _hash(whole)


def names(trials: Sequence[Settings], axes: Iterable[str]) -> list[str]:
  """Returns the `name` of each trial, with `paths` where it would be that of another one too.

  So are told apart a LoRA with a prefix and the same LoRA with a prompt, both of a length.

  Raises:
    UserError: where different trials share a name even so.
  """
  axes, written = list(axes), [json.dumps(trial, sort_keys=True) for trial in trials]
  found = [name(trial, axes) for trial in trials]
  counts = Counter(one for one, _ in {*zip(found, written, strict=True)})
  found = [name(trial, axes, counts[one] > 1) for one, trial in zip(found, trials, strict=True)]
  owners: dict[str, str] = {}
  for one, own in zip(found, written, strict=True):
    if owners.setdefault(one, own) != own:
      raise UserError(
        f"two trials of the sweep have the name {one}, {owners[one]} and {own}: expected keys that "
        "differ in letters, digits or one of _ . + -"
      )
  return found


def flatten(settings: Mapping[str, Any]) -> Settings:
  """Replaces every section by its keys: {"method": {"rank": 4}} -> {"method.rank": 4}."""
  flat: Settings = {}
  for key, value in settings.items():
    if isinstance(value, Mapping) and value:  # {} is a value: a method with all its defaults
      flat.update({f"{key}.{inner}": leaf for inner, leaf in flatten(value).items()})
    else:
      flat[key] = value
  return flat


def brief(number: float) -> str:
  """Writes a number with six digits, or with as many as tell it from all others."""
  short = f"{number:g}"
  return short if float(short) == number else repr(number)


def short_keys(paths: Iterable[str]) -> dict[str, str]:
  """Maps each path to its last part, or to itself where two paths end in the same."""
  paths = list(dict.fromkeys(paths))
  ends = Counter(path.rpartition(".")[2] for path in paths)
  return {path: end if ends[end := path.rpartition(".")[2]] == 1 else path for path in paths}


def plain(sweep: Grid | Sequence[Grid]) -> tuple[dict[str, list], ...]:
  """Returns the grids of a sweep as a tuple of dicts of plain data.

  Raises:
    UserError: as `expand`.
  """
  grids = list(sweep) if isinstance(sweep, (list, tuple)) else [sweep]
  if not grids:
    raise UserError('the sweep is empty: give it an axis, such as {"method.rank": [1, 2, 4]}')
  return tuple(map(_axes, grids))


def _axes(grid: Grid) -> dict[str, list]:
  """Checks a grid and returns its axes with plain values."""
  grid = _as_dict(grid)
  if not isinstance(grid, Mapping):
    raise UserError(
      f"a sweep is a dict of axis -> list of values, or a tuple of such dicts; "
      f"got {type(grid).__name__}"
    )
  if not grid:
    raise UserError('the sweep has no axis: give it one, such as {"method.rank": [1, 2, 4]}')
  axes: dict[str, list] = {}
  for axis, values in grid.items():
    if not isinstance(axis, str) or not all(axis.split(".")):
      raise UserError(
        f'sweep axis {axis!r} is not a path in the configuration, such as "method.rank"'
      )
    if axis.split(".")[0] == "sweep":
      raise UserError(f"sweep axis {axis!r} is not an option of a trial; expected a config key")
    if not isinstance(values, (list, tuple)):
      raise UserError(
        f"sweep axis {axis!r} must be a list of values, got "
        f"{type(values).__name__}; for one value write [{values!r}]"
      )
    if not values:
      raise UserError(f"sweep axis {axis!r} is empty: give it a value or leave it out")
    hidden = [earlier for earlier in axes if earlier.startswith(axis + ".")]
    if hidden:
      raise UserError(
        f"sweep axis {axis!r} would replace what {hidden[0]!r} sets: put {axis!r} first"
      )
    axes[axis] = [_plain(axis, value) for value in values]
  return axes


def _as_dict(value: Any) -> Any:
  return value.to_dict() if isinstance(value, ConfigDict) else value


def _plain(axis: str, value: Any) -> Any:
  """Copies plain data with tuples as lists; raises UserError for anything else."""
  value = _as_dict(value)
  if value is None or isinstance(value, (bool, int, str)):
    return value
  if isinstance(value, float) and math.isfinite(value):
    return value
  if isinstance(value, (list, tuple)):
    return [_plain(axis, item) for item in value]
  if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
    return {key: _plain(f"{axis}.{key}", item) for key, item in value.items()}
  raise UserError(
    f"sweep axis {axis!r} has the value {value!r}; expected finite numbers, text, "
    "True, False, None, or lists and dicts of them"
  )


def _piece(key: str, value: Any, paths: bool) -> str:
  """Names one setting: "rank=4", or a section's name and keys, "lora-rank=4"."""
  if not isinstance(value, Mapping):
    return f"{_safe(key)}={_text(value)}"
  head = value.get("name", key)
  rest = flatten({inner: leaf for inner, leaf in value.items() if inner != "name"})
  short = {path: path for path in rest} if paths else short_keys(rest)
  return "-".join([_text(head), *(f"{_safe(short[k])}={_text(v)}" for k, v in rest.items())])


def _text(value: Any) -> str:
  """Writes a value so that no two values are written alike."""
  if isinstance(value, list):
    joined = "+".join(map(_text, value))
    # A list of one item would be written like the item, and a list of lists like a single list.
    plain = len(value) > 1 and not any(isinstance(item, (list, dict)) for item in value)
    return joined if plain else _safe(joined) + "~" + _hash(json.dumps(value))
  if isinstance(value, str) and not _PLAIN.fullmatch(value):
    return _safe(value)[:40] + "~" + _hash(value)
  return str(value) if not isinstance(value, Mapping) else "~" + _hash(json.dumps(value))


def _safe(text: str) -> str:
  return re.sub(r"[^\w.+-]", "_", text, flags=re.ASCII)


def _hash(text: str) -> str:
  return hashlib.sha256(text.encode()).hexdigest()[:8]
