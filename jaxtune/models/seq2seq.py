"""Defines an encoder-decoder with a language model's head."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxtune.errors import UserError
from jaxtune.models.context import row_context
from jaxtune.models.decoder import Cache, LanguageModel
from jaxtune.models.score import Score
from jaxtune.models.transformer import Trunk


class Seq2Seq(LanguageModel):
  """Computes a transformer whose encoder reads `inputs` and whose decoder predicts the output.

  `model.apply(variables, tokens, mask, inputs, inputs_mask)` returns logits (B, T, V) in fp32.
  `inputs` (B, S) are the encoder's tokens. `tokens` (B, T) are the decoder's, which begin with
  `config.decoder_start`; the logits at t predict token t + 1. Each mask is true at real tokens,
  with padding on either side; a row's real tokens are at positions 0, 1, ... With `score` and
  `targets` it returns score(logits, targets), without all logits (see `LanguageModel.score`).

  `config` is the decoder's and `config.encoder` the encoder's. They share one table of embeddings.
  In the tree of parameters, `trunk` is called "decoder".
  """

  def setup(self):
    super().setup()
    self.encoder, self.trunk = Trunk(self.config.encoder), Trunk(self.config, name="decoder")

  def __call__(
    self,
    tokens: Int[Array, "B T"],
    mask: Bool[Array, "B T"] | None = None,
    inputs: Int[Array, "B S"] | None = None,
    inputs_mask: Bool[Array, "B S"] | None = None,
    *,
    score: Score | None = None,
    targets: Int[Array, "B T"] | None = None,
  ) -> Any:
    if inputs is None:
      raise UserError("an encoder-decoder needs `inputs`, the tokens that its encoder reads")
    mask_BT = jnp.ones(tokens.shape, bool) if mask is None else mask
    context = row_context(mask_BT, causal=True)._replace(encoded=self.encode(inputs, inputs_mask))
    x_BTD, _ = self.trunk(self.embed_tokens(tokens), context)
    return self.logits(x_BTD) if score is None else self.score(score, x_BTD, targets)

  def encode(
    self, inputs_BS: Int[Array, "B S"], mask_BS: Bool[Array, "B S"] | None = None
  ) -> tuple[Float[Array, "B S D"], Bool[Array, "B S"]]:
    """Returns the encoder's (states, mask), as the decoder reads them."""
    mask_BS = jnp.ones(inputs_BS.shape, bool) if mask_BS is None else mask_BS
    x_BSD, _ = self.encoder(self.embed_tokens(inputs_BS), row_context(mask_BS, causal=False))
    return x_BSD, mask_BS

  def prefill(
    self, prompts_BS: Int[Array, "B S"], mask_BS: Bool[Array, "B S"], room: int
  ) -> tuple[Float[Array, "B V"], Cache]:
    """Encodes the prompts, and processes `config.decoder_start`; see `begin_cache`."""
    start = jnp.asarray(self.config.decoder_start)
    tokens_BT = jnp.broadcast_to(start[None], (len(prompts_BS), len(start)))
    context = row_context(jnp.ones(tokens_BT.shape, bool), causal=True)
    encoded = self.encode(prompts_BS, mask_BS)
    return self.begin_cache(tokens_BT, context._replace(encoded=encoded), room)
