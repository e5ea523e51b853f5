"""BART: how a Hugging Face folder maps to `Config` and its weights."""

from __future__ import annotations

from jaxtune.models.config import Config
from jaxtune.models.fields import head_size, only
from jaxtune.models.names import Tensor
from jaxtune.models.seq2seq import Seq2Seq, start_tokens

MODEL = Seq2Seq
ARCHITECTURES = {"lm": "BartForConditionalGeneration"}
NORMS = {"attn": "self_attn_layer_norm", "cross": "encoder_attn_layer_norm",
         "mlp": "final_layer_norm"}  # fmt: skip


def config(hf: dict, **overrides) -> Config:
  """Reads a `config.json` of `model_type` bart; `overrides` are fields of both halves' `Config`."""
  only(hf, is_encoder_decoder=True, is_decoder=False, normalize_before=False,
       normalize_embedding=True, add_final_layer_norm=False, add_bias_logits=False,
       static_position_embeddings=False, tie_word_embeddings=True)  # fmt: skip
  fields = dict(
    vocabulary=hf["vocab_size"],
    width=hf["d_model"],
    positions=hf.get("max_position_embeddings", 1024),
    position_offset=2,
    rope=None,
    order="post",
    embed_norm=True,
    centre_norm=True,
    activation=hf.get("activation_function") or "gelu",
    gated=False,
    qkv_bias=True,
    o_bias=True,
    ffn_bias=True,
    embed_scale=hf["d_model"] ** 0.5 if hf.get("scale_embedding") else 1.0,
  )
  encoder = Config(**fields | _half_of(hf, "encoder") | dict(causal=False) | overrides)
  start = start_tokens(hf, 2)
  decoder = _half_of(hf, "decoder") | dict(encoder=encoder, decoder_start=start, logit_bias=True)
  return Config(**fields | decoder | overrides)


def _half_of(hf: dict, half: str) -> dict:
  count = f"{half}_attention_heads"
  return dict(
    layers=hf[f"{half}_layers"],
    heads=hf[count],
    kv_heads=hf[count],
    head_size=head_size(hf, "d_model", count),
    ffn=hf[f"{half}_ffn_dim"],
  )


def names(c: Config) -> list[Tensor]:
  """Lists every weight: its path here and its name there."""
  copies = ("model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight")
  rows = [
    Tensor("embed/embedding", "model.shared.weight", also=(*copies, "lm_head.weight")),
    Tensor("logit_bias", "final_logits_bias", default=0.0),
  ]
  if not c.tied:  # as a merge may leave it
    rows += [Tensor("embed/embedding", name) for name in copies]
    rows.append(Tensor("head/kernel", "lm_head.weight", transpose=True))
  for half, slots in (("encoder", ("attn", "mlp")), ("decoder", ("attn", "cross", "mlp"))):
    rows += _half(half, slots)
  return rows


def _half(half: str, slots: tuple[str, ...]) -> list[Tensor]:
  top, layer = f"model.{half}", f"model.{half}.layers.{{}}"
  linears = {"mlp/up_proj": "fc1", "mlp/down_proj": "fc2"}
  groups = {"attn": "self_attn", "cross": "encoder_attn"}
  for slot in slots[:-1]:
    linears |= {f"{slot}/{p}_proj": f"{groups[slot]}.{p}_proj" for p in "qkv"}
    linears[f"{slot}/o_proj"] = f"{groups[slot]}.out_proj"
  norms = {f"layers/{slot}_residual/norm": f"layers.{{}}.{NORMS[slot]}" for slot in slots}
  norms["embed_norm"] = "layernorm_embedding"
  rows = [Tensor(f"{half}/positions/embedding", f"{top}.embed_positions.weight")]
  for ours, theirs in norms.items():
    rows.append(Tensor(f"{half}/{ours}/scale", f"{top}.{theirs}.weight"))
    rows.append(Tensor(f"{half}/{ours}/bias", f"{top}.{theirs}.bias"))
  for ours, theirs in linears.items():
    ours = f"{half}/layers/{ours}"
    rows.append(Tensor(f"{ours}/kernel", f"{layer}.{theirs}.weight", transpose=True))
    rows.append(Tensor(f"{ours}/bias", f"{layer}.{theirs}.bias"))
  return rows
