"""Makes the token ids on which an export and its model are compared."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from jaxtune.errors import UserError
from jaxtune.models.config import Config

PROMPTS, TOKENS = 8, 64  # at most so many are compared, as logits are (prompts, tokens, vocabulary)


def make_batches(
  prompts: list[list[int]] | None, config: Config, taken: int, pad: int = 0
) -> list[tuple[np.ndarray, np.ndarray]]:
  """Makes (tokens, mask) of a right-padded batch, and of one whose prompts repeat to its length.

  Args:
    taken: number of the model's positions that the method takes.
    pad: the id that fills short rows. Random prompts do not contain it, because some models find
      padding by its id; those of the caller may, but for their last token.

  Raises:
    UserError: if no position is left for text, or all prompts are empty.
  """
  room = min(TOKENS, config.positions - taken)
  if taken and config.window is not None:  # in longer texts PyTorch's window hides the prefix
    room = min(room, config.window - taken)
  if room < 1:
    raise UserError(f"the method takes {taken} of the model's {config.positions} positions")
  if prompts is None:
    random = np.random.default_rng(0)
    draw = lambda size: (pad + random.integers(1, config.vocabulary, size)) % config.vocabulary
    prompts = [draw(size).tolist() for size in range(24, 8, -2)]
  fill = partial(_fill, ended=config.head is not None)
  prompts = [fill(p, min(len(p), room)) for p in prompts if len(p)][:PROMPTS]
  if not prompts:
    raise UserError("the certificate's prompts are all empty; pass some token ids, or none at all")
  if len({len(p) for p in prompts}) == 1:  # so that the first batch has padding
    prompts.append(fill(prompts[0], max(1, len(prompts[0]) // 2)))
  longest = max(map(len, prompts))
  tokens = np.full((len(prompts), longest), pad, np.int64)
  mask = np.zeros_like(tokens)
  for i, p in enumerate(prompts):
    tokens[i, : len(p)], mask[i, : len(p)] = p, 1
  equal = np.array([fill(p, longest) for p in prompts], np.int64)
  return [(tokens, mask), (equal, np.ones_like(equal))]


def _fill(prompt: Sequence[int], length: int, ended: bool) -> list[int]:
  """Cuts or repeats a prompt to a length; one that is `ended`, by eos say, keeps its last token."""
  tokens = np.resize(prompt, length)
  if ended:
    tokens[-1] = prompt[-1]
  return tokens.tolist()


def arrange(config: Config, tokens: np.ndarray, mask: np.ndarray) -> dict[str, np.ndarray]:
  """Returns a batch as the model's arguments.

  An encoder-decoder gets the tokens twice: as the encoder's input, and after the start tokens, cut
  to the same length, as the decoder's.
  """
  if config.encoder is None:
    return dict(tokens=tokens, mask=mask)
  start = np.tile(np.array(config.decoder_start), (len(tokens), 1))
  shift = lambda first, rest: np.concatenate([first, rest], 1)[:, : rest.shape[1]]
  outputs, outputs_mask = shift(start, tokens), shift(np.ones_like(start), mask)
  return dict(tokens=outputs, mask=outputs_mask, inputs=tokens, inputs_mask=mask)
