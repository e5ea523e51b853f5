"""Data sets that are too large for memory, read and tokenised in blocks when steps need them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain, islice
from pathlib import Path

import numpy as np

from jaxtune.data import conversations, divide, mix, sources, templates
from jaxtune.data.options import DataOptions
from jaxtune.data.padding import check_too_long, pad_token
from jaxtune.data.split import Split
from jaxtune.data.tokenizer import Tokenizer
from jaxtune.errors import UserError

Arrays = dict[str, np.ndarray]


class Stream:
  """Training data in blocks of rows; a batch is a function of (seed, step), as that of a split.

  Blocks come in the order of the source, in every epoch again, and the rows of each are shuffled.
  So a source must not be sorted by its label. Memory holds two blocks at a time. A resumed run
  reads the blocks before its step, but does not tokenise them.

  Attributes:
    width: the tokens of a row.
    examples: the rows of the source; None until its end was reached for the first time.
    order: always (), since the examples of a stream are not arranged.
  """

  order: mix.Order = ()

  def __init__(
    self,
    rows: Callable[[], Iterator[tuple[str, dict]]],
    encode: Callable[[list[dict], list[str]], Arrays],
    width: int,
    block: int,
  ):
    """Makes a stream of blocks of rows.

    Args:
      rows: () -> (place, row) of each row of the source.
      encode: (rows, places) -> arrays with a row for each.
      block: the rows of a block.
    """
    self.width, self.examples = width, None
    self._rows, self._encode, self._size = rows, encode, block
    self._reader, self._next = rows(), 0  # the number of the block that the reader is at
    self._blocks: dict[int, Arrays] = {}

  def batch(self, seed: int, step: int, batch_size: int) -> Arrays:
    """Returns training batch number `step`; see `batches.batch`."""
    draw, stop, pieces = step * batch_size, (step + 1) * batch_size, []
    while draw < stop:
      epoch, place = divmod(draw, self.examples) if self.examples else (0, draw)
      number, offset = divmod(place, self._size)
      block = self._block(number)
      if block is None or offset >= len(block["tokens"]):
        continue  # it is beyond the end of the source, which is known now
      order_X = mix.permutation(len(block["tokens"]), seed, epoch, number)
      rows = order_X[offset : offset + stop - draw]
      pieces.append({name: array[rows] for name, array in block.items()})
      draw += len(rows)
    return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}

  def _block(self, number: int) -> Arrays | None:
    """Returns a block, from memory if it is one of the last two; None beyond the source's end."""
    if number in self._blocks:
      return self._blocks[number]
    if number < self._next:
      self._reader, self._next = self._rows(), 0
    pairs = []
    while self._next <= number:
      pairs = list(islice(self._reader, self._size))
      self._next += 1
      if len(pairs) < self._size:
        self.examples = (self._next - 1) * self._size + len(pairs)
        if not pairs or self._next <= number:
          return None
    arrays = self._encode([row for _, row in pairs], [place for place, _ in pairs])
    self._blocks = dict([*self._blocks.items()][-1:]) | {number: arrays}
    return arrays


def hash_ends(source: str | Sequence[str]) -> dict[str, str]:
  """Hashes each file's size and its first and last megabyte, as hashing it whole takes long.

  Returns:
    {file: "ends:HASH"}; hub names are left out.
  """
  megabyte, hashes = 2**20, {}
  for name in sources.names(source):
    path = Path(name).expanduser()
    if path.is_file():  # else a hub name
      with path.open("rb") as file:
        size = file.seek(0, 2)
        digest = hashlib.sha256(str(size).encode())
        for start in (0, max(size - megabyte, 0)):
          file.seek(start)
          digest.update(file.read(megabyte))
      hashes[name] = "ends:" + digest.hexdigest()
  return hashes


def _first_rows(
  rows: Callable[[], Iterator[tuple[str, dict]]], options: DataOptions
) -> tuple[list, list]:
  """Returns the first rows of a source, and where they stand."""
  pairs = list(islice(rows(), min(options.stream, 100)))
  if not pairs:
    raise UserError(
      f"data.only is {options.only}, expected values that rows of train have in these columns"
    )
  return [row for _, row in pairs], [place for place, _ in pairs]


def _form(columns: Sequence[str], options: DataOptions) -> templates.Format:
  """Chooses how rows with these columns are read, by one template."""
  spoken = conversations.column(columns)
  if spoken and options.template is None and options.text is None:
    raise UserError(
      f"{options.train}: column {spoken!r} holds conversations, which data.stream does not read: "
      "load the data whole, or set data.template or data.text"
    )
  form = templates.choose(columns, where=str(options.train), **options.wording())
  if len(form.templates) > 1:
    raise UserError("data.stream reads rows by one template: give one, or load the data whole")
  return form


def load(
  tokenizer: Tokenizer,
  options: DataOptions,
  encode: Callable[[list[templates.Example]], tuple[Split, dict]],
  held: Sequence[templates.Example] = (),
) -> Stream:
  """Opens data.train as a stream of prompts and answers; only its first rows are read yet.

  Args:
    options: every row has max_length tokens. A row that is left out by too_long="skip",
      no_target="skip" or overlap="drop" keeps its place, with weight 0.
    encode: (examples) -> (split, counts).
    held: the examples of other splits, which are not trained on if overlap is "drop".

  Raises:
    UserError: options that contradict each other, a source that is missing or broken.
  """
  check_too_long(options.too_long, ("skip", "truncate"))
  if options.max_length is None:
    raise UserError("data.stream needs data.max_length: the rows to come are not known")
  whole = partial(sources.stream, options.train, "train", options.columns)
  only = {column: sources.texts_of(values) for column, values in (options.only or {}).items()}
  rows = lambda: (pair for pair in whole() if sources.has(pair[1], only))
  first = _first_rows(rows, options)
  form = _form(sources.Table(*first, {}).columns, options)

  known = set(chain.from_iterable(map(divide.texts, held))) if options.overlap == "drop" else set()

  def encoded(rows: list[dict], where: list[str]) -> Split | None:
    examples = templates.render(form, rows, where)
    kept = [example for example in examples if known.isdisjoint(divide.texts(example))]
    split = encode(kept)[0] if kept else None
    return split if split and split.where else None

  start = encoded(*first)
  if start is None:
    raise UserError(
      f"{first[1][0]} to {first[1][-1]}: all {len(first[1])} rows are skipped (too long, without "
      "an answer, or in another split too), expected one to train on among the first of a stream"
    )

  def encode_block(rows: list[dict], where: list[str]) -> Arrays:
    # Where all are skipped, others stand in their places, with weight 0.
    split = encoded(rows, where) or start._replace(where=[])
    return _aligned(split, where, options.max_length, pad_token(tokenizer))

  return Stream(rows, encode_block, options.max_length, options.stream)


def _aligned(split: Split, where: Sequence[str], width: int, pad: int) -> Arrays:
  """Returns arrays with a row for each place in `where`, `width` tokens wide.

  Where an example was skipped the row is a copy of another with weight 0.
  """
  row_of = {place: row for row, place in enumerate(split.where)}
  rows_X = np.array([row_of.get(place, 0) for place in where])
  kept_X = np.array([place in row_of for place in where], np.float32)
  missing = [(0, 0), (0, width - split.width)]
  arrays = {
    name: np.pad(x[rows_X], missing, constant_values=pad if name == "tokens" else 0)
    for name, x in split.arrays.items()
  }
  return arrays | {"weights": arrays["weights"] * kept_X[:, None]}
