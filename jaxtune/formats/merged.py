"""Merges weight deltas in fp32 into a plain Hugging Face folder, and measures what a cast loses."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxtune import peft, schema, tree
from jaxtune.errors import UserError, check_known
from jaxtune.formats import loading
from jaxtune.formats.facts import Facts
from jaxtune.models import hf, quantize


class Loss(NamedTuple):
  """What casting base + delta to the stored type does to the delta.

  Attributes:
    error: |cast(base + delta) - (base + delta)| / |delta|, Frobenius norms; 0 without a delta.
    lost: share of the entries with a delta whose stored value is the cast of the base alone.
  """

  error: float
  lost: float


class Rounding(NamedTuple):
  """The loss of a cast: over all changed tensors, and {path in our tree: its own}."""

  dtype: str
  overall: Loss
  tensors: dict[str, Loss]


def write(
  pretrained: hf.Pretrained, adapted: peft.Adapted, folder: Path, dtype: str, facts: Facts
) -> Rounding:
  """Writes base + delta as a folder that `from_pretrained` of the head's class loads.

  Args:
    dtype: the type weights are stored in, "float32" or "bfloat16".
  """
  check_known("dtype", dtype, hf.DTYPES)
  stored = pretrained
  pretrained, params = fold(pretrained, adapted)
  if loading.reads_padding(pretrained):
    pretrained = loading.with_padding(pretrained)
  hf.write(pretrained, params, folder, dtype, tuple(map(str, facts.labels)) or None)
  if pretrained.model.config.head is None and pretrained.model.config.causal:
    _write_generation(pretrained, folder, facts.stop_tokens)
  return rounding(quantize.dequantised(stored.params), params, dtype)


def _write_generation(pretrained: hf.Pretrained, folder: Path, stop_tokens: Sequence[int]) -> None:
  """Writes generation_config.json: the base's settings, with this model's stop tokens."""
  base = pretrained.folder and pretrained.folder / "generation_config.json"
  if base and base.exists():
    stated = schema.read_json(base)
  else:  # what transformers takes from config.json where there is no such file
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    stated = {n: x for n in names if (x := pretrained.hf_config.get(n)) is not None}
  starts = ("decoder_start_token_id", "forced_bos_token_id")
  stated |= dict(zip(starts, pretrained.model.config.decoder_start, strict=False))
  if stop_tokens:
    stated["eos_token_id"] = list(stop_tokens)
  if stated:
    (folder / "generation_config.json").write_text(json.dumps(stated, indent=2) + "\n")


def fold(pretrained: hf.Pretrained, adapted: peft.Adapted) -> tuple[hf.Pretrained, Any]:
  """Merges deltas in fp32: returns the model that they fit, and its weights.

  A tied model stays tied, except where a delta changes only the lookup of its embeddings (LoRA on
  "embed"): then the old table, which computes the scores, becomes a tensor of its own.

  Raises:
    UserError: for a method that is no weight delta; for a masked language model to be untied.
  """
  params, c = peft.merge(adapted), pretrained.model.config
  masked = c.head is not None and c.head.kind == "mlm"
  scored = masked or (c.head is None and c.tied and c.causal)
  trained = (adapted.overlay.arrays_of(method)[0] for method in adapted.methods)
  if not scored or not any("embed" in arrays for arrays in trained):
    return pretrained, params
  if masked:
    raise UserError(
      "the embeddings of a masked language model are its scores too, and jaxtune writes no such "
      "model untied: leave 'embed' out of method.targets, or use format='peft'"
    )
  table = tree.flatten(peft.weights(adapted))
  table = quantize.dequantised(table["embed/embedding"]).astype(np.float32)
  untied = {"tie_word_embeddings": False}
  if pretrained.family == "t5":  # which scales the states if it is tied, and else not
    table, untied = table * c.logit_scale, untied | {"scale_decoder_outputs": False}
    c = dataclasses.replace(c, logit_scale=1.0)
  model = pretrained.model.clone(config=dataclasses.replace(c, tied=False))
  pretrained = pretrained._replace(model=model, hf_config=pretrained.hf_config | untied)
  return pretrained, params | {"head": {"kernel": table.T}}


def rounding(before: Any, after: Any, dtype: str) -> Rounding:
  """Measures what storing the fp32 weights `after` as `dtype` loses of their delta to `before`."""
  cast = lambda x: x.astype(hf.DTYPES[dtype]).astype(np.float32)
  before, sums = tree.flatten(before), {}
  for path, leaf in tree.flatten(after).items():
    if path not in before:  # the scores of a model that was tied, as they were
      continue
    new, old = np.asarray(leaf, np.float32), np.asarray(before[path]).astype(np.float32)
    delta, stored = new - old, cast(new)
    changed = delta != 0
    if changed.any():
      square = lambda x: float(np.sum(np.square(x, dtype=np.float64)))
      lost = int((changed & (stored == cast(old))).sum())
      sums[path] = np.array([square(stored - new), square(delta), lost, changed.sum()])
  loss = lambda s: Loss(float(np.sqrt(s[0] / s[1])), float(s[2] / s[3]))
  overall = loss(sum(sums.values())) if sums else Loss(0.0, 0.0)
  return Rounding(dtype, overall, {path: loss(s) for path, s in sums.items()})
