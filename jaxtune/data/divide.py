"""Divides examples into train, validation and test, and checks that no two of these share any.

A hash of all columns of a row, as they are in the file, decides to which split it belongs. So the
order of the file does not matter, equal rows stay together, and templates that read different
columns are compared on the same examples. Of answers that people judged it is a hash of the prompt,
as the first template writes it: a model has seen a prompt if it has seen any answer to it. Of
prompts that a policy answers it is that of the first row with this prompt.
"""

from __future__ import annotations

import hashlib
import itertools
import unicodedata
from collections import defaultdict
from collections.abc import Sequence

from jaxtune.data.split import SPLITS
from jaxtune.data.templates import Example
from jaxtune.errors import UserError


def draw(
  examples: Sequence[Example], size: int | float, name: str, seed: int
) -> tuple[list[Example], list[Example]]:
  """Splits off about the fraction `size` of the examples if it is below 1, else `size` of them.

  Rows whose columns are equal but for case and whitespace stay together, so that a few more than
  `size` may be drawn.

  Returns:
    (the examples that remain, those that were drawn), both in the order given.

  Raises:
    UserError: a size that leaves one of the two empty.
  """
  if size >= len(examples):
    raise UserError(
      f"data.{name} is {size}, expected less than the {len(examples)} examples of train"
    )
  hashes = [_position(example, f"{seed}:{name}") for example in examples]
  bound = int(size * 2**64) if size < 1 else sorted(hashes)[int(size) - 1] + 1
  remaining = list(itertools.compress(examples, [position >= bound for position in hashes]))
  drawn = list(itertools.compress(examples, [position < bound for position in hashes]))
  for kind, part in (("train", remaining), (name, drawn)):
    if not part:
      raise UserError(
        f"the {kind} split is empty with data.{name}={size} of {len(examples)} examples: give a "
        "larger file, or a count"
      )
  return remaining, drawn


def limited(
  examples: Sequence[Example], limit: int | None, seed: int, tasks: str | None = None
) -> list[Example]:
  """Returns `limit` of the examples in their order, chosen by hash and not by place in the file.

  Args:
    tasks: the column that names an example's task. Equally many are kept of each task; if one has
      fewer, more are kept of the others.
  """
  if limit is None or limit >= len(examples):
    return list(examples)
  hashes = [_position(example, f"{seed}:limit") for example in examples]
  order = sorted(range(len(examples)), key=lambda row: (hashes[row], row))
  if tasks is not None:
    turns = defaultdict(itertools.count)  # counts the rows of each task
    turn = {row: next(turns[str(examples[row].row.get(tasks))]) for row in order}
    order.sort(key=turn.__getitem__)
  return [examples[row] for row in sorted(order[:limit])]


def separate(
  splits: dict[str, list[Example]], overlap: str
) -> tuple[dict[str, list[Example]], dict]:
  """Refuses, drops or allows examples that two splits share.

  Two splits share an example if they have a prompt with an accepted answer that are equal but for
  case, width and whitespace, or that both have no answer; of examples with a `key`, if that is
  equal. "drop" takes it out of train (out of validation, if validation and test share it), with all
  other wordings of its row.

  Returns:
    The splits, and counts by pair: {"train/test": {"shared": 2, "dropped": 2, "same_prompt": 5}}.
    "same_prompt" counts the remaining examples whose prompt the other split has, with any answer.

  Raises:
    UserError: if two splits share examples and `overlap` is "error"; names file and line of both.
  """
  splits, report = dict(splits), {}
  for left, right in itertools.combinations([name for name in SPLITS if name in splits], 2):
    by_text = {key: example for example in reversed(splits[right]) for key in texts(example)}
    twins = [
      next((by_text[key] for key in texts(example) if key in by_text), None)
      for example in splits[left]
    ]
    shared = [pair for pair in zip(splits[left], twins, strict=True) if pair[1] is not None]
    if shared and overlap == "error":
      pairs = "; ".join(f"{example.where} = {twin.where}" for example, twin in shared[:3])
      more = f" and {len(shared) - 3} more" if len(shared) > 3 else ""
      side = "training side" if left == "train" else f"{left} side"
      raise UserError(
        f"{len(shared)} examples of {left} are in {right} too: {pairs}{more}: mend the files, or "
        f"set data.overlap='drop' (takes them from the {side}) or 'allow'"
      )
    dropped = 0
    if shared and overlap == "drop":  # with all wordings of their rows
      rows = {id(example.row) for example, _ in shared}
      kept = [example for example in splits[left] if id(example.row) not in rows]
      splits[left], dropped = kept, len(splits[left]) - len(kept)
      if not splits[left]:
        raise UserError(f"the {left} split is empty: all of it is in {right} too")
    prompts = {normalise(one.prompt) for one in splits[right] if one.prompt is not None}
    report[f"{left}/{right}"] = {
      "shared": len(shared),
      "dropped": dropped,
      "same_prompt": sum(
        one.prompt is not None and normalise(one.prompt) in prompts for one in splits[left]
      ),
    }
  return splits, report


def normalise(text: str) -> str:
  """Returns a text by which texts are compared: without differences of case, width and space."""
  return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _position(example: Example, salt: str) -> int:
  """Hashes a row to 64 bits; neither the order of its columns nor null columns count."""
  row = example.row if example.key is None else {"prompt": example.key}
  row = row if example.source is None else example.source
  cells = sorted((name, cell) for name, cell in row.items() if cell is not None)
  content = "\x1f".join(f"{name}\x1e{_plain(cell)}" for name, cell in cells)
  digest = hashlib.blake2b(f"{salt}\x1d{content}".encode(), digest_size=8).digest()
  return int.from_bytes(digest, "big")


def _plain(value: object) -> str:
  """Writes a cell as text, so that lists with different items have different texts."""
  if isinstance(value, dict):
    value = [part for key in sorted(value, key=str) for part in (key, value[key])]
  if isinstance(value, (list, tuple)):
    return "[" + "\x1c".join(map(_plain, value)) + "]"
  return "" if value is None else normalise(str(value))


def texts(example: Example) -> list[bytes]:
  """Hashes an example's prompt with each of its answers, with "" for none; or its key alone."""
  if example.key is not None:
    return [hashlib.blake2b(normalise(example.key).encode(), digest_size=16).digest()]
  prompt = normalise(example.prompt or "")
  return [
    hashlib.blake2b(f"{prompt}\x1d{normalise(answer)}".encode(), digest_size=16).digest()
    for answer in example.answers or [""]
  ]
