"""The scanned forward pass against a loop over layers, and decoding against teacher forcing."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import tiny

from jaxtune import peft, tree
from jaxtune.models import rope
from jaxtune.models.context import Mask, Shared
from jaxtune.models.decoder import Decoder
from jaxtune.models.transformer import Block

ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj")
SECTIONS = {
  "none": {"name": "lora", "targets": ("q_proj",)},
  "lora": {"name": "lora", "rank": 3, "targets": ALL},
  "parallel": {"name": "adapter", "width": 5, "placement": "parallel"},
  "prefix": {"name": "prefix", "length": 4},
  "prefix-unshifted": {"name": "prefix", "length": 4, "shift": False},
  "stack": {"name": "stack", "lora": {}, "prefix": {"length": 3}, "adapter": {"width": 4}},
}
CASES = [("llama", name) for name in ("lora", "prefix", "prefix-unshifted", "parallel")] + [
  ("gpt2", "stack")
]


def unrolled(pretrained, laid, tokens, mask):
  """The decoder's forward pass as a Python loop, each layer with its slice of every collection."""
  methods, tuned, hyper, base = laid
  c, params = pretrained.model.config, tree.combine(base, tuned["params"])
  deltas = peft.reparametrise(methods, tuned["peft"])
  get = lambda path: params["trunk"][path]
  x = params["embed"]["embedding"][tokens]
  positions = jnp.asarray(tiny.positions_of(mask))
  for fixed in hyper.get("trunk", {}).values():
    positions = positions + fixed.get("offset", 0) if "offset" in fixed else positions
  tables = None
  if c.rope is None:
    x = x + get("positions")["embedding"][positions]
  else:
    tables = rope.rope_tables(c.rope, c.head_size, positions)

  @jax.jit
  def layer(x, *trees):
    block, moved, fixed = trees
    variables = {"params": {}, "peft": moved}
    flags = {"local": jnp.asarray(True), "first": jnp.asarray(False)}
    shared = Shared(None, Mask(mask, causal=True), tables, None, None, None, None)
    return peft.apply(
      Block(c), peft.Adapted(methods, variables, fixed, block), x, None, flags, shared
    )[0]

  for i in range(c.layers):
    cut = lambda t, i=i: jax.tree.map(lambda leaf: leaf[i], t.get("trunk", {}).get("layers", {}))
    x = layer(x, cut(params), cut(deltas), cut(hyper))
  x = c.norm().apply({"params": get("norm")}, x)
  return x @ (params["embed"]["embedding"].T if c.tied else params["head"]["kernel"])


@pytest.mark.parametrize(("name", "section"), CASES)
def test_scanned_equals_a_loop_over_layers(name, section, request):
  pretrained = request.getfixturevalue(name)
  laid = tiny.lay(pretrained, SECTIONS[section], noise=0.1)
  tokens, mask = tiny.batch(side="left")
  expected = unrolled(pretrained, laid, tokens, mask)
  made = tiny.forward(pretrained, laid, tokens, mask)
  np.testing.assert_allclose(made[mask], expected[mask], atol=2e-5, rtol=0)


def changed(pretrained, **fields):
  config = dataclasses.replace(pretrained.model.config, **fields)
  return pretrained._replace(model=Decoder(config))


@pytest.mark.parametrize(
  ("name", "fields"),
  [("llama", {"remat": True}), ("llama", {"remat": "linear"}), ("gpt2", {"unroll": 3})],
)
def test_remat_and_unroll_change_nothing(name, fields, request):
  """Values and gradients, with dropout on: the backward pass must drop the same elements."""
  pretrained = request.getfixturevalue(name)
  section = SECTIONS["stack"] | {"lora": {"dropout": 0.3}}
  laid = tiny.lay(pretrained, section, noise=0.1)
  tokens, mask = tiny.batch(side="right")

  def run(pretrained):
    methods, tuned, hyper, base = laid
    model, rng = pretrained.model, jax.random.key(3)

    def loss(tuned):
      out = peft.apply(model, peft.Adapted(methods, tuned, hyper, base), tokens, mask, rng=rng)
      return jnp.sum(jnp.where(mask[..., None], jnp.tanh(out), 0))

    return jax.jit(jax.value_and_grad(loss))(tuned)

  close = lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4, rtol=1e-4)
  jax.tree.map(close, run(changed(pretrained, **fields)), run(pretrained))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("section", ["none", "stack"])
def test_content_of_padding_does_not_matter(pretrained, section, side):
  laid = tiny.lay(pretrained, SECTIONS[section], noise=0.1)
  tokens, mask = tiny.batch(side=side)
  other = np.where(mask, tokens, (tokens + 7) % tiny.VOCABULARY)
  made, again = (tiny.forward(pretrained, laid, t, mask) for t in (tokens, other))
  np.testing.assert_array_equal(made[mask], again[mask])
  assert np.isfinite(made).all()
  assert not mask[1].all()
  alone = tiny.forward(pretrained, laid, tokens[1:2, mask[1]])
  np.testing.assert_allclose(made[1][mask[1]], alone[0], atol=2e-5, rtol=0)


def test_left_equals_right_padding(pretrained):
  laid = tiny.lay(pretrained, SECTIONS["stack"], noise=0.1)
  tokens, mask = tiny.batch(side="left")
  moved, other = np.zeros_like(tokens), np.zeros_like(mask)
  for row, real in enumerate(mask):
    moved[row, : real.sum()], other[row, : real.sum()] = tokens[row, real], True
  made = tiny.forward(pretrained, laid, tokens, mask)
  again = tiny.forward(pretrained, laid, moved, other)
  np.testing.assert_allclose(made[mask], again[other], atol=2e-5, rtol=0)


def test_future_tokens_do_not_matter(pretrained):
  laid = tiny.lay(pretrained, SECTIONS["stack"], noise=0.1)
  tokens, mask = tiny.batch()
  other = tokens.copy()
  other[:, 6:] = (other[:, 6:] + 5) % tiny.VOCABULARY
  made, again = (tiny.forward(pretrained, laid, t, mask) for t in (tokens, other))
  np.testing.assert_array_equal(made[:, :6], again[:, :6])
  assert not np.allclose(made[:, 6:], again[:, 6:])


@pytest.mark.parametrize(("name", "section"), CASES)
def test_decoding_equals_teacher_forcing(name, section, request):
  """Prompts of lengths 7, 5 and 3, padded on the left, then four tokens one by one."""
  pretrained = request.getfixturevalue(name)
  laid = tiny.lay(pretrained, SECTIONS[section], noise=0.1)
  tokens, mask = tiny.batch(length=11, side="left")
  prompt = 7
  methods, tuned, hyper, base = laid
  model = pretrained.model

  @partial(jax.jit, static_argnums=0)
  def call(method, base, tuned, hyper, *args):
    adapted = peft.Adapted(methods, tuned, hyper, base)
    room = (4,) if method == "prefill" else ()
    return peft.apply(model, adapted, *args, *room, method=getattr(model, method))

  expected = tiny.forward(pretrained, laid, tokens, mask)
  weights = base, tuned, hyper
  logits, cache = call("prefill", *weights, tokens[:, :prompt], jnp.asarray(mask[:, :prompt]))
  for stop in range(prompt, tokens.shape[1]):
    np.testing.assert_allclose(logits, expected[:, stop - 1], atol=2e-5, rtol=0)
    logits, cache = call("decode", *weights, tokens[:, stop], cache)
  np.testing.assert_allclose(logits, expected[:, -1], atol=2e-5, rtol=0)
