"""Prompt tuning: trained vectors before the embedded tokens, [P; E(x)] (Lester et al. 2021).

As in PEFT, the model reads the vectors as it reads embedded tokens. They take positions 0 .. P-1,
real tokens P, P+1, ...; learned positions, BERT's token type 0 and the norm of embeddings apply to
them, Gemma's scale of embeddings does not. In an encoder-decoder the encoder reads them, and the
decoder attends to their states.

They stand directly before a row's first real token, wherever its padding is, so that windows and
relative biases count the same distances in every batch. A head reads only the states of real
tokens: BERT's pooler reads [CLS] here, but the first vector of the prompt in PEFT.

A packed row has one prompt, which every example sees; each example's positions start behind it.
Layers with a window count slots, so examples later in a row are further from the prompt than they
would be alone.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxtune import peft
from jaxtune.errors import UserError
from jaxtune.models.context import ANY, Context, Mask
from jaxtune.schema import Positive, Width


def method(
  length: Width = 20,
  initialise: Literal["random", "vocabulary", "text"] = "random",
  text: str | None = None,
  init_scale: Positive = 0.5,
) -> peft.Method:
  """Puts trained vectors before the text.

  Args:
    length: P, the number of virtual tokens, which take as many of the model's positions.
    initialise: how the vectors start. "random": uniform in +-init_scale; "vocabulary": the
      embeddings of tokens drawn at random; "text": those of the tokens of `text`.
    text: the text that the prompt starts as, repeated or cut to `length` tokens; to be given with
      "text" alone. It gets no special tokens, whereas PEFT keeps the tokenizer's own.
    init_scale: bound of the "random" start.
  """
  if (initialise == "text") != bool(text):
    raise UserError(
      f"method.initialise is {initialise!r} and method.text is {text!r}: expected a text with "
      "initialise = 'text', and only then"
    )
  make = partial(_draw, length=length, initialise=initialise, text=text, bound=init_scale)
  return peft.Method(
    "prompt",
    init=partial(init, make=make, length=length),
    intercept=intercept,
    prepends=True,
    groupable=("length", "initialise", "text", "init_scale"),
    padded_axes={"prompt": (-2,), "mask": (-1,)},
    positions=length,
    options=dict(length=length),
  )


def init(
  key: Array, sites: dict[str, peft.Site], frozen: peft.Frozen, *,
  make: Callable, length: int,
) -> tuple[peft.Arrays, peft.Arrays]:  # fmt: skip
  """Makes the arrays of a method that puts a prompt before the text, as `Method.init` does.

  Args:
    make: (key, site, frozen) -> trained arrays of the trunk that reads the prompt, at its `site`.
    length: P, the length of the mask that every trunk has.
  """
  trunks = {path: site for path, site in sites.items() if site.kind == "Trunk"}
  reader = "encoder" if "encoder" in trunks else "trunk"
  trained = {reader: make(peft.site_key(key, reader), trunks[reader], frozen)}
  return trained, {path: {"mask": jnp.ones(length, bool)} for path in trunks}


def _draw(
  key: Array, site: peft.Site, frozen: peft.Frozen, *,
  length: int, initialise: str, text: str | None, bound: float,
) -> dict[str, Float[Array, "P D"]]:  # fmt: skip
  if initialise == "random":
    return {"prompt": peft.draw(peft.uniform(bound), key, (length, site.input), axis=0)}
  table_VD = frozen.weight("embed/embedding")
  if initialise == "vocabulary":
    token = partial(jax.random.randint, minval=0, maxval=table_VD.shape[0])
    ids_P = peft.draw(token, key, (length,), axis=0)
  else:
    ids_P = jnp.asarray(_ids(text, frozen.tokenize, length))
  return {"prompt": table_VD[ids_P] * site.config.embed_scale}


def _ids(text: str, tokenize: Callable | None, length: int) -> list[int]:
  if tokenize is None:
    raise UserError("method.initialise is 'text', but the model has no tokenizer to read it with")
  ids = list(tokenize(text))
  if not ids:
    raise UserError(f"method.text is {text!r}, expected a text of one token or more")
  return (ids * -(-length // len(ids)))[:length]


def intercept(
  call: peft.Call, x_BTD: Float[Array, "B T D"], context: Context
) -> tuple[Float[Array, "B S D"], Any]:
  """Wraps a trunk's call: puts the prompt in. A cache holds it from then on.

  Returns:
    The states and the cache. S is P + T for an encoder-decoder's encoder, whose decoder attends to
    the prompt's states, else T.
  """
  module, real_P = call.module, call.arrays["mask"]
  if "prompt" not in call.arrays:  # a decoder, whose encoder has read the prompt
    states, seen_BS = context.encoded
    _, inside_BS = _prompt_slots(seen_BS, real_P)
    encoded = states, inside_BS | _pad_left(seen_BS, real_P)
    return call.next_fn(x_BTD, context._replace(encoded=encoded))
  if context.index is not None:
    return call.next_fn(x_BTD, context)
  prompt_PD = call.arrays["prompt"]  # cast where it is read, so that its gradients add up in fp32
  types = getattr(module.parent, "types", None)
  if types is not None:  # BERT adds the embedding of a token type outside its trunk
    prompt_PD = prompt_PD + types(jnp.zeros(len(prompt_PD), jnp.int32))
  read = lambda i_BT: prompt_PD[i_BT].astype(x_BTD.dtype)
  fill = lambda x_BTD, i_BT, inside_BT: jnp.where(inside_BT[..., None], read(i_BT), x_BTD)
  real_BS = context.mask.keys
  index_BT, inside_BT = _prompt_slots(real_BS, real_P)
  first_B1 = jnp.take_along_axis(context.positions, real_BS.argmax(1)[:, None], 1)
  behind_BT = _pad_left(context.positions, real_P) + real_P.sum()
  y_BTD, cache = call.next_fn(
    fill(_pad_left(x_BTD, real_P), index_BT, inside_BT),
    context._replace(
      mask=_extend_mask(context.mask, inside_BT, real_P),
      positions=jnp.where(inside_BT, first_B1 + index_BT, behind_BT),
    ),
  )
  return (y_BTD if module.name == "encoder" else y_BTD[:, len(real_P) :]), cache


def _pad_left(x_BT: Array, real_P: Bool[Array, " P"]) -> Array:
  """Pads the axis of tokens on the left by the prompt's P slots."""
  return jnp.pad(x_BT, ((0, 0), (len(real_P), 0), *[(0, 0)] * (x_BT.ndim - 2)))


def _prompt_slots(
  real_BS: Bool[Array, "B S"], real_P: Bool[Array, " P"]
) -> tuple[Int[Array, "B P+S"], Bool[Array, "B P+S"]]:
  """Returns which token of the prompt is at each of P + S slots, and whether there is one.

  A prompt shorter than P ends where a longer one would, before the first real token.
  """
  count = real_P.sum()
  start_B1 = (real_BS.argmax(1) + len(real_P) - count)[:, None]
  index_BT = jnp.arange(len(real_P) + real_BS.shape[1])[None] - start_B1
  return jnp.clip(index_BT, 0, count - 1), (index_BT >= 0) & (index_BT < count)


def _extend_mask(mask: Mask, inside_BS: Bool[Array, "B S"], real_P: Bool[Array, " P"]) -> Mask:
  """Extends a mask: all tokens see the prompt, which sees itself and, in an encoder, all tokens."""
  mask = mask.replace(keys=inside_BS | _pad_left(mask.keys, real_P))
  if mask.segments is None:
    return mask
  segments_BS = jnp.where(inside_BS, ANY, _pad_left(mask.segments, real_P))
  return mask.replace(segments=segments_BS, open=True)
