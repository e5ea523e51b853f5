"""Prompts alone, which a policy answers itself while it is trained.

Rows are those of supervised training: text with a prompt, or conversations, whose last turn is left
out if it is the assistant's. An answer is not needed, unless a template of a file asks for one;
where a row has one, it is the reference that rewards and metrics compare with.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jaxtune.data import conversations, divide, padding, reading
from jaxtune.data.encode import chat, text
from jaxtune.data.options import DataOptions, EncodeOptions
from jaxtune.data.reading import Reading
from jaxtune.data.sources import Table
from jaxtune.data.split import Split, counts
from jaxtune.data.templates import BLANK, Example, sandbox
from jaxtune.data.tokenizer import Tokenizer
from jaxtune.errors import UserError

NO_ANSWER = "."  # is encoded in place of an answer that a row does not have


def read(table: Table, name: str, options: DataOptions) -> Reading:
  """Reads text or conversations; a template, or a column `prompt` or `instruction`, is enough.

  Two splits never share a prompt, whatever its answers are, as a policy answers it itself.

  Raises:
    UserError: a prompt without a word in it.
  """
  known, turns = set(table.columns), conversations.column(table.columns)
  if options.template is None and options.answer is None and not turns:
    for prompt, answer in (("prompt", "completion"), ("instruction", "output")):
      if prompt in known and answer not in known:
        table = table._replace(rows=[row | {answer: ""} for row in table.rows])
        break
  if options.template is not None and options.answer is None and options.text is None:
    given = [options.template] if isinstance(options.template, str) else options.template
    if any(map(sandbox.is_template, given)):  # those of files bring their answers
      options = options._replace(answer=BLANK)
  found = reading.read_text(table, name, options, asked=True)
  for example in found.heads:
    if not example.conversation and not (example.prompt or "").strip():
      raise UserError(f"{example.where}: the prompt is empty, expected a text to be answered")
  first: dict[str, dict] = {}  # the row by which all of one prompt are drawn
  groups = []
  for group in found.groups:
    prompt = group[0].prompt
    source = first.setdefault(divide.normalise(prompt), group[0].row)
    groups.append([example._replace(key=prompt, source=source) for example in group])
  return found._replace(groups=groups)


def encode(
  tokenizer: Tokenizer, examples: Sequence[Example], options: EncodeOptions
) -> tuple[Split, dict]:
  """Encodes prompts as `encode.text` or `encode.chat` does before an answer.

  tokens and mask are (X, T), weights (X, T) are 1 on all tokens of the prompt, and example (X,) is
  its number, by which the rows, prompts and references of a batch are found.

  Returns:
    The split, whose references are [""] where a row has no answer; and its counts.
  """
  conversation = bool(examples) and examples[0].conversation
  # Whether a prompt is kept does not depend on its answer: only the prompt's own length counts.
  if conversation:
    filled = [example if example.answers[0] else _ended(example) for example in examples]
  else:
    filled = [example._replace(answers=[NO_ANSWER, *example.answers]) for example in examples]
  read_from = {id(one.row): example.row for one, example in zip(filled, examples, strict=True)}
  whole = options._replace(turns="last", max_length=None)
  split, counted = (chat if conversation else text).encode(tokenizer, filled, whole)
  lengths = list(map(len, split.prompts))
  long = {*padding.find_too_long(lengths, split.where, options, ("skip",))}
  pick = lambda values: [value for at, value in enumerate(values) if at not in long]
  prompts, references = pick(split.prompts), pick(split.references)
  if not conversation:
    references = [answers or [""] for _, *answers in references]
  arrays = padding.pad_tokens(tokenizer, prompts, options.max_length)
  arrays["weights"] = arrays["mask"].astype(np.float32)
  arrays["example"] = np.arange(len(prompts), dtype=np.int64)
  rows = [read_from[id(row)] for row in pick(split.rows)]
  split = Split(arrays, prompts, references, rows, pick(split.where))
  more = {key: counted[key] for key in ("stop_tokens", "chat_template") if key in counted}
  return split, counts(split, counted["skipped"] | {"too_long": len(long)}, **more)


def _ended(example: Example) -> Example:
  """Returns a conversation with an answer to its last turn, in a row of its own."""
  name = conversations.column(tuple(example.row))
  turns = [*example.row[name], {"role": "assistant", "content": NO_ANSWER}]
  return example._replace(row=example.row | {name: turns})
