"""T5 (v1.0, v1.1, Flan-T5): how a Hugging Face folder maps to `Config` and its weights.

v1.1 has a gated feed-forward and a head that is not tied to the embeddings. transformers 4 states
in `tie_word_embeddings` whether the head is tied; transformers 5 writes true there in both cases,
and states it in `scale_decoder_outputs`.
"""

from __future__ import annotations

from jaxtune import schema
from jaxtune.errors import UserError
from jaxtune.models import heads
from jaxtune.models.config import Config
from jaxtune.models.entries import Activation
from jaxtune.models.fields import only, sizes, start_tokens
from jaxtune.models.names import Tensor, tensors

ARCHITECTURES = {"lm": "T5ForConditionalGeneration"}
SLOTS = {"attn": "SelfAttention", "cross": "EncDecAttention", "mlp": "DenseReluDense"}


def config(hf: dict, **overrides) -> Config:
  """Reads a `config.json` of `model_type` t5; `overrides` are fields of both stacks' `Config`."""
  only(hf, is_encoder_decoder=True, is_decoder=False)
  kind = hf.get("feed_forward_proj", "relu")
  gated = kind.startswith("gated-")
  activation = "gelu_new" if kind == "gated-gelu" else kind.removeprefix("gated-")
  activation = hf.get("dense_act_fn") or activation
  schema.check("config.json: the activation in feed_forward_proj", activation, Activation)
  tied = hf.get("scale_decoder_outputs", hf.get("tie_word_embeddings", True))
  buckets = hf.get("relative_attention_num_buckets", 32)
  longest = hf.get("relative_attention_max_distance", 128)
  if longest <= buckets // 2:
    raise UserError(
      f"config.json: relative_attention_max_distance is {longest}, expected more than half of the "
      f"{buckets} buckets"
    )
  fields = sizes(
    hf, width="d_model", layers="num_layers", heads="num_heads", ffn="d_ff", head_size=hf["d_kv"]
  ) | dict(
    positions=2**30,  # relative positions have no limit
    epsilon=hf.get("layer_norm_epsilon", 1e-6),
    rope=None,
    relative=(buckets, longest),
    scale=1.0,
    activation=activation,
    gated=gated,
    tied=tied,
  )
  decoder = dict(
    layers=hf.get("num_decoder_layers") or hf["num_layers"],
    encoder=Config(**fields | dict(causal=False) | overrides),
    decoder_start=start_tokens(hf, hf.get("pad_token_id", 0)),
    logit_scale=hf["d_model"] ** -0.5 if tied else 1.0,
  )
  return Config(**fields | decoder | overrides)


def names(c: Config) -> list[Tensor]:
  """Lists every weight, with its path in our tree and its tensor name."""
  copies = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
  rows = [Tensor("embed/embedding", "shared.weight", also=copies + ("lm_head.weight",) * c.tied)]
  rows += [row._replace(also=("shared.weight",)) for row in heads.names(c)]
  encoder = _stack_names(c, "encoder", "attn", "mlp")
  return [*rows, *encoder, *_stack_names(c, "decoder", "attn", "cross", "mlp")]


def _stack_names(c: Config, stack: str, *slots: str) -> list[Tensor]:
  """Lists the weights of the encoder or of the decoder; T5 numbers the `slots` of a layer."""
  relative = "block.0.layer.0.SelfAttention.relative_attention_bias"
  up = {"gate_proj": "wi_0", "up_proj": "wi_1"} if c.gated else {"up_proj": "wi"}
  linears = {p: p[0] for p in ("q_proj", "k_proj", "v_proj", "o_proj")}
  layer = {}
  for i, slot in enumerate(slots):
    layer[f"{slot}_norm"] = f"{i}.layer_norm"
    modules = up | {"down_proj": "wo"} if slot == "mlp" else linears
    layer |= {f"{slot}/{ours}": f"{i}.{SLOTS[slot]}.{theirs}" for ours, theirs in modules.items()}
  return [
    *tensors(c, {"norm": "final_layer_norm", "relative": relative}, f"{stack}/", f"{stack}."),
    *tensors(c, layer, f"{stack}/layers/", f"{stack}.block.{{}}.layer."),
  ]
