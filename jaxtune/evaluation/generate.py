"""Text generation with a key/value cache: greedy, temperature, top-k and top-p.

All is one compiled loop: texts are begun, continued, and those that end make room for waiting ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, Key

from jaxtune import peft
from jaxtune.evaluation import decoding, sampling
from jaxtune.models.decoder import Cache, map_rows, replace_rows


class Job(NamedTuple):
  """Holds what stays the same while N texts are generated.

  Attributes:
    prompts, mask: (N, T), token ids and which of them are real.
    keys: (N,), of the draws of each text; None for greedy ones.
    count: how many texts are to be continued, the first ones.
    together: how many texts are begun at a time.
    share: how many neighbours have the same prompt.
    new: how many tokens a text has at most.
    stops: (stop tokens,).
    draw: (logits (B, V), number of the token (B,), keys (B,)) -> tokens (B,).
    calls: of the model.
  """

  prompts: Int[Array, "N T"]
  mask: Bool[Array, "N T"]
  keys: Key[Array, " N"] | None
  count: Int[ArrayLike, ""]
  together: int
  share: int
  new: int
  stops: Int[Array, " stops"]
  draw: Callable
  calls: decoding.Calls


class Texts(NamedTuple):
  """Holds what has been generated of N texts, of which B are continued at a time.

  Attributes:
    cache: of the B rows.
    numbers: (B,), the number of the text that each row continues; N where it continues none.
    last: (B,), the last token of each row.
    tokens: (N, new), those drawn so far.
    counts: (N,), how many.
    begun: (), how many texts have been begun; the others wait.
  """

  cache: Cache
  numbers: Int[Array, " B"]
  last: Int[Array, " B"]
  tokens: Int[Array, "N new"]
  counts: Int[Array, " N"]
  begun: Int[Array, ""]


def generate(
  model: nn.Module,
  adapted: peft.Adapted,
  prompts_NT: Int[Array, "N T"],
  mask_NT: Bool[Array, "N T"],
  *,
  max_new_tokens: int,
  stop_tokens: tuple[int, ...],
  rows: int | None = None,
  share: int = 1,
  count: Int[ArrayLike, ""] | None = None,
  which_N: Int[Array, " N"] | None = None,
  temperature: float = 0.0,
  top_k: int | None = None,
  top_p: float | None = None,
  key: Key[Array, ""] | None = None,
  numbers_N: Int[Array, " N"] | None = None,
) -> Int[Array, "N new"]:
  """Continues left-padded prompts, or answers them; pure, to be jitted by the caller.

  An encoder-decoder reads the prompts in its encoder and begins its output with
  `config.decoder_start`, which is not returned.

  Args:
    prompts_NT, mask_NT: token ids and which of them are real; padding is on the left.
    max_new_tokens: how many tokens at most.
    stop_tokens: a text ends with the first token that it draws of these.
    rows: how many texts are continued at a time; default all. The others wait, and take the places
      of those that end, a quarter of the rows at a time (continuous batching).
    share: that so many texts, one after another, have the same prompt, which is then processed once
      for all of them that are begun at a time.
    count: how many texts are to be continued, the first ones; default all.
    which_N: which of several adapters continues each text; see `decoding.calls`.
    temperature: 0 is greedy; then the other options are not used.
    top_k: draw among the k likeliest tokens.
    top_p: draw among the likeliest tokens that together reach probability p.
    key: of the draws. Each text draws by a key of its own, which is made of `key` and its number,
      so that it does not depend on the texts beside it.
    numbers_N: numbers of the texts; default 0, 1, 2, ...

  Returns:
    (N, max_new_tokens) token ids; every token after a text's stop token repeats it.
  """
  total = len(prompts_NT)
  rows = min(rows or total, total)
  together = rows if rows == total else -(-rows // 4)
  numbers_N = jnp.arange(total) if numbers_N is None else numbers_N
  job = Job(
    *map(jnp.asarray, (prompts_NT, mask_NT)),
    jax.vmap(partial(jax.random.fold_in, key))(numbers_N) if temperature else None,
    total if count is None else count,
    together,
    math.gcd(share, together),
    max_new_tokens,
    jnp.asarray(stop_tokens),
    partial(sampling.draw, temperature=temperature, top_k=top_k, top_p=top_p),
    decoding.calls(model, adapted, max_new_tokens, which_N),
  )
  texts = jax.lax.while_loop(
    lambda texts: anywhere(_goes_on(texts) | (texts.begun < job.count)),
    lambda texts: _continue(job, _begin(job, texts)),
    _none_yet(job, rows),
  )
  at_Nn = jnp.minimum(jnp.arange(max_new_tokens)[None], jnp.maximum(texts.counts - 1, 0)[:, None])
  return jnp.take_along_axis(texts.tokens, at_Nn, 1)


@custom_vmap
def anywhere(true: Bool[Array, ""]) -> Bool[Array, ""]:
  """Says whether something is true, under vmap: in any of the mapped cases.

  A loop whose condition is the same in all cases does not choose in each between its old and its
  new state, after every step.
  """
  return true


@anywhere.def_vmap
def _anywhere(size: int, mapped: list[bool], true: Bool[Array, " E"]) -> tuple[Array, bool]:
  return (anywhere(true.any()) if mapped[0] else true), False


def _goes_on(texts: Texts) -> Bool[Array, ""]:
  """Says whether any row continues a text."""
  return (texts.numbers < len(texts.tokens)).any()


def _has_room(job: Job, texts: Texts) -> Bool[Array, ""]:
  """Says whether texts wait, and there are rows for as many as are begun together."""
  waiting = job.count - texts.begun
  free = (texts.numbers == len(texts.tokens)).sum()
  return (waiting > 0) & (free >= jnp.minimum(job.together, waiting))


def _none_yet(job: Job, rows: int) -> Texts:
  """Returns texts of which none has been begun, and an empty cache."""
  total, length = job.prompts.shape
  outline = lambda dtype: jax.ShapeDtypeStruct((rows, length), dtype)
  numbers_B = jnp.full(rows, total)
  _, cache = jax.eval_shape(job.calls.prefill, numbers_B, outline(jnp.int32), outline(bool))
  return Texts(
    jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), cache),
    numbers_B,
    jnp.zeros(rows, jnp.int32),
    jnp.zeros((total, job.new), jnp.int32),
    jnp.zeros(total, jnp.int32),
    jnp.zeros((), jnp.int32),
  )


def _begin(job: Job, texts: Texts) -> Texts:
  """Gives waiting texts to rows that continue none, and draws the first token of each."""
  total = len(texts.tokens)
  rows_R = jnp.argsort(texts.numbers != total, stable=True)[: job.together]
  numbers_R = texts.begun + jnp.arange(job.together)
  # Under vmap, texts are also begun where another trial alone has the room.
  chosen_R = _has_room(job, texts) & (texts.numbers[rows_R] == total) & (numbers_R < job.count)
  numbers_R = jnp.where(chosen_R, numbers_R, total)
  own = lambda x_NT: x_NT.at[numbers_R].get(mode="clip")
  asked = (numbers_R, own(job.prompts), own(job.mask))
  logits_RV, cache = job.calls.prefill(*(x[:: job.share] for x in asked))
  if job.share > 1:
    logits_RV = jnp.repeat(logits_RV, job.share, 0)
    cache = map_rows(lambda axis, x: jnp.repeat(x, job.share, axis), cache)
  texts, going_R, drawn_R = _advance(job, texts, numbers_R, logits_RV)
  put = lambda old_B, new_R: old_B.at[rows_R].set(jnp.where(chosen_R, new_R, old_B[rows_R]))
  return texts._replace(
    cache=replace_rows(texts.cache, cache, rows_R, chosen_R),
    numbers=put(texts.numbers, going_R),
    last=put(texts.last, drawn_R),
    begun=texts.begun + chosen_R.sum(),
  )


def _continue(job: Job, texts: Texts) -> Texts:
  """Draws tokens of every row, until all texts have ended or waiting ones can be begun."""

  def step(texts: Texts) -> Texts:
    logits_BV, cache = job.calls.decode(texts.numbers, texts.last, texts.cache)
    texts, numbers_B, last_B = _advance(job, texts, texts.numbers, logits_BV)
    return texts._replace(cache=cache, numbers=numbers_B, last=last_B)

  texts = jax.lax.while_loop(
    lambda texts: anywhere(_goes_on(texts)) & ~anywhere(_has_room(job, texts)),
    step,
    texts._replace(cache=job.calls.unstack(texts.cache)),
  )
  return texts._replace(cache=job.calls.stack(texts.cache))


def _advance(
  job: Job, texts: Texts, numbers_B: Int[Array, " B"], logits_BV: Float[Array, "B V"]
) -> tuple[Texts, Int[Array, " B"], Int[Array, " B"]]:
  """Draws a token of each text; returns also the numbers, N for texts that end, and the tokens."""
  at_B = texts.counts.at[numbers_B].get(mode="clip")
  keys_B = None if job.keys is None else job.keys[numbers_B]
  drawn_B = job.draw(logits_BV, at_B, keys_B)
  ends_B = jnp.isin(drawn_B, job.stops) | (at_B + 1 == job.new)
  texts = texts._replace(
    tokens=texts.tokens.at[numbers_B, at_B].set(drawn_B, mode="drop"),
    counts=texts.counts.at[numbers_B].add(1, mode="drop"),
  )
  return texts, jnp.where(ends_B, len(texts.tokens), numbers_B), drawn_B
