"""GPT-2: how its Hugging Face folder maps to `decoder.Config` and its weights.

The fused `c_attn` is split into q, k and v, so that a target means the same in every family.
"""

from __future__ import annotations

from jaxtune.models import heads
from jaxtune.models.config import Config
from jaxtune.models.decoder import Decoder
from jaxtune.models.fields import head_size, only
from jaxtune.models.names import Tensor, parts

MODEL = Decoder
ARCHITECTURES = {"lm": "GPT2LMHeadModel"} | heads.architectures("GPT2")


def config(hf: dict, **overrides) -> Config:
  """Reads a `config.json` of `model_type` gpt2."""
  only(hf, scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False)
  fields = dict(
    vocabulary=hf["vocab_size"],
    width=hf["n_embd"],
    layers=hf["n_layer"],
    heads=hf["n_head"],
    kv_heads=hf["n_head"],
    head_size=head_size(hf, "n_embd", "n_head"),
    ffn=hf.get("n_inner") or 4 * hf["n_embd"],
    positions=hf.get("n_positions", 1024),
    epsilon=hf.get("layer_norm_epsilon", 1e-5),
    rope=None,
    centre_norm=True,
    activation=hf.get("activation_function") or "gelu_new",
    gated=False,
    qkv_bias=True,
    o_bias=True,
    ffn_bias=True,
    tied=hf.get("tie_word_embeddings", True),
  )
  return Config(**fields | overrides)


def names(c: Config) -> list[Tensor]:
  """Lists every weight: its path here and its name there."""
  rows = [
    Tensor("embed/embedding", "transformer.wte.weight"),
    Tensor("trunk/positions/embedding", "transformer.wpe.weight"),
  ]
  norms = {"trunk/norm": "ln_f", "trunk/layers/attn_norm": "h.{}.ln_1"}
  for ours, theirs in (norms | {"trunk/layers/mlp_norm": "h.{}.ln_2"}).items():
    rows.append(Tensor(f"{ours}/scale", f"transformer.{theirs}.weight"))
    rows.append(Tensor(f"{ours}/bias", f"transformer.{theirs}.bias"))
  qkv = zip("qkv", parts(c.width, c.width, c.width), strict=True)
  linears = [(f"attn/{p}_proj", "attn.c_attn", part) for p, part in qkv]
  linears += [("attn/o_proj", "attn.c_proj", None)]
  linears += [("mlp/up_proj", "mlp.c_fc", None), ("mlp/down_proj", "mlp.c_proj", None)]
  for ours, theirs, part in linears:
    theirs = "transformer.h.{}." + theirs
    rows.append(Tensor(f"trunk/layers/{ours}/kernel", f"{theirs}.weight", part=part))
    rows.append(Tensor(f"trunk/layers/{ours}/bias", f"{theirs}.bias", part=part))
  return rows + heads.names(c, tokens="classifier")
