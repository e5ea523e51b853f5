"""Special tokens that come twice: a text holds BOS or EOS, which are added to it anyway.

If a text begins with BOS and the tokenizer adds another one, the model gets a beginning that it has
never seen. If an answer holds EOS, generation stops there: the rest is never generated, and the
answer never equals its reference, which holds the token as text.
"""

from __future__ import annotations

from collections.abc import Sequence

from jaxtune.data.templates import Example
from jaxtune.data.tokenizer import Tokenizer
from jaxtune.errors import UserError


def doubled(
  tokenizer: Tokenizer, prompt: list[int], answer: list[int], plain: bool = False
) -> list[str]:
  """Lists which special tokens come twice in an example: "bos", "eos", both or none.

  Args:
    prompt: the ids before the answer, with the special tokens that the tokenizer adds.
    answer: the ids of the answer, without the EOS that follows it.
    plain: whether prompt and answer are one plain text, which may hold EOS between its documents.
  """
  bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
  begins = bos is not None and (prompt + answer)[:2] == [bos, bos]
  ends = prompt[-2:] == [eos, eos] or (answer[-1:] == [eos] if plain else eos in answer)
  return ["bos"] * begins + ["eos"] * ends


def stripped(tokenizer: Tokenizer, example: Example, whole: bool) -> Example:
  """Returns an example without BOS at the beginning of its text, its answers cut at their EOS.

  Of plain text, and with `whole` of an encoder's prompt, only an EOS at the end is taken off.
  """
  eos = tokenizer.eos_token
  if example.prompt is None:
    return example._replace(answers=[bare(tokenizer, one, True) for one in example.answers])
  answers = [one.partition(eos)[0] for one in example.answers]
  return example._replace(prompt=bare(tokenizer, example.prompt, whole), answers=answers)


def bare(tokenizer: Tokenizer, text: str, whole: bool) -> str:
  """Returns a text without BOS at its beginning, and with `whole` without EOS at its end."""
  bos, eos = tokenizer.bos_token, tokenizer.eos_token
  while bos and text.startswith(bos):
    text = text[len(bos) :]
  while whole and text.endswith(eos):
    text = text[: -len(eos)]
  return text


def refuse(tokenizer: Tokenizer, found: Sequence[str], what: str, more: str = "") -> UserError:
  """Makes the error for tokens that come twice; `what` names the example's place or the prompt."""
  if "bos" in found:
    said = f"the text begins with {tokenizer.bos_token!r}, which the tokenizer adds there itself"
  else:
    said = f"the text holds {tokenizer.eos_token!r}, which ends it and is added to it anyway"
  return UserError(
    f"{what}: {said}{more}: take it out, or set data.special_tokens to 'strip' or 'allow'"
  )
