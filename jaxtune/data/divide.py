"""Divides examples into train, validation and test, and checks that no two of them share any.

To which split a row belongs depends on a hash of all its columns as they are in the file. So it
survives shuffling, equal rows stay together, and templates that read different columns are compared
on the same examples.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Sequence

from jaxtune.data.templates import Example
from jaxtune.errors import UserError


def draw(
  examples: Sequence[Example], size: int | float, name: str, seed: int
) -> tuple[list[Example], list[Example]]:
  """Splits off `size` examples: a fraction when below 1 (approximately), else a count.

  Rows whose columns are equal but for case and whitespace stay together, so that a few more than
  `size` may be drawn.

  Returns:
    (the rest, the drawn), both in the order given.

  Raises:
    UserError: a size that is neither, or that leaves one of the two empty.
  """
  if isinstance(size, bool) or size <= 0 or (size >= 1 and size != int(size)):
    raise UserError(f"data.{name} is {size}, expected a file, a fraction below 1, or a whole count")
  if size >= len(examples):
    raise UserError(
      f"data.{name} is {size}, expected less than the {len(examples)} examples of train"
    )
  hashes = [_position(example, f"{seed}:{name}") for example in examples]
  bound = int(size * 2**64) if size < 1 else sorted(hashes)[int(size) - 1] + 1
  rest = [one for one, position in zip(examples, hashes, strict=True) if position >= bound]
  drawn = [one for one, position in zip(examples, hashes, strict=True) if position < bound]
  for kind, examples_left in (("train", rest), (name, drawn)):
    if not examples_left:
      raise UserError(
        f"the {kind} split is empty with data.{name}={size} of {len(examples)} examples: give a "
        "larger file, or a count"
      )
  return rest, drawn


def limited(
  examples: Sequence[Example], limit: int | None, seed: int, tasks: str | None = None
) -> list[Example]:
  """Keeps `limit` examples, chosen by hash and not by place in the file, in their order.

  Args:
    tasks: the column that names an example's task. Equally many are kept of each task; if one has
      fewer, more are kept of the others.
  """
  if limit is None or limit >= len(examples):
    return list(examples)
  if limit < 1:
    raise UserError(f"data.limit is {limit}, expected at least 1")
  hashes = [_position(example, f"{seed}:limit") for example in examples]
  order = sorted(range(len(examples)), key=lambda row: (hashes[row], row))
  if tasks is not None:
    before: Counter = Counter()
    turns = {}
    for row in order:
      task = str(examples[row].row.get(tasks))
      turns[row] = before[task]
      before[task] += 1
    order.sort(key=turns.__getitem__)
  return [examples[row] for row in sorted(order[:limit])]


def separate(
  splits: dict[str, list[Example]], overlap: str
) -> tuple[dict[str, list[Example]], dict]:
  """Refuses, drops or allows examples that two splits share.

  Two examples are shared when prompt and any accepted answer are equal but for case, width and
  whitespace. "drop" takes them out of the training side (of validation, for validation and test).

  Returns:
    The splits, and counts by pair: {"train/test": {"shared": 2, "dropped": 2, "same_prompt": 5}};
    an equal prompt with another answer is counted, among what is left, but never refused.

  Raises:
    UserError: where they share and `overlap` is "error", naming file and line of both.
  """
  splits, report = dict(splits), {}
  for left, right in (("train", "validation"), ("train", "test"), ("validation", "test")):
    if left not in splits or right not in splits:
      continue
    there = {key: example for example in reversed(splits[right]) for key in _texts(example)}
    twin = lambda example, there=there: next(filter(None, map(there.get, _texts(example))), None)
    shared = [(example, b) for example in splits[left] if (b := twin(example)) is not None]
    if shared and overlap == "error":
      raise UserError(_message(left, right, shared))
    if shared and overlap == "drop":
      splits[left] = [example for example in splits[left] if twin(example) is None]
      if not splits[left]:
        raise UserError(f"the {left} split is empty: all of it is in {right} too")
    report[f"{left}/{right}"] = {
      "shared": len(shared),
      "dropped": len(shared) if overlap == "drop" else 0,
      "same_prompt": _same_prompts(splits[left], splits[right]),
    }
  return splits, report


def normalise(text: str) -> str:
  """Folds case, Unicode width and whitespace."""
  return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _position(example: Example, salt: str) -> int:
  """Hashes a row's columns in any order; a column that is null counts as missing."""
  row = example.row if example.source is None else example.source
  cells = sorted((name, cell) for name, cell in row.items() if cell is not None)
  content = "\x1f".join(f"{name}\x1e{_plain(cell)}" for name, cell in cells)
  digest = hashlib.blake2b(f"{salt}\x1d{content}".encode(), digest_size=8).digest()
  return int.from_bytes(digest, "big")


def _plain(value: object) -> str:
  """Writes a cell as text, in which the borders between the items of a list show."""
  if isinstance(value, dict):
    value = [part for key in sorted(value, key=str) for part in (key, value[key])]
  if isinstance(value, (list, tuple)):
    return "[" + "\x1c".join(map(_plain, value)) + "]"
  return "" if value is None else normalise(str(value))


def _texts(example: Example) -> list[bytes]:
  prompt = normalise(example.prompt or "")
  return [
    hashlib.blake2b(f"{prompt}\x1d{normalise(answer)}".encode(), digest_size=16).digest()
    for answer in example.answers
  ]


def _same_prompts(left: Sequence[Example], right: Sequence[Example]) -> int:
  there = {normalise(one.prompt) for one in right if one.prompt is not None}
  return sum(one.prompt is not None and normalise(one.prompt) in there for one in left)


def _message(left: str, right: str, shared: Sequence[tuple[Example, Example]]) -> str:
  pairs = "; ".join(f"{a.where} = {b.where}" for a, b in shared[:3])
  more = f" and {len(shared) - 3} more" if len(shared) > 3 else ""
  side = "training side" if left == "train" else f"{left} side"
  return (
    f"{len(shared)} examples of {left} are in {right} too: {pairs}{more}: mend the files, or set "
    f"data.overlap='drop' (takes them from the {side}) or 'allow'"
  )
