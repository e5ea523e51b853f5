"""Data sets too large for memory: read and tokenised block by block, as steps need them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from jaxtune.data import mix, sources, templates
from jaxtune.data.options import DataOptions
from jaxtune.data.padding import check_too_long, pad_token
from jaxtune.data.split import Split
from jaxtune.data.tokenizer import Tokenizer
from jaxtune.errors import UserError

Arrays = dict[str, np.ndarray]


class Stream:
  """Rows in blocks, shuffled within each block; a batch is a function of (seed, step) all the same.

  Blocks come in the order of the source, every epoch anew, so sort no source by its label. Memory
  holds two blocks at a time. Passing over blocks, as resuming does, reads them untokenised.

  Attributes:
    width: tokens of a row.
    examples: rows of the source; None until its end was reached for the first time.
    order: as in a split; () always.
  """

  order: mix.Order = ()

  def __init__(
    self,
    rows: Callable[[], Iterator[tuple[str, dict]]],
    encode: Callable[[list[dict], list[str]], Arrays],
    width: int,
    block: int,
  ):
    """Takes (place, row) pairs from `rows()`, and arrays of the same rows from `encode`."""
    self.width, self.examples = width, None
    self._rows, self._encode, self._size = rows, encode, block
    self._reader, self._next = rows(), 0  # the number of the block that the reader is at
    self._blocks: dict[int, Arrays] = {}

  def batch(self, seed: int, step: int, batch_size: int) -> Arrays:
    """Takes training batch number `step`; see `batches.batch`."""
    draw, stop, pieces = step * batch_size, (step + 1) * batch_size, []
    while draw < stop:
      epoch, place = divmod(draw, self.examples) if self.examples else (0, draw)
      number, offset = divmod(place, self._size)
      block = self._block(number)
      if block is None or offset >= len(block["tokens"]):
        continue  # beyond the end, which is now known
      order_N = mix.permutation(len(block["tokens"]), seed, epoch, number)
      rows = order_N[offset : offset + stop - draw]
      pieces.append({name: array[rows] for name, array in block.items()})
      draw += len(rows)
    return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}

  def _block(self, number: int) -> Arrays | None:
    """Tokenises a block, or finds it among the last two; None where the source ends before."""
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


def stamps(source: str | Sequence[str]) -> dict[str, str]:
  """Hashes size, first and last megabyte of each file, as "ends:HASH": the whole may take hours."""
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


def load(
  tokenizer: Tokenizer,
  options: DataOptions,
  encode: Callable[[list[templates.Example]], tuple[Split, dict]],
) -> Stream:
  """Opens data.train as a stream of prompts and answers; only its first rows are read yet.

  Args:
    options: max_length is the tokens of every row; a row that too_long="skip" or no_target="skip"
      leaves out keeps its place, with weight 0.
    encode: makes arrays of a block's examples.

  Raises:
    UserError: options that contradict each other, a source that is missing or broken.
  """
  check_too_long(options.too_long, ("skip", "truncate"))
  if options.max_length is None:
    raise UserError("data.stream needs data.max_length: the rows to come are not known")
  rows = lambda: sources.stream(options.train, "train", options.columns)
  first = list(islice(rows(), min(options.stream, 100)))
  columns = sources.Table([row for _, row in first], [], {}).columns
  form = templates.choose(columns, where=str(options.train), **options.wording())
  if len(form.templates) > 1:
    raise UserError("data.stream reads rows by one template: give one, or load the data whole")

  def encode_block(rows: list[dict], where: list[str]) -> Arrays:
    split, _ = encode(templates.render(form, rows, where))
    return _aligned(split, where, options.max_length, pad_token(tokenizer))

  return Stream(rows, encode_block, options.max_length, options.stream)


def _aligned(split: Split, where: Sequence[str], width: int, pad: int) -> Arrays:
  """Gives every row read a row of the arrays: what was skipped is a copy of another, weight 0."""
  row_of = {place: row for row, place in enumerate(split.where)}
  if not row_of:
    raise UserError(f"{where[0]} to {where[-1]}: all {len(where)} rows of the block were skipped")
  rows_N = np.array([row_of.get(place, 0) for place in where])
  kept_N = np.array([place in row_of for place in where], np.float32)
  missing = [(0, 0), (0, width - split.width)]
  arrays = {
    name: np.pad(x[rows_N], missing, constant_values=pad if name == "tokens" else 0)
    for name, x in split.arrays.items()
  }
  return arrays | {"weights": arrays["weights"] * kept_N[:, None]}
