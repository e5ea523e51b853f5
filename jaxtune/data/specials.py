"""Special tokens that come twice: the text holds what jaxtune or the tokenizer adds to it anyway.

If a text begins with BOS and the tokenizer adds another one, the model gets a start that it has
never seen. An answer that holds EOS stops there when it is generated: what follows is never
generated, and the answer never equals its reference, which holds the token's letters.
"""

from __future__ import annotations

from collections.abc import Sequence

from jaxtune.data.templates import Example
from jaxtune.data.tokenizer import Tokenizer
from jaxtune.errors import UserError


def doubled(
  tokenizer: Tokenizer, prompt: list[int], answer: list[int], plain: bool = False
) -> list[str]:
  """Names what comes twice in an example: "bos", "eos", or both.

  Args:
    prompt: ids of all that stands before the answer, with the tokenizer's own special tokens.
    answer: ids of the answer, without the EOS that follows it.
    plain: whether prompt and answer are one text, which may hold EOS between its documents.
  """
  bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
  begins = bos is not None and (prompt + answer)[:2] == [bos, bos]
  ends = prompt[-2:] == [eos, eos] or (answer[-1:] == [eos] if plain else eos in answer)
  return ["bos"] * begins + ["eos"] * ends


def stripped(tokenizer: Tokenizer, example: Example, whole: bool) -> Example:
  """Takes BOS off the beginning of an example's text, and cuts its answers at their first EOS.

  Plain text, and with `whole` an encoder's prompt, loses the EOS at its end.
  """
  eos = tokenizer.eos_token
  if example.prompt is None:
    return example._replace(answers=[bare(tokenizer, one, True) for one in example.answers])
  answers = [one.partition(eos)[0] for one in example.answers]
  return example._replace(prompt=bare(tokenizer, example.prompt, whole), answers=answers)


def bare(tokenizer: Tokenizer, text: str, whole: bool) -> str:
  """Takes BOS off the beginning of a text, and of a whole one EOS off its end."""
  bos, eos = tokenizer.bos_token, tokenizer.eos_token
  while bos and text.startswith(bos):
    text = text[len(bos) :]
  while whole and text.endswith(eos):
    text = text[: -len(eos)]
  return text


def refuse(tokenizer: Tokenizer, found: Sequence[str], what: str, more: str = "") -> UserError:
  """Makes the error for what comes twice; `what` is the example's place or the prompt."""
  if "bos" in found:
    said = f"the text begins with {tokenizer.bos_token!r}, which the tokenizer adds there itself"
  else:
    said = f"the text holds {tokenizer.eos_token!r}, which ends it and is added to it anyway"
  return UserError(
    f"{what}: {said}{more}: take it out, or set data.special_tokens to 'strip' or 'allow'"
  )
