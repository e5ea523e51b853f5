"""GPT-2: how its Hugging Face folder maps to `Config` and its weights.

The fused `c_attn` is split into q, k and v, so that a target means the same in every family.
"""

from __future__ import annotations

from jaxtune.models import heads
from jaxtune.models.config import Config
from jaxtune.models.fields import CLASSIC, only, sizes
from jaxtune.models.names import Tensor, tensors

ARCHITECTURES = heads.architectures("GPT2") | {"lm": "GPT2LMHeadModel"}


def config(hf: dict, **overrides) -> Config:
  """Reads a `config.json` of `model_type` gpt2."""
  only(hf, scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False)
  hf = hf | {"n_inner": hf.get("n_inner") or 4 * hf["n_embd"]}
  fields = sizes(hf, width="n_embd", layers="n_layer", heads="n_head", ffn="n_inner") | dict(
    positions=hf.get("n_positions", 1024),
    epsilon=hf.get("layer_norm_epsilon", 1e-5),
    activation=hf.get("activation_function") or "gelu_new",
    tied=hf.get("tie_word_embeddings", True),
  )
  return Config(**CLASSIC | fields | overrides)


def names(c: Config) -> list[Tensor]:
  """Lists every weight, with its path in our tree and its tensor name."""
  top = {"embed": "wte", "trunk/positions": "wpe", "trunk/norm": "ln_f"}
  layer = {
    "attn_norm": "ln_1",
    "mlp_norm": "ln_2",
    "attn/q_proj": "attn.c_attn",
    "attn/k_proj": "attn.c_attn",
    "attn/v_proj": "attn.c_attn",
    "attn/o_proj": "attn.c_proj",
    "mlp/up_proj": "mlp.c_fc",
    "mlp/down_proj": "mlp.c_proj",
  }
  embed, *others = tensors(c, top, theirs="transformer.")
  return [
    embed._replace(also=heads.copies(c)),
    *others,
    *tensors(c, layer, "trunk/layers/", "transformer.h.{}.", transpose=False),
    *heads.names(c, tokens="classifier"),
  ]
