"""The shapes that the functions of methods and models state hold in every forward pass."""

from __future__ import annotations

import inspect
from functools import partial

import jax
import jax.numpy as jnp
import pytest
from beartype import beartype
from jaxtyping import TypeCheckError, jaxtyped
from support import tiny

from jaxtune import peft
from jaxtune.objectives import sft
from jaxtune.peft import adapted, draws, forward
from jaxtune.peft.methods import (
  adalora,
  adapter,
  compacter,
  ia3,
  loha,
  lokr,
  lora,
  p_tuning,
  prefix,
  prompt,
  reft,
  vera,
)  # fmt: skip
from jaxtune.training import optim, step

SECTIONS = [
  {"name": "lora", "rank": 2, "dora": True},
  {"name": "lora", "rank": 2, "initialise": "olora", "gate": True},
  {"name": "vera", "rank": 3},
  {"name": "loha", "rank": 2},
  {"name": "lokr", "rank": 2},
  {"name": "ia3"},
  {"name": "adalora", "init_rank": 3, "target_rank": 2},
  {"name": "adapter", "width": 5, "placement": "plus", "gate": True, "ln_before": True},
  {"name": "compacter", "width": 8},
  {"name": "reft", "rank": 2},
  {"name": "prompt", "length": 3},
  {"name": "p_tuning", "length": 3, "encoder": "lstm"},
  {"name": "prefix", "length": 3, "gate": True},
]
MODULES = (
  adalora, adapter, compacter, ia3, loha, lokr, lora, p_tuning, prefix, prompt, reft, vera,
)  # fmt: skip


@pytest.fixture
def checked(monkeypatch):
  """Checks the shapes that the methods' functions state, at every call."""
  for module in MODULES:
    for name, function in inspect.getmembers(module, inspect.isfunction):
      stated = any("Array" in str(a) for a in function.__annotations__.values())
      if stated and function.__module__ == module.__name__:
        monkeypatch.setattr(module, name, jaxtyped(typechecker=beartype)(function))


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_methods_have_the_shapes_they_state(name, checked):
  pretrained = tiny.make(name)
  model, sites = pretrained.model, peft.find_sites(pretrained.model)
  tokens, mask = map(jnp.asarray, tiny.batch(side="left"))
  inputs = dict(inputs=tokens[:, ::-1], inputs_mask=mask) if name == "t5" else {}
  for section in SECTIONS:
    init = partial(peft.init, jax.random.key(0), peft.build(section), sites)
    run = lambda params, init=init: peft.apply(model, init(params), tokens, mask, **inputs)
    assert jax.eval_shape(run, pretrained.params).shape == (*tokens.shape, tiny.VOCABULARY)


def test_drawing_merging_and_a_step_have_the_shapes_they_state():
  check = jaxtyped(typechecker=beartype)
  pretrained = tiny.make("llama")
  methods, sites = peft.build({"name": "adalora"}), peft.find_sites(pretrained.model)
  tokens, mask = map(jnp.asarray, tiny.batch(side="right"))
  numbers = {name: jnp.float32(0.1) for name in optim.NUMBERS}
  make = lambda numbers: optim.make(numbers, 30)
  program = step.Program(pretrained.model, methods, sft.loss, make, 30, dropout=True)

  def run(key, params):
    laid = check(adapted.init)(key, methods, sites, params)
    check(adapted.merge)(laid)
    check(forward.apply)(pretrained.model, laid, tokens, mask, rng=key)
    check(draws.draw)(peft.uniform(1.0), check(draws.site_key)(key, "x"), (2, 3), axis=-1)
    begun = jnp.int32(0), jnp.int32(0), laid.tuned, laid.hyper, numbers
    state = step.State(*begun, make(numbers).init(laid.tuned))
    batch = {"tokens": tokens, "mask": mask, "weights": mask.astype(jnp.float32)}
    check(step.judge)(program, laid.overlay, laid.base, batch)
    parts = {name: x[None] for name, x in batch.items()}
    state, metrics = check(step.update)(program, state, laid.base, parts)
    check(optim.scale)(state.tuned, state.hyper, numbers["head_ratio"])
    with pytest.raises(TypeCheckError):
      check(step.update)(program, state, laid.base, {"tokens": tokens[0]})
    return metrics

  assert {x.shape for x in jax.eval_shape(run, jax.random.key(0), pretrained.params).values()} == {
    ()
  }


def test_a_wrong_shape_is_seen(checked):
  """Each axis has one size in a call."""
  shapes = (5, 2, 3), (2, 2, 2), (2, 4, 1), (2, 1, 3)  # 3 features a group, where W has 4 rows
  with pytest.raises(TypeCheckError):
    compacter._phm(*map(jnp.zeros, shapes))
