"""Describes a model: everything in which families and sizes differ."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxtune.models.layers import Norm
from jaxtune.models.rope import Rope

# Fields that are not of config.json, but of a run's own config and its device.
OF_A_RUN = {
  "head", "dtype", "remat", "quantize", "unroll", "attention", "platform", "scored_tokens",
}  # fmt: skip


@dataclass(frozen=True)
class Config:
  """Describes the architecture of a model, and how it is computed.

  Attributes:
    width, ffn: sizes of the residual stream and of a feed-forward's hidden layer.
    positions: the longest sequence that the model has positions for, virtual tokens included.
    epsilon: added to the mean square in every norm.
    causal: whether a token cannot attend to those after itself.
    rope: rotary positions. Without them, and without `relative`, positions are a learned table.
    position_offset: number of rows of that table before the one of position 0 (RoBERTa, BART: 2).
    relative: learned biases by distance, as (buckets, longest distance) (T5).
    window: in local layers, tokens attend only to keys at a distance below this.
    local: whether each layer is local; None: all are, if there is a window.
    local_rope: rotary positions of local layers, if they differ (Gemma 3, ModernBERT).
    order: where the norms of a layer are. "pre": x + f(norm(x)); "post": norm(x + f(x)); "out":
      x + norm(f(x)); "sandwich": x + norm(f(norm(x))); "parallel": as "pre", with attention and
      feed-forward both reading the layer's input. All but "post" end with a norm of the states.
    first_norm: whether the first layer has a norm before attention (not in ModernBERT).
    embed_norm: whether the sum of embeddings and learned positions is normalised.
    centre_norm: LayerNorm where true, RMSNorm where false.
    norm_bias: whether a LayerNorm has a bias.
    norm_offset: added to every norm's scale (Gemma: 1).
    qk_norm: "head", an RMSNorm over each head of q and k (Qwen 3, Gemma 3); "all", over all heads
      at once (OLMo 2); or None.
    scale: factor of attention scores; None: head_size**-0.5.
    softcap, logit_softcap: bounds c of attention scores and of logits, by c tanh(x / c) (Gemma 2).
    activation: a name in `layers.ACTIVATIONS`.
    gated: whether the feed-forward is down(act(gate(x)) * up(x)), or else down(act(up(x))).
    embed_scale, logit_scale: factors of embeddings, and of states before logits are computed.
    logit_bias: whether logits have a bias (BART).
    types: how many token types are embedded (BERT: 2); 0 for none.
    tied: whether logits are computed with the embedding table.
    encoder: the encoder of an encoder-decoder; the other fields then describe the decoder.
    decoder_start: the tokens that every output of an encoder-decoder begins with.
    head: the `heads.Head` that replaces the language model's head.
    dtype: type of activations and matrix products. Norms and the softmax of plain attention are
      computed in fp32, and logits are converted to it.
    remat: whether the backward pass recomputes each block's activations, which are not stored then;
      "linear" stores queries, keys, values and the feed-forward's hidden layers, no more, and so
      does "auto", until one of the others is chosen.
    quantize: how the layers' kernels are stored, None, "int8" or "nf4"; see `quantize`.
    unroll: how many layers one iteration of the layer loop runs.
    attention: "plain", "splash", "cudnn" or None; see `layers.Attend`.
    platform: that the model is compiled for, "cpu", "tpu" or "cuda"; None: that of this process.
    scored_tokens: for how many tokens a device computes logits at a time where it scores targets;
      None: at least 512, and as many as have 2**24 logits.
  """

  vocabulary: int
  width: int
  layers: int
  heads: int
  kv_heads: int
  head_size: int
  ffn: int
  positions: int
  epsilon: float = 1e-5
  causal: bool = True
  rope: Rope | None = Rope()
  position_offset: int = 0
  relative: tuple[int, int] | None = None
  window: int | None = None
  local: tuple[bool, ...] | None = None
  local_rope: Rope | None = None
  order: str = "pre"
  first_norm: bool = True
  embed_norm: bool = False
  centre_norm: bool = False
  norm_bias: bool = True
  norm_offset: float = 0.0
  qk_norm: str | None = None
  scale: float | None = None
  softcap: float | None = None
  logit_softcap: float | None = None
  activation: str = "silu"
  gated: bool = True
  qkv_bias: bool = False
  o_bias: bool = False
  ffn_bias: bool = False
  embed_scale: float = 1.0
  logit_scale: float = 1.0
  logit_bias: bool = False
  types: int = 0
  tied: bool = True
  encoder: Config | None = None
  decoder_start: tuple[int, ...] = ()
  head: Any = None
  dtype: Any = jnp.float32
  remat: bool | str = False
  quantize: str | None = None
  unroll: int = 1
  attention: str | None = None
  platform: str | None = None
  scored_tokens: int | None = None

  @property
  def scored_together(self) -> int:
    """Returns `scored_tokens`, or the number that stands for None."""
    return self.scored_tokens or max(512, 2**24 // self.vocabulary)

  @property
  def runs_on(self) -> str:
    """Returns `platform`, or that of this process."""
    return self.platform or jax.default_backend()

  @property
  def head_kind(self) -> str:
    """Returns the kind of the model's head: "lm", or that of its `heads.Head`."""
    return "lm" if self.head is None else self.head.kind

  @property
  def digest(self) -> str:
    """Returns a hash of what config.json says, whatever the head and how it is computed.

    Fields with their default do not count: a later version may have more of them.
    """
    fields = [field for field in dataclasses.fields(self) if field.name not in OF_A_RUN]
    values = ((field.name, getattr(self, field.name), field.default) for field in fields)
    said = {name: value for name, value, default in values if value != default}
    said |= {"encoder": self.encoder.digest} if self.encoder else {}
    return hashlib.sha256(repr(sorted(said.items())).encode()).hexdigest()

  def changed(self, **computation: Any) -> Config:
    """Returns the config with other fields of how it is computed, also in the encoder."""
    encoder = self.encoder and dataclasses.replace(self.encoder, **computation)
    return dataclasses.replace(self, **computation, encoder=encoder)

  def norm(self, features: int | None = None, centre: bool | None = None, name: Any = None) -> Norm:
    """Makes a norm over `features`, by default the model's width."""
    centre = self.centre_norm if centre is None else centre
    return Norm(
      features or self.width, self.epsilon, centre, centre and self.norm_bias, self.norm_offset,
      self.dtype, name=name,
    )  # fmt: skip
