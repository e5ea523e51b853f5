"""Declares the entries of a `config.json` that families read, with their types and ranges.

A name means the same in all families. `hf` checks a file before a family reads it.
"""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, MinLen
from typing_extensions import TypedDict

from jaxtune.models.layers import ACTIVATIONS
from jaxtune.schema import STRICT, Count, Finite, Natural, NonNegative

# At least ten times the largest published values; products of these stay far below 2^63.
Size = Annotated[int, Ge(1), Le(2**24)]
Layers = Annotated[int, Ge(1), Le(2**12)]
Buckets = Annotated[int, Ge(4), Le(2**16)]
Length = Annotated[int, Ge(2), Le(2**31 - 1)]
Token = Annotated[int, Ge(-1), Le(2**31 - 1)]  # some older files write -1 for none
Positive = Annotated[float, Ge(1e-6), Le(1e9)]
Theta = Annotated[float, Gt(1), Le(1e30)]
Share = Annotated[float, Gt(0), Le(1)]
Divisors = Annotated[list[Positive], MinLen(1)]
Activation = Literal[*ACTIVATIONS]
LAYER_TYPES = ("full_attention", "sliding_attention")


class RopeEntries(TypedDict, total=False):
  """Declares one RoPE: `rope_parameters`, or before transformers 5 `rope_scaling`."""

  __pydantic_config__ = STRICT
  rope_type: str | None
  type: str | None
  rope_theta: Theta | None
  partial_rotary_factor: Share | None
  factor: Positive | None
  original_max_position_embeddings: Length | None
  low_freq_factor: Positive | None
  high_freq_factor: Positive | None
  attention_factor: Positive | None
  beta_fast: Positive | None
  beta_slow: Positive | None
  mscale: NonNegative | None
  mscale_all_dim: NonNegative | None
  truncate: bool
  short_factor: Divisors | None
  long_factor: Divisors | None


class RopesEntries(RopeEntries, total=False):
  """Declares one RoPE, or one for each type of layers (Gemma 3, ModernBERT)."""

  full_attention: RopeEntries | None
  sliding_attention: RopeEntries | None


class Entries(TypedDict, total=False):
  """Declares the entries that are read; of others, `fields.only` compares some with one value."""

  __pydantic_config__ = STRICT
  model_type: str | None
  architectures: list[str] | None
  is_encoder_decoder: bool
  is_decoder: bool
  # Sizes; families use different names for the same one.
  vocab_size: Size
  hidden_size: Size
  d_model: Size
  n_embd: Size
  dim: Size
  num_hidden_layers: Layers
  num_layers: Layers
  num_decoder_layers: Layers | None
  encoder_layers: Layers
  decoder_layers: Layers
  n_layer: Layers
  n_layers: Layers
  num_attention_heads: Size
  num_key_value_heads: Size | None
  num_heads: Size
  encoder_attention_heads: Size
  decoder_attention_heads: Size
  n_head: Size
  n_heads: Size
  head_dim: Size | None
  d_kv: Size
  intermediate_size: Size
  d_ff: Size
  hidden_dim: Size
  n_inner: Size | None
  encoder_ffn_dim: Size
  decoder_ffn_dim: Size
  type_vocab_size: Natural
  # Positions, and which keys a layer attends to.
  max_position_embeddings: Count
  n_positions: Count
  original_max_position_embeddings: Length | None
  rope_parameters: RopesEntries | None
  rope_scaling: RopesEntries | None
  rope_theta: Theta | None
  global_rope_theta: Theta | None
  local_rope_theta: Theta | None
  rope_local_base_freq: Theta | None
  rotary_emb_base: Theta | None
  rotary_pct: Share
  partial_rotary_factor: Share
  relative_attention_num_buckets: Buckets
  relative_attention_max_distance: Buckets
  layer_types: list[Literal[*LAYER_TYPES]] | None
  sliding_window: Count | None
  use_sliding_window: bool
  max_window_layers: Natural
  sliding_window_pattern: Count
  global_attn_every_n_layers: Count
  local_attention: Count
  use_bidirectional_attention: bool | None
  # Norms, scores and activations.
  rms_norm_eps: NonNegative
  norm_eps: NonNegative
  layer_norm_eps: NonNegative
  layer_norm_epsilon: NonNegative
  query_pre_attn_scalar: Positive
  attn_logit_softcapping: Positive | None
  final_logit_softcapping: Positive | None
  hidden_act: Activation | None
  hidden_activation: Activation | None
  dense_act_fn: Activation | None
  activation_function: Activation | None
  activation: Activation | None
  classifier_activation: Activation | None
  feed_forward_proj: str
  scale_embedding: bool
  scale_decoder_outputs: bool
  # Biases, norms and ties that a model has or lacks.
  attention_bias: bool
  mlp_bias: bool
  norm_bias: bool
  classifier_bias: bool
  decoder_bias: bool
  use_parallel_residual: bool
  tie_word_embeddings: bool
  # Tokens and labels.
  pad_token_id: Token | None
  bos_token_id: Token | None
  decoder_start_token_id: Natural | None
  forced_bos_token_id: Natural | None
  force_bos_token_to_be_generated: bool | None
  classifier_pooling: Literal["cls", "mean"]
  num_labels: Natural | None
  id2label: dict | None
  initializer_range: Annotated[Finite, Ge(0)]
