"""Text to tokens, and which of them are trained on.

Prompt and answer are tokenised apart and their ids joined, so that the prompt's ids in training are
those that generation will see. A merge across the border is never learnt: a template ends in the
newline or space that separates the two.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from jaxtune import schema
from jaxtune.data import mix, padding, specials
from jaxtune.data.templates import Example
from jaxtune.errors import UserError, nearest

TOO_LONG = ("error", "skip", "truncate", "chunk")
NO_TARGET = ("error", "skip")
SHORTEST_TAIL = 16  # a document's last chunk is kept from this many tokens on
_BATCH = 1000


class Split(NamedTuple):
  """Tokenised examples, right padded.

  Attributes:
    arrays: what a batch is cut from, by name; the first axis is the example, N. For sft: "tokens"
      (N, T) int32, "mask" (N, T) bool, true on real tokens, and "weights" (N, T) float32, 1 where
      the token is a target (the objective shifts, not we).
    prompts: ids up to the answer; [] for plain text.
    references: accepted answers, the trained one first; [] for plain text.
    rows: as they were read.
    where: file and line of each.
    tasks: of a mixture, the name of each example's task (as long as the arrays).
    choices: the answers that each example's answer is chosen from, where there are any.
    order: in which training draws them, from `batches.arrange`; () for all alike.
  """

  arrays: dict[str, np.ndarray]
  prompts: list[list[int]]
  references: list[list[str]]
  rows: list[dict]
  where: list[str]
  tasks: list[str] | None = None
  choices: list[list[str]] | None = None
  order: mix.Order = ()

  @property
  def examples(self) -> int:
    return len(self.arrays["tokens"])

  @property
  def width(self) -> int:
    """T: the tokens of a padded row."""
    return self.arrays["tokens"].shape[-1]


class _Item(NamedTuple):
  ids: list[int]
  trained_from: int  # position of the first target
  prompt: list[int]
  example: Example
  doubled: list[str]  # the special tokens that come twice


def tokenize(
  tokenizer,
  examples: Sequence[Example],
  *,
  start: tuple[int, ...] = (),
  max_length: int | None = None,
  too_long: str = "error",
  no_target: str = "error",
  special_tokens: str = "error",
) -> tuple[Split, dict]:
  """Tokenises prompt, answer and stop token.

  A beginning-of-sequence token comes first where the tokenizer puts one itself; the stop token is
  the tokenizer's eos. Trained on are the answer and the stop token; of plain text every token but
  the first.

  For an encoder-decoder, `start` are the tokens that every output begins with. The prompt, with
  the special tokens that the tokenizer puts around a text, is "inputs" (N, S) with "inputs_mask";
  "tokens" are `start`, the answer and the stop token; and max_length holds for either.

  Args:
    max_length: the most tokens of an example; None: as many as the longest has. Rows are padded to
      the longest example, rounded up to a multiple of 8, but never beyond max_length.
    too_long: "error"; "skip"; "truncate" cuts the end; "chunk" (plain text only) cuts each document
      into consecutive windows of max_length, the last of which is kept from 16 tokens on.
    no_target: "error" or "skip", for an empty answer and for one that truncation cut off.
    special_tokens: "error", "strip" or "allow", for a text that holds the BOS or the EOS that is
      put there anyway; see `specials`.

  Returns:
    The split, and counts: kept, skipped by reason, truncated, tokens, trained_tokens, longest; and
    of examples whose texts hold "bos" or "eos", special_tokens.

  Raises:
    UserError: by the policies, with file and line; or a tokenizer without a stop token.
  """
  check_choice("too_long", too_long, TOO_LONG)
  check_choice("no_target", no_target, NO_TARGET)
  check_choice("special_tokens", special_tokens, specials.POLICIES)
  if max_length is not None and max_length < 2:
    raise UserError(f"data.max_length is {max_length}: expected 2 or more tokens.")
  if tokenizer.eos_token_id is None:
    raise UserError("The tokenizer has no eos token, so answers cannot end: set its `eos_token`.")
  items = list(_encode(tokenizer, examples, start))
  items, doubled = _settled(tokenizer, items, special_tokens, start)
  most = lambda item: max(len(item.ids), len(item.prompt))
  long = [item for item in items if max_length is not None and most(item) > max_length]
  if long and too_long == "error":
    where = [item.example.where for item in items]
    raise padding.too_long(list(map(most, items)), where, max_length, TOO_LONG[1:])
  items, short_tails = _shorten(items, max_length, too_long, bool(start))
  empty = [item for item in items if item.trained_from >= len(item.ids)]
  if empty and no_target == "error":
    raise UserError(_no_target(empty, len(items)))
  items = [item for item in items if item.trained_from < len(item.ids)]
  skips = too_long == "skip"
  skipped = {"too_long": skips * len(long), "no_target": len(empty), "short_tail": short_tails}
  split = _pack(tokenizer, items, max_length, bool(start))
  return split, {
    "kept": len(items),
    "skipped": {reason: count for reason, count in skipped.items() if count},
    "truncated": len(long) * (not skips),
    **measures(split),
    **doubled,
  }


def encode_prompts(
  tokenizer,
  prompts: Sequence[str],
  whole: bool = False,
  special_tokens: str = "allow",
  where: Sequence[str] | None = None,
) -> list[list[int]]:
  """Tokenises prompts as training does: special tokens in front, no stop token behind.

  Args:
    whole: as an encoder reads them: with all special tokens that the tokenizer puts.
    special_tokens: for prompts that hold these tokens themselves; see `tokenize`.
    where: places of the prompts, for errors.
  """
  ids = _ids(tokenizer, prompts, add_special_tokens=True)
  ids = ids if whole else _opened(tokenizer, ids)
  for n, one in enumerate(ids if special_tokens != "allow" else ()):
    if found := specials.doubled(tokenizer, one, []):
      if special_tokens == "error":
        what = where[n] if where else f"the prompt {schema.shown(prompts[n])}"
        raise specials.refuse(tokenizer, found, what)
      text = specials.bare(tokenizer, prompts[n], whole)
      (ids[n],) = encode_prompts(tokenizer, [text], whole, "error")
  return ids


def _opened(tokenizer, ids: list[list[int]]) -> list[list[int]]:
  """Leaves of a text's special tokens those in front: an answer is to follow."""
  added = tokenizer("a").input_ids
  stops = added[-1:] == [tokenizer.eos_token_id]
  missing = getattr(tokenizer, "add_bos_token", False) and added[:1] != [tokenizer.bos_token_id]
  front = [tokenizer.bos_token_id] if missing and tokenizer.bos_token_id is not None else []
  return [front + (one[:-1] if stops else one) for one in ids]


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
  """Raises UserError naming the nearest where `value` is not one of `choices`."""
  if value not in choices:
    raise UserError(f"data.{name}={value!r} is unknown. {nearest(value, choices)}")


def _ids(tokenizer, texts: Sequence[str], **options) -> list[list[int]]:
  if not texts:
    return []
  return tokenizer(
    list(texts), return_attention_mask=False, return_token_type_ids=False, verbose=False, **options
  ).input_ids


def _encode(tokenizer, examples: Sequence[Example], start: tuple[int, ...]) -> Iterator[_Item]:
  bar = tqdm(total=len(examples), desc="Tokenising", unit=" rows", disable=len(examples) < 10_000)
  with bar:
    for at in range(0, len(examples), _BATCH):
      some = examples[at : at + _BATCH]
      prompts = encode_prompts(tokenizer, [one.prompt or "" for one in some], whole=bool(start))
      texts = [one.answers[0] if one.answers else "" for one in some]
      answers = _ids(tokenizer, texts, add_special_tokens=False)
      for one, text, prompt, answer in zip(some, texts, prompts, answers, strict=True):
        if start and one.prompt is None:
          raise UserError(f"{one.where}: plain text has no prompt, which an encoder needs")
        ids = [*(start or prompt), *answer, tokenizer.eos_token_id]
        # The first token has nothing before it to be predicted from.
        trained_from = 1 if one.prompt is None else max(len(start or prompt), 1)
        doubled = specials.doubled(tokenizer, prompt, answer, one.prompt is None)
        yield _Item(ids, trained_from if text.strip() else len(ids), prompt, one, doubled)
      bar.update(len(some))


def _settled(
  tokenizer, items: list[_Item], policy: str, start: tuple[int, ...]
) -> tuple[list[_Item], dict]:
  """Applies the policy to special tokens that come twice, and counts them."""
  count = Counter(name for item in items for name in item.doubled)
  if count and policy == "strip":
    twice = (item.example for item in items if item.doubled)
    bare = [specials.stripped(tokenizer, example, bool(start)) for example in twice]
    again = _encode(tokenizer, bare, start)
    items = [next(again) if item.doubled else item for item in items]
  twice = [item for item in items if item.doubled]
  if twice and policy != "allow":
    more = f" (in {len(twice)} of {len(items)} examples)"
    raise specials.refuse(tokenizer, twice[0].doubled, twice[0].example.where, more)
  return items, {"special_tokens": dict(count)} if count else {}


def _shorten(
  items: list[_Item], max_length: int | None, too_long: str, seq2seq: bool
) -> tuple[list[_Item], int]:
  """Applies the policy to what is too long; also counts the chunks too short to keep."""
  if max_length is None:
    return items, 0
  kept, tails = [], 0
  for item in items:
    side = len(item.prompt) if seq2seq else 0
    if max(len(item.ids), side) <= max_length:
      kept.append(item)
    elif too_long == "truncate":
      if side > max_length:  # a text to be encoded keeps its end token
        item = item._replace(prompt=item.prompt[: max_length - 1] + item.prompt[-1:])
      kept.append(item._replace(ids=item.ids[:max_length]))
    elif too_long == "chunk":
      if item.example.prompt is not None:
        raise UserError(
          f"{item.example.where}: too_long='chunk' is for plain text, and this has a prompt. "
          "Use 'truncate' or 'skip'."
        )
      for start in range(0, len(item.ids), max_length):
        ids = item.ids[start : start + max_length]
        if len(ids) >= min(SHORTEST_TAIL, max_length):
          kept.append(item._replace(ids=ids))
        else:
          tails += 1
  return kept, tails


def _pack(tokenizer, items: Sequence[_Item], max_length: int | None, seq2seq: bool) -> Split:
  made = _padded(tokenizer, [item.ids for item in items], max_length)
  starts_N1 = np.array([item.trained_from for item in items], np.int64)[:, None]
  made["weights"] = made["mask"] & (np.arange(made["mask"].shape[1]) >= starts_N1)
  made["weights"] = made["weights"].astype(np.float32)
  if seq2seq:
    inputs = _padded(tokenizer, [item.prompt for item in items], max_length)
    made |= {"inputs": inputs["tokens"], "inputs_mask": inputs["mask"]}
  plain = [item.example.prompt is None for item in items]
  return Split(
    arrays=made,
    prompts=[[] if p else item.prompt for p, item in zip(plain, items, strict=True)],
    references=[[] if p else item.example.answers for p, item in zip(plain, items, strict=True)],
    rows=[item.example.row for item in items],
    where=[item.example.where for item in items],
  )


def _padded(tokenizer, rows: list[list[int]], max_length: int | None) -> dict[str, np.ndarray]:
  width = padding.width(rows, max_length)
  lengths_N1 = np.array([len(row) for row in rows], np.int64)[:, None]
  tokens_NT = padding.pad(rows, width, padding.pad_token(tokenizer))
  return {"tokens": tokens_NT, "mask": np.arange(width) < lengths_N1}


def measures(split: Split) -> dict:
  """Counts the tokens of a split and hashes its arrays."""
  digest = hashlib.sha256()
  for name, array in sorted(split.arrays.items()):
    digest.update(repr((name, array.shape, array.dtype.str)).encode())
    digest.update(array.tobytes())
  return {
    "tokens": int(split.arrays["mask"].sum()),
    "trained_tokens": int(np.count_nonzero(split.arrays["weights"])),
    "longest": int(split.arrays["mask"].sum(axis=-1).max(initial=0)),
    "sha256": digest.hexdigest(),
  }


def _no_target(empty: Sequence[_Item], total: int) -> str:
  places = ", ".join(item.example.where for item in empty[:3])
  return (
    f"{places}: no token to train on (the answer is empty, or was cut off); "
    f"{len(empty)} of {total} examples. Mend them, or set data.no_target='skip'."
  )
