"""Logits that are scored a part at a time give what all logits give at once."""

import dataclasses

import jax
import numpy as np
import pytest
from support import tiny

from jaxtune import peft
from jaxtune.objectives import choices, sft
from jaxtune.training import step

ROWS, LENGTH = 4, 11
METHOD = {
  "name": "stack", "lora": {"rank": 2, "dropout": 0.3}, "full": {},
}  # fmt: skip


def losses_of(pretrained, laid, scored_tokens, rng=None):
  """Returns (tuned) -> the summed loss of a batch, and the sums of its rows."""
  config = dataclasses.replace(pretrained.model.config, scored_tokens=scored_tokens)
  program = step.Program(pretrained.model.clone(config=config), laid.methods, sft.loss, None, 1)
  tokens, mask = tiny.batch(rows=ROWS, length=LENGTH, side="right")
  batch = {"tokens": tokens, "mask": mask, "weights": mask.astype(np.float32)}
  if config.encoder is not None:
    batch |= {"inputs": tokens[:, :7], "inputs_mask": mask[:, :7]}

  def losses(tuned):
    call = step.forward(program, peft.Overlay(tuned, laid.hyper), laid.base, rng)
    losses_B, sums = sft.loss(call, batch, label_smoothing=0.1)
    return losses_B.sum(), (losses_B, sums)

  return losses


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "t5", "bart"])
@pytest.mark.parametrize("section", [{"name": "lora"}, METHOD | {"lora": {"rank": 2}}])
def test_parts_equal_the_whole(name, section):
  """Untied, tied, soft-capped, scaled, biased; the last part of 3 of 11 tokens is not full.

  What makes logits is frozen first, and then trained, by which its own gradient is added.
  """
  pretrained = tiny.make(name)
  laid = tiny.lay(pretrained, section, noise=0.1)
  found, expected = (
    jax.jit(jax.value_and_grad(losses_of(pretrained, laid, tokens), has_aux=True))(laid.tuned)
    for tokens in (3 * ROWS, LENGTH * ROWS)
  )
  close = lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)
  jax.tree.map(close, found, expected)


@pytest.mark.parametrize("section", [{"name": "lora", "dora": True}, {"name": "ia3"}])
def test_methods_on_the_head_are_trained(section):
  """The backward pass computes logits again, by when the pass that laid the methods has ended."""
  laid = tiny.lay(
    pretrained := tiny.make("llama"), section | {"targets": ["head", "q_proj"]}, noise=0.1
  )
  found, expected = (
    jax.jit(jax.grad(losses_of(pretrained, laid, tokens), has_aux=True))(laid.tuned)[0]["peft"]
    for tokens in (3 * ROWS, LENGTH * ROWS)
  )
  assert all(np.any(x) for x in jax.tree.leaves(expected["head"]))
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5), found, expected)


def test_all_logits_are_nowhere():
  pretrained = tiny.make("llama")
  laid = tiny.lay(pretrained, METHOD, noise=0.1)
  whole, part = (f"{ROWS},{length},{tiny.VOCABULARY}" for length in (LENGTH, 3))
  for tokens in (3 * ROWS, LENGTH * ROWS):
    losses = losses_of(pretrained, laid, tokens, jax.random.key(0))
    text = str(jax.make_jaxpr(jax.grad(losses, has_aux=True))(laid.tuned))
    assert (whole in text, part in text) == (tokens > 3 * ROWS, tokens == 3 * ROWS)


def test_answers_of_one_token_need_the_logits_before_them_alone():
  pretrained = tiny.make("llama")
  laid = tiny.lay(pretrained, {"name": "lora"}, noise=0.1)
  program = step.Program(pretrained.model, laid.methods, choices.loss, None, 1)
  tokens, mask = tiny.batch(rows=ROWS, length=LENGTH, side="right")
  arrays = {"tokens": tokens, "mask": mask, "weights": np.eye(LENGTH, dtype=np.float32)[[5] * ROWS]}
  batch = {part: x[:, None] for part, x in arrays.items()}
  batch |= {"answers": np.full((ROWS, 2, 1), [[3], [4]]), "labels": np.zeros(ROWS, np.int32)}

  def losses(tuned):
    call = step.forward(program, peft.Overlay(tuned, laid.hyper), laid.base)
    return choices.loss(call, batch)[0].sum()

  text = str(jax.make_jaxpr(jax.grad(losses))(laid.tuned))
  assert f"{ROWS},1,{tiny.VOCABULARY}" in text
  assert f"{ROWS},{LENGTH},{tiny.VOCABULARY}" not in text


def test_logits_are_computed_once_over_a_frozen_head():
  """And again, in the forward and the backward pass of its own, where it is trained too."""
  pretrained, counts = tiny.make("llama"), []
  for section in ({"name": "lora"}, {"name": "full"}):
    laid = tiny.lay(pretrained, section, noise=0.1)
    losses = losses_of(pretrained, laid, 3 * ROWS)
    text = str(jax.make_jaxpr(jax.grad(losses, has_aux=True))(laid.tuned))
    counts.append(text.count(f"f32[{ROWS},3,{tiny.VOCABULARY}] = dot_general"))
  assert counts == [1, 2]
