"""T5 (v1.0, v1.1, Flan-T5): how a Hugging Face folder maps to `Config` and its weights.

v1.1 has a gated feed-forward and a head of its own. transformers 5 writes `tie_word_embeddings:
true` for both and tells them apart by `scale_decoder_outputs`; 4 does by the former.
"""

from __future__ import annotations

from jaxtune import schema
from jaxtune.errors import UserError
from jaxtune.models.config import Config
from jaxtune.models.entries import Activation
from jaxtune.models.fields import only
from jaxtune.models.names import Tensor
from jaxtune.models.seq2seq import Seq2Seq, start_tokens

MODEL = Seq2Seq
ARCHITECTURES = {"lm": "T5ForConditionalGeneration"}
SLOTS = {"attn": "SelfAttention", "cross": "EncDecAttention", "mlp": "DenseReluDense"}


def config(hf: dict, **overrides) -> Config:
  """Reads a `config.json` of `model_type` t5; `overrides` are fields of both halves' `Config`."""
  only(hf, is_encoder_decoder=True, is_decoder=False)
  kind = hf.get("feed_forward_proj", "relu")
  gated = kind.startswith("gated-")
  activation = "gelu_new" if kind == "gated-gelu" else kind.removeprefix("gated-")
  schema.check("config.json: the activation in feed_forward_proj", activation, Activation)
  tied = hf.get("scale_decoder_outputs", hf.get("tie_word_embeddings", True))
  buckets = hf.get("relative_attention_num_buckets", 32)
  longest = hf.get("relative_attention_max_distance", 128)
  if longest <= buckets // 2:
    raise UserError(
      f"config.json: relative_attention_max_distance is {longest}, expected more than half of the "
      f"{buckets} buckets"
    )
  fields = dict(
    vocabulary=hf["vocab_size"],
    width=hf["d_model"],
    heads=hf["num_heads"],
    kv_heads=hf["num_heads"],
    head_size=hf["d_kv"],
    ffn=hf["d_ff"],
    positions=2**30,  # there is no end to relative ones
    epsilon=hf.get("layer_norm_epsilon", 1e-6),
    rope=None,
    relative=(buckets, longest),
    scale=1.0,
    activation=activation,
    gated=gated,
    tied=tied,
  )
  layers = hf["num_layers"]
  encoder = Config(**fields | dict(layers=layers, causal=False) | overrides)
  decoder = dict(
    layers=hf.get("num_decoder_layers") or layers,
    encoder=encoder,
    decoder_start=start_tokens(hf, hf.get("pad_token_id", 0)),
    logit_scale=hf["d_model"] ** -0.5 if tied else 1.0,
  )
  return Config(**fields | decoder | overrides)


def names(c: Config) -> list[Tensor]:
  """Lists every weight: its path here and its name there."""
  copies = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
  rows = [Tensor("embed/embedding", "shared.weight", also=copies + ("lm_head.weight",) * c.tied)]
  if not c.tied:
    rows.append(Tensor("head/kernel", "lm_head.weight", transpose=True, also=("shared.weight",)))
  for half, slots in (("encoder", ("attn", "mlp")), ("decoder", ("attn", "cross", "mlp"))):
    rows += _half(c, half, slots)
  return rows


def _half(c: Config, half: str, slots: tuple[str, ...]) -> list[Tensor]:
  bias = f"{half}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
  rows = [
    Tensor(f"{half}/norm/scale", f"{half}.final_layer_norm.weight"),
    Tensor(f"{half}/relative/embedding", bias),
  ]
  up = {"gate_proj": "wi_0", "up_proj": "wi_1"} if c.gated else {"up_proj": "wi"}
  for i, slot in enumerate(slots):
    ours, theirs = f"{half}/layers/{slot}", f"{half}.block.{{}}.layer.{i}"
    rows.append(Tensor(f"{ours}_norm/scale", f"{theirs}.layer_norm.weight"))
    linears = up | {"down_proj": "wo"} if slot == "mlp" else {f"{p}_proj": p for p in "qkvo"}
    rows += [
      Tensor(f"{ours}/{a}/kernel", f"{theirs}.{SLOTS[slot]}.{b}.weight", transpose=True)
      for a, b in linears.items()
    ]
  return rows
