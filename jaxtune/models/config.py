"""The description of a model: everything in which families and sizes differ."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from jaxtune.models.layers import Norm
from jaxtune.models.rope import Rope


@dataclass(frozen=True)
class Config:
  """The shape of a model, and how it is computed.

  Attributes:
    positions: the longest sequence of tokens, with a prefix, that the model has positions for.
    epsilon: of every norm.
    causal: whether a token sees no token after itself.
    rope: rotary positions. Without them, and without `relative`, positions are a learned table.
    position_offset: rows of that table in front of position 0 (RoBERTa and BART: 2).
    relative: learned biases by distance, as (buckets, longest distance) (T5).
    window: local layers see keys at a distance below this.
    local: which layers are local, one flag a layer; None: all of them, where there is a window.
    local_rope: of the local layers, where it differs (Gemma 3, ModernBERT).
    order: where the norms of a layer are. "pre": x + f(norm(x)); "post": norm(x + f(x)); "out":
      x + norm(f(x)); "sandwich": x + norm(f(norm(x))); "parallel": as "pre", with attention and
      feed-forward both reading the layer's input.
    first_norm: whether the first layer has a norm before attention (not in ModernBERT).
    embed_norm: a norm over the embeddings.
    centre_norm: LayerNorm where true, RMSNorm where false.
    norm_bias: whether a LayerNorm has a bias.
    norm_offset: added to every norm's scale (Gemma: 1).
    qk_norm: "head", an RMSNorm over each head of q and k (Qwen 3, Gemma 3); "all", over all heads
      at once (OLMo 2); or None.
    scale: of attention scores; None: head_size**-0.5.
    softcap, logit_softcap: bounds c of attention scores and of logits, by c tanh(x / c) (Gemma 2).
    gated: the feed-forward is down(act(gate(x)) * up(x)), else down(act(up(x))).
    embed_scale, logit_scale: factors of embeddings and of the states that logits are made of.
    logit_bias: whether an encoder-decoder's logits have a bias (BART).
    types: how many token types are embedded (BERT: 2).
    tied: logits are scored by the embeddings.
    encoder: of an encoder-decoder, its other half; the rest then describes the decoder.
    decoder_start: of an encoder-decoder, the tokens that every output begins with.
    head: the head that replaces the language model's; see `heads`.
    dtype: of activations and matrix products; softmax, norms and logits are fp32.
    remat: recompute each block's activations in the backward pass instead of storing them.
    quantize: how the layers' kernels are stored, None, "int8" or "nf4"; see `quantize`.
    unroll: how many layers one iteration of the layer loop runs.
    attention: None for plain matrix products, or "cudnn".
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
  remat: bool = False
  quantize: str | None = None
  unroll: int = 1
  attention: str | None = None

  @property
  def head_kind(self) -> str:
    """The kind of the model's head: "lm", or that of a `heads.Head`."""
    return "lm" if self.head is None else self.head.kind

  def norm(self, features: int | None = None, centre: bool | None = None, name=None):
    """Makes a norm over `features`, by default the model's width."""
    centre = self.centre_norm if centre is None else centre
    return Norm(
      features or self.width, self.epsilon, centre, centre and self.norm_bias, self.norm_offset,
      self.dtype, name=name,
    )  # fmt: skip
