"""An encoder-decoder with a language model's head."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

from jaxtune.errors import UserError
from jaxtune.models.config import Config
from jaxtune.models.decoder import new_cache
from jaxtune.models.layers import Embed, Linear
from jaxtune.models.transformer import Context, Trunk


class Seq2Seq(nn.Module):
  """A transformer that reads `inputs` with its encoder and writes with its decoder.

  `model.apply(variables, tokens, mask, inputs, inputs_mask)` gives logits (B, T, V) in fp32.
  `inputs` (B, S) are the encoder's tokens; `tokens` (B, T) the decoder's own input, which begins
  with `config.decoder_start`, so that logits at t score token t + 1. Each mask is true on real
  tokens, with padding on either side; a row's real tokens are at positions 0, 1, ...

  `config` is the decoder's, `config.encoder` the encoder's; they share one table of embeddings.
  """

  config: Config

  def setup(self):
    c = self.config
    self.embed = Embed(c.vocabulary, c.width, c.dtype)
    self.encoder, self.decoder = Trunk(c.encoder), Trunk(c)
    if not c.tied:
      self.head = Linear(c.width, c.vocabulary, dtype=c.dtype)
    if c.logit_bias:
      self.logit_bias = self.param("logit_bias", nn.initializers.zeros, (1, c.vocabulary))

  def __call__(self, tokens, mask=None, inputs=None, inputs_mask=None):
    if inputs is None:
      raise UserError("an encoder-decoder needs `inputs`, the tokens that its encoder reads")
    mask, positions_BT = _placed(tokens, mask)
    length = tokens.shape[1]
    seen_B1TS = jnp.tril(jnp.ones((length, length), bool))[None, None] & mask[:, None, None, :]
    encoded = self.encode(inputs, inputs_mask)
    x_BTD = self._embed(tokens)
    x_BTD, _ = self.decoder(x_BTD, Context(seen_B1TS, positions_BT, encoded=encoded))
    return self.logits(x_BTD)

  def encode(self, inputs_BS, mask_BS=None):
    """Returns the encoder's (states (B, S, D), mask (B, S)), as the decoder reads them."""
    mask_BS, positions_BS = _placed(inputs_BS, mask_BS)
    seen_B11S = mask_BS[:, None, None, :]
    seen_B1SS = jnp.broadcast_to(seen_B11S, (*seen_B11S.shape[:2], *inputs_BS.shape[1:] * 2))
    x_BSD, _ = self.encoder(self._embed(inputs_BS), Context(seen_B1SS, positions_BS))
    return x_BSD, mask_BS

  def begin_decoding(self, prompts_BS, mask_BS, new_tokens: int):
    """Encodes prompts: returns what `decode` reads first, `config.decoder_start`, and a cache."""
    start = self.config.decoder_start
    tokens_BT = jnp.broadcast_to(jnp.asarray(start)[None], (prompts_BS.shape[0], len(start)))
    cache = new_cache(self.config, jnp.ones(tokens_BT.shape, bool), len(start) + new_tokens)
    return tokens_BT, cache._replace(encoded=self.encode(prompts_BS, mask_BS))

  def decode(self, tokens_BT, cache):
    """Continues a `Cache` by T tokens: returns the last token's logits (B, V) and the cache.

    The first call turns the encoder's states into the cache's keys and values of cross-attention.
    """
    view = cache.view(tokens_BT.shape[1])
    context = Context(*view, cache.layers, cache.index, cache.encoded)
    x_BTD, layers = self.decoder(self._embed(tokens_BT), context)
    cache = cache._replace(
      layers=layers,
      index=cache.index + tokens_BT.shape[1],
      encoded=(None, cache.encoded[1]),
    )
    return self.logits(x_BTD[:, -1:])[:, 0], cache

  @staticmethod
  def trace_inputs() -> dict:
    """Returns the smallest inputs that reach every module of the model."""
    return {"tokens": jnp.zeros((1, 2), jnp.int32), "inputs": jnp.zeros((1, 2), jnp.int32)}

  def _embed(self, tokens_BT):
    x_BTD = self.embed(tokens_BT)
    return x_BTD * jnp.asarray(self.config.embed_scale, x_BTD.dtype)

  def logits(self, x_BTD):
    """Scores the decoder's states against the vocabulary: (B, T, V) in fp32."""
    c = self.config
    x_BTD = x_BTD * jnp.asarray(c.logit_scale, x_BTD.dtype)
    y_BTV = (self.embed.attend(x_BTD) if c.tied else self.head(x_BTD)).astype(jnp.float32)
    return y_BTV + self.logit_bias.astype(jnp.float32)[None] if c.logit_bias else y_BTV


def _placed(tokens_BT, mask_BT):
  """Returns the mask, by default of real tokens alone, and the positions (B, T) of real tokens."""
  mask_BT = jnp.ones(tokens_BT.shape, bool) if mask_BT is None else mask_BT
  return mask_BT, jnp.maximum(jnp.cumsum(mask_BT, 1) - 1, 0)


def start_tokens(hf: dict, default: int | None) -> tuple[int, ...]:
  """Reads the tokens that every output begins with, in training and in generation.

  They are `decoder_start_token_id`, or `default`, and `forced_bos_token_id`, where the model has
  one (BART's summarisers): transformers draws it as the first token whatever the model says.
  """
  start = hf.get("decoder_start_token_id")
  start = default if start is None else start
  if start is None:
    raise UserError("config.json has no decoder_start_token_id, which every output begins with")
  forced = hf.get("forced_bos_token_id")
  if forced is None and hf.get("force_bos_token_to_be_generated"):  # the older name of the same
    forced = hf.get("bos_token_id", 0)
  return (start,) if forced is None else (start, forced)
