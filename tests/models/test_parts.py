"""Layers in several scans compute what they do in one: losses, gradients and random numbers."""

import jax
import numpy as np
import pytest
from support import tiny

from jaxtune import peft, tree

TOKENS = np.random.default_rng(0).integers(0, tiny.VOCABULARY, (2, 9)).astype(np.int32)
LAST, EDITS = dict(name="last_layers"), dict(name="reft", rank=2, layers=[1])
NOISE = dict(name="regularize", dropout=0.2)
CASES = {
  "a last layer and LoRA": ("llama", dict(name="stack", last=LAST, lora=dict(dropout=0.3)), {}),
  "edits": ("llama", dict(name="stack", reft=EDITS, noise=NOISE), {"remat": "linear"}),
  "int8": ("llama", EDITS, {"quantize": "int8"}),
  "last layer, edits, biases": (
    "bert", dict(name="stack", last=LAST, reft=EDITS, bitfit={}), {"head": "mlm", "unroll": 2},
  ),
  "encoder and decoder": ("t5", LAST | dict(layers=2, encoder=True, norm=True), {"remat": True}),
}  # fmt: skip


FULL = ("int8", "last layer, edits, biases")  # marked `full`


@pytest.mark.parametrize(
  "case", [pytest.param(case, marks=[pytest.mark.full] * (case in FULL)) for case in CASES]
)
def test_parts_equal_one_scan(case):
  """For two trials in a group, each with its own arrays and random key."""
  name, section, changes = CASES[case]
  pretrained = tiny.make(name, **{"remat": False} | changes)
  laid = [tiny.lay(pretrained, section, noise=noise) for noise in (0.03, 0.06)]
  inputs = dict(inputs=TOKENS[:, ::-1].copy()) if name == "t5" else {}
  scores = np.random.default_rng(1).normal(size=(*TOKENS.shape, tiny.VOCABULARY)) / 100

  def loss(tuned, hyper, key, how):
    adapted = laid[0]._replace(tuned=tuned, hyper=hyper)
    rng = key if "noise" in section or "lora" in section else None
    made = peft.apply(pretrained.model, adapted, TOKENS, rng=rng, **how, **inputs)
    return (scores * jax.nn.log_softmax(made)).sum()

  def run(**how):
    gradient = lambda *args: jax.value_and_grad(loss)(*args, how)
    return jax.jit(jax.vmap(gradient))(
      *(tree.stack([getattr(one, part) for one in laid]) for part in ("tuned", "hyper")),
      jax.random.split(jax.random.key(0), 2),
    )

  values, gradients = run(backward=True)
  expected, theirs = run(method=type(pretrained.model).__call__)
  np.testing.assert_allclose(values, expected, rtol=1e-5)
  flat = tree.flatten(theirs)
  largest = max(np.abs(x).max() for x in flat.values())
  for path, x in tree.flatten(gradients).items():
    np.testing.assert_allclose(x, flat[path], atol=1e-5 * largest, rtol=0, err_msg=path)
