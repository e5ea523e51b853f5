"""The small models of the parity table, as entries of their config.json."""

from __future__ import annotations

from typing import NamedTuple

TOKENS, PREFIX, VOCABULARY = 24, 4, 101  # of a row, of a prefix

BASE = dict(
  vocab_size=VOCABULARY, hidden_size=48, num_hidden_layers=3, num_attention_heads=4,
  num_key_value_heads=2, intermediate_size=80, max_position_embeddings=96,
)  # fmt: skip
LLAMA3_ROPE = dict(
  rope_type="llama3", rope_theta=10_000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
  original_max_position_embeddings=16,
)  # fmt: skip
# Of a length below the text's, so that all rows are beyond it.
YARN = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=8)
LONGROPE = dict(
  rope_type="longrope", short_factor=[1.0, 1.1, 1.3, 1.6, 2.0, 2.5],
  long_factor=[1.2, 1.5, 2.0, 3.0, 5.0, 9.0],
)  # fmt: skip
DYNAMIC = dict(rope_type="dynamic", factor=3.0)
# Windows are shorter than the text, but for the prefix: see the note on windows in README.md.
WINDOW, WIDE = dict(sliding_window=7), dict(sliding_window=TOKENS + PREFIX)
GEMMA2 = dict(
  model_type="gemma2", head_dim=16, query_pre_attn_scalar=20, attn_logit_softcapping=3.0,
  final_logit_softcapping=5.0,
)  # fmt: skip
GEMMA3 = dict(
  model_type="gemma3_text", head_dim=16, query_pre_attn_scalar=20,
  layer_types=["sliding_attention", "full_attention", "sliding_attention"],
  rope_parameters=dict(
    full_attention=dict(rope_type="linear", factor=4.0, rope_theta=1e6),
    sliding_attention=dict(rope_type="default", rope_theta=1e4),
  ),
)  # fmt: skip
QWEN2 = dict(model_type="qwen2", use_sliding_window=True, max_window_layers=1)
NEOX = BASE | dict(model_type="gpt_neox", rotary_pct=0.5, num_key_value_heads=4)

BERT = {key: value for key, value in BASE.items() if key != "num_key_value_heads"} | dict(
  num_labels=5,
)  # fmt: skip
T5 = dict(
  model_type="t5", vocab_size=VOCABULARY, d_model=48, d_kv=12, d_ff=80, num_layers=3,
  num_decoder_layers=2, num_heads=4, relative_attention_num_buckets=8,
  relative_attention_max_distance=16, decoder_start_token_id=0, pad_token_id=0,
)  # fmt: skip


class Family(NamedTuple):
  """One line of the table: a config.json, and what kind of model it makes.

  Attributes:
    prefix: entries that replace the config's where a prefix is laid over it.
    by_hand: whether PEFT cannot express its prefix.
    even: whether only rows of one length are compared: transformers lets the longest decide on all.
  """

  name: str
  kind: str
  config: dict
  prefix: dict = {}
  by_hand: bool = False
  even: bool = False


FAMILIES = [
  Family("gpt2", "decoder", dict(
    model_type="gpt2", vocab_size=VOCABULARY, n_embd=48, n_layer=3, n_head=4, n_positions=96,
  )),
  Family("llama", "decoder", BASE | dict(model_type="llama")),
  Family("llama, RoPE of Llama 3", "decoder", BASE | dict(
    model_type="llama", rope_parameters=LLAMA3_ROPE, head_dim=16,
  )),
  Family("llama, YaRN", "decoder", BASE | dict(model_type="llama", rope_parameters=YARN)),
  Family("llama, as SmolLM", "decoder", BASE | dict(
    model_type="llama", num_attention_heads=3, num_key_value_heads=1, tie_word_embeddings=True,
  )),
  Family("mistral", "decoder", BASE | WINDOW | dict(model_type="mistral"), WIDE),
  Family("qwen2", "decoder", BASE | WINDOW | QWEN2, WIDE),
  Family("qwen3", "decoder", BASE | dict(model_type="qwen3", head_dim=16)),
  Family("gemma", "decoder", BASE | dict(model_type="gemma", head_dim=16)),
  Family("gemma2", "decoder", BASE | WINDOW | GEMMA2, WIDE),
  Family("gemma3_text", "decoder", BASE | WINDOW | GEMMA3, WIDE),
  Family("phi3", "decoder", BASE | WINDOW | dict(model_type="phi3", pad_token_id=0), WIDE),
  Family("phi3, partly rotated", "decoder", BASE | dict(
    model_type="phi3", pad_token_id=0, partial_rotary_factor=0.5,
  )),
  Family("phi3, longrope", "decoder", BASE | dict(
    model_type="phi3", pad_token_id=0, original_max_position_embeddings=8,
    rope_parameters=LONGROPE,
  )),
  Family("olmo2", "decoder", BASE | dict(model_type="olmo2")),
  Family("gpt_neox", "decoder", NEOX),
  Family("gpt_neox, sequential", "decoder", NEOX | dict(
    use_parallel_residual=False, tie_word_embeddings=True,
  )),
  Family("gpt_neox, dynamic RoPE", "decoder", NEOX | dict(
    max_position_embeddings=8, rope_parameters=DYNAMIC,
  ), even=True),
  Family("bert", "encoder", BERT | dict(model_type="bert")),
  Family("roberta", "encoder", BERT | dict(model_type="roberta", pad_token_id=1)),
  Family("distilbert", "encoder", BERT | dict(
    model_type="distilbert", dim=48, n_layers=3, n_heads=4, hidden_dim=80,
  ), by_hand=True),
  Family("modernbert", "encoder", BERT | dict(
    model_type="modernbert", local_attention=8, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    cls_token_id=1, sep_token_id=2,
  ), by_hand=True),
  Family("t5, v1.0", "encoder-decoder", T5 | dict(feed_forward_proj="relu"), by_hand=True),
  Family("t5, v1.1", "encoder-decoder", T5 | dict(
    feed_forward_proj="gated-gelu", tie_word_embeddings=False, initializer_factor=0.4,
  ), by_hand=True),
  Family("bart", "encoder-decoder", dict(
    model_type="bart", vocab_size=VOCABULARY, d_model=48, max_position_embeddings=96,
    encoder_layers=3, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4,
    encoder_ffn_dim=80, decoder_ffn_dim=80, pad_token_id=1,
  ), by_hand=True),
]  # fmt: skip
