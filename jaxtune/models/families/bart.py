"""BART: how a Hugging Face folder maps to `Config` and its weights."""

from __future__ import annotations

from jaxtune.models import heads
from jaxtune.models.config import Config
from jaxtune.models.fields import CLASSIC, only, sizes, start_tokens
from jaxtune.models.names import Tensor, tensors

ARCHITECTURES = {"lm": "BartForConditionalGeneration"}


def config(hf: dict, **overrides) -> Config:
  """Reads a `config.json` of `model_type` bart; `overrides` are fields of both stacks' `Config`."""
  only(hf, is_encoder_decoder=True, is_decoder=False, normalize_before=False,
       normalize_embedding=True, add_final_layer_norm=False, add_bias_logits=False,
       static_position_embeddings=False)  # fmt: skip
  fields = CLASSIC | dict(
    positions=hf.get("max_position_embeddings", 1024),
    position_offset=2,
    order="post",
    embed_norm=True,
    activation=hf.get("activation_function") or "gelu",
    embed_scale=hf["d_model"] ** 0.5 if hf.get("scale_embedding") else 1.0,
    tied=hf.get("tie_word_embeddings", True),
  )
  sizes_of = lambda stack: sizes(
    hf, width="d_model", layers=f"{stack}_layers", heads=f"{stack}_attention_heads",
    ffn=f"{stack}_ffn_dim",
  )  # fmt: skip
  encoder = Config(**fields | sizes_of("encoder") | dict(causal=False) | overrides)
  decoder = dict(encoder=encoder, decoder_start=start_tokens(hf, 2), logit_bias=True)
  return Config(**fields | sizes_of("decoder") | decoder | overrides)


def names(c: Config) -> list[Tensor]:
  """Lists every weight, with its path in our tree and its tensor name."""
  copies = ("model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight")
  rows = [
    Tensor("embed/embedding", "model.shared.weight", also=(*copies, *heads.copies(c))),
    Tensor("logit_bias", "final_logits_bias", default=0.0),
  ]
  if not c.tied:  # a merged model, whose copies of the table transformers reads one by one
    rows += [Tensor("embed/embedding", name) for name in copies]
  return [
    *rows,
    *heads.names(c),
    *_stack_names(c, "encoder", {"attn": "self_attn"}),
    *_stack_names(c, "decoder", {"attn": "self_attn", "cross": "encoder_attn"}),
  ]


def _stack_names(c: Config, stack: str, attentions: dict[str, str]) -> list[Tensor]:
  """Lists the weights of the encoder or of the decoder.

  Args:
    stack: "encoder" or "decoder".
    attentions: {our name of an attention: its name in the folder}.
  """
  layer = {}
  for slot, theirs in attentions.items():
    layer[f"{slot}_residual/norm"] = f"{theirs}_layer_norm"
    layer |= {f"{slot}/{p}_proj": f"{theirs}.{p}_proj" for p in "qkv"}
    layer[f"{slot}/o_proj"] = f"{theirs}.out_proj"
  layer |= {"mlp_residual/norm": "final_layer_norm", "mlp/up_proj": "fc1", "mlp/down_proj": "fc2"}
  top = {"positions": "embed_positions", "embed_norm": "layernorm_embedding"}
  return [
    *tensors(c, top, f"{stack}/", f"model.{stack}."),
    *tensors(c, layer, f"{stack}/layers/", f"model.{stack}.layers.{{}}."),
  ]
