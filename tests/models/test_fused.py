"""Whole models with fused attention have the losses and gradients that plain products give.

The kernels are emulated, TPUs' by Pallas's interpreter and cuDNN's by jax's own XLA code. Gradients
are those of what a method trains; of LoRA and prefixes, those of every leaf of the base too.
"""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import matrix
import numpy as np
import pytest
from support.methods import METHODS

from jaxtune import objectives, peft, tree
from jaxtune.models import cudnn, splash
from jaxtune.training import step

LORA, PREFIX = "rsLoRA, all linear", "prefix"
# Each family with two methods, each method over a decoder, and those that add keys or split the
# layers over one that has local and global layers and over an encoder-decoder.
OF_KEYS = ("prompt", "MAM", "UniPELT", "last layers")
FAMILIES = dict.fromkeys(METHODS, ("llama",)) | dict.fromkeys(OF_KEYS, ("qwen2", "bart")) | {
  LORA: matrix.FAMILIES, PREFIX: matrix.FAMILIES, "BitFit": ("qwen2",),  # which has biases
}  # fmt: skip
# Of these, one for each mask and for each way in which a method reaches a kernel: all families have
# one attention, which prefixes alone change. `make check` runs the others.
KINDS = {
  LORA: ("llama", "qwen2", "bert", "modernbert", "t5", "bart"),
  PREFIX: ("gpt2", "mistral", "gemma2", "modernbert", "bart"),
  "prompt": ("qwen2", "bart"),
  "last layers": ("qwen2", "bart"),
  "UniPELT": ("qwen2",),
  "NF4 base + LoRA": ("llama",),
}
BF16 = ("gemma3_text", "modernbert", "bart")


def cell(*values, often: bool):
  """Makes a case, which `make check` alone runs if it is not run often."""
  return pytest.param(*values, marks=() if often else pytest.mark.measurement)


CELLS = [
  cell(method, family, often=family in KINDS.get(method, ()))
  for method, families in FAMILIES.items()
  for family in families
]
# How many attentions of a program TPUs' kernel takes, where it is not one. Beside that of local
# layers a program holds that of global ones. An encoder-decoder has three, but T5 has relative
# biases in all except the one over the encoder.
WINDOWS = ("mistral", "qwen2", "gemma2", "gemma3_text", "phi3", "modernbert")
ATTENTIONS = {"bart": 3, "t5": 1} | dict.fromkeys(WINDOWS, 2)
# Kernels where a decoder's last layers are trained, which is two scans: three for each attention of
# these, and the forward one alone for each attention below them.
OF_LAST_LAYERS = {"bart": 3 * 2 + 3, "qwen2": 3 * 2 + 2}


@pytest.fixture(autouse=True)
def calls(monkeypatch):
  """Emulates the kernels; returns a list that a call of cuDNN's adds to."""
  real, made = jax.nn.dot_product_attention, []
  attend = lambda *args, **options: made.append(args) or real(*args, **options)
  monkeypatch.setattr(jax.nn, "dot_product_attention", attend)
  monkeypatch.setattr(splash, "attend", partial(splash.attend, interpret=True))
  monkeypatch.setattr(cudnn, "attend", partial(cudnn.attend, implementation="xla"))
  return made


def trace(kernel: str, method: str, family: str, dtype=jnp.float32, **entries) -> tuple:
  """Returns a program of the loss and the gradients, what it takes, and its Pallas kernels' number.

  Args:
    entries: further ones of the batch.
  """
  section, _, quantize = METHODS[method]
  pretrained = matrix.model(family, quantize)
  config = pretrained.model.config
  fields = dict(attention=kernel, dtype=dtype)
  encoder = config.encoder and dataclasses.replace(config.encoder, **fields)
  model = pretrained.model.clone(config=dataclasses.replace(config, encoder=encoder, **fields))
  methods, state, base = matrix.lay(pretrained, section)
  objective = objectives.module("sft" if config.head is None else "classify").loss
  program = step.Program(model, methods, objective, None, 1)
  batch = {name: x[0] for name, x in matrix.batch(pretrained).items()} | entries
  for name in batch.keys() & {"inputs", "inputs_mask"}:
    batch[name] = batch[name][:, :-2]  # other lengths than the decoder's

  def loss(trees):
    call = step.forward(program, peft.Overlay(trees["tuned"], state.hyper), trees.get("base", base))
    return objective(call, batch)[0].sum()

  trees = {"tuned": state.tuned} | ({"base": base} if method in (LORA, PREFIX) else {})
  traced = jax.jit(jax.value_and_grad(loss)).trace(trees)
  return traced, trees, count_kernels(traced.jaxpr.jaxpr)


def measure(*args, **entries) -> tuple:
  """Returns the loss, the gradients by path, and how many Pallas kernels compute them."""
  traced, trees, kernels = trace(*args, **entries)
  value, gradients = jax.device_get(traced.lower().compile()(trees))
  return value, tree.flatten(gradients), kernels


def count_kernels(jaxpr) -> int:
  """Counts the Pallas kernels in a program and in all programs that it holds."""
  inner = [sub for eqn in jaxpr.eqns for sub in jax.tree.leaves(list(eqn.params.values()))]
  return sum(eqn.primitive.name == "pallas_call" for eqn in jaxpr.eqns) + sum(
    count_kernels(getattr(sub, "jaxpr", sub)) for sub in inner if hasattr(sub, "eqns")
  )


def check_equal(found: tuple, expected: tuple) -> None:
  """To a hundred-thousandth of each leaf's largest number, or one rounding of the largest of all.

  The gradients of some leaves are rounding errors alone, of a key's bias where no prefix is.
  """
  np.testing.assert_allclose(found[0], expected[0], rtol=1e-6, equal_nan=False)
  sizes = {path: np.abs(x).max() for path, x in expected[1].items()}
  largest = max(sizes.values())
  assert largest > 0.01
  for path, x in expected[1].items():
    apart = np.abs(found[1][path] - x).max()
    assert apart <= max(1e-5 * sizes[path], np.finfo(np.float32).eps * largest), path


@pytest.mark.parametrize(("method", "family"), CELLS)
def test_fused_equals_plain(method, family, calls):
  expected = measure("plain", method, family)
  assert expected[2] == 0 and not calls
  found = measure("splash", method, family)
  # Forward, by queries and by keys; a quantised base's layers are computed again.
  kernels = 3 + (METHODS[method].quantize is not None)
  twice = 2 if method == "UniPELT" else 1  # with the prefix's values and without
  every = kernels * twice * ATTENTIONS.get(family, 1)
  assert found[2] == (OF_LAST_LAYERS[family] if method == "last layers" else every)
  check_equal(found, expected)
  if family == "gemma2":  # whose scores are bounded, which cuDNN's kernel has no rules for
    trace("cudnn", method, family)
    assert not calls
  else:
    check_equal(measure("cudnn", method, family), expected)
    assert calls


@pytest.mark.parametrize("method", [LORA, PREFIX, "prompt"])
def test_packed_rows(method, calls):
  """In windows; TPUs' kernel takes no keys that are seen from all segments."""
  segments = jnp.asarray(2 * [[1] * 4 + [2] * 5, [1] * 2 + [2] * 3 + [0] * 4])
  real = segments > 0
  entries = dict(segments=segments, mask=real, weights=real.astype(jnp.float32))
  packed = dict(method=method, family="mistral", **entries)
  expected = measure("plain", **packed)
  if method == LORA:
    found = measure("splash", **packed)
    assert found[2] == 6
    check_equal(found, expected)
  else:
    assert trace("splash", **packed)[2] == 0
  assert not calls
  check_equal(measure("cudnn", **packed), expected)
  assert calls


@pytest.mark.parametrize("family", [cell(name, often=name in BF16) for name in matrix.FAMILIES])
def test_bf16_is_as_near_as_plain(family):
  """All gradients together, to those of plain products in fp32."""
  run = lambda kernel, dtype: sorted(measure(kernel, PREFIX, family, dtype)[1].items())
  joined = lambda *args: np.concatenate([x.ravel() for _, x in run(*args)])
  exact = joined("plain", jnp.float32)
  error = lambda kernel: np.linalg.norm(joined(kernel, jnp.bfloat16) - exact)
  bound = 1.2 * error("plain")
  assert 0 < bound < 0.2 * np.linalg.norm(exact)
  assert error("splash") < bound
  assert error("cudnn") < bound
