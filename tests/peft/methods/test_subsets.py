"""Norm tuning, BitFit, full fine-tuning and last layers: exactly their weights are trained."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support import tiny

from jaxtune import peft, tree
from jaxtune.errors import UserError

ONE = np.array([[3, 14, 15, 9, 26]], np.int32)


def outline(name):
  """The shapes of a tiny model's weights, and its sites."""
  changes = {"head": "mlm"} if name in tiny.ENCODERS else {}
  return tiny.make(name, **changes)


def step(pretrained, section):
  """Makes one step of SGD: returns (the weights before, after, what was laid, its gradient)."""
  methods, tuned, hyper, base = tiny.lay(pretrained, section)

  def loss(tuned):
    scores = peft.apply(pretrained.model, peft.Adapted(methods, tuned, hyper, base), ONE)
    return -jax.nn.log_softmax(scores)[0, :-1, :2].sum()

  gradient = jax.jit(jax.grad(loss))(tuned)
  tuned = optax.apply_updates(tuned, jax.tree.map(lambda g: -g, gradient))
  after = peft.merge(peft.Adapted(methods, tuned, hyper, base))
  return map(tree.flatten, (pretrained.params, after)), (methods, tuned, hyper, base), gradient


BARE = ()  # no method; one object, so that each model compiles once


def plain(pretrained, flat):
  """Logits of a model with other weights and nothing laid over it."""
  return tiny.forward(pretrained, (BARE, {"params": {}, "peft": {}}, {}, tree.unflatten(flat)), ONE)


def changed(before, after, layers=slice(None)):
  """Names the leaves of which every slice has changed, and those of which none has."""
  rows = lambda path: np.reshape(
    np.asarray(before[path] != after[path]), (len(before[path]) if "/layers/" in path else 1, -1)
  ).any(1)
  moved = {path for path in before if rows(path)[layers].all()}
  return moved, {path for path in before if not rows(path).any()}


DEAD = {"trunk/layers/attn/k_proj/bias"}  # softmax does not see a shift of all keys


@pytest.mark.parametrize(
  "name, section", [("gpt2", "norms"), ("gpt2", "bitfit"), ("llama", "full")]
)
def test_exactly_these_leaves_move(name, section, request):
  pretrained = request.getfixturevalue(name)
  (before, after), (methods, tuned, hyper, base), _ = step(pretrained, {"name": section})
  moved, still = changed(before, after)
  expected = {
    "norms": {path for path in before if "norm/" in path},
    "bitfit": {path for path in before if path.endswith("/bias")},
    "full": set(before),
  }[section]
  assert moved - DEAD == expected - DEAD and still - DEAD == set(before) - expected - DEAD
  made = tiny.forward(pretrained, (methods, tuned, hyper, base), ONE)
  np.testing.assert_allclose(made, plain(pretrained, after), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
  "name", ["qwen3", "olmo2", "gemma3_text", "t5", "bart", "bert", "distilbert", "modernbert"]
)
def test_norms_are_the_sites_of_that_kind(name):
  """Before, after and between sublayers, of embeddings and of queries and keys."""
  pretrained = outline(name)
  norms = {path for path, s in peft.find_sites(pretrained.model).items() if s.kind == "Norm"}
  trained = tree.flatten(tiny.lay(pretrained, {"name": "norms"})[1]["params"])
  assert {path.rpartition("/")[0] for path in trained} == norms
  assert {f"{site}/scale" for site in norms} <= trained.keys()
  leaves = tree.flatten(pretrained.params)
  assert {path for path in leaves if path.rpartition("/")[0] in norms} == trained.keys()


def test_chosen_norms_and_biases(gpt2):
  trained = lambda **section: set(tree.flatten(tiny.lay(gpt2, section)[1]["params"]))
  norm = {f"trunk/layers/attn_norm/{name}" for name in ("scale", "bias")}
  assert trained(name="norms", targets=("attn_norm",)) == norm
  biases = {f"trunk/layers/{name}_proj/bias" for name in ("attn/q", "mlp/up")}
  assert trained(name="bitfit", targets=("q_proj", "up_proj")) == biases


@pytest.mark.full
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_exactly_the_last_slices_move(name, request):
  pretrained = request.getfixturevalue(name)
  layers, norm = (1, False) if name == "gpt2" else (2, True)
  section = {"name": "last_layers", "layers": layers, "norm": norm}
  (before, after), laid, gradient = step(pretrained, section)
  final = {path for path in before if path.startswith("trunk/norm/")}
  stack = {path for path in before if "/layers/" in path}
  moved, still = changed(before, after, slice(-layers, None))
  assert moved - DEAD == (stack | final if norm else stack) - DEAD
  assert still - DEAD == set(before) - stack - (final if norm else set())
  for path in stack:
    np.testing.assert_array_equal(before[path][:-layers], after[path][:-layers])
  arrays = tree.flatten(laid[1]["peft"])
  assert {x.shape[0] for path, x in arrays.items() if "/layers/" in path} == {layers}
  expected = stack | final if norm else stack
  assert {path.replace("/last_layers/", "/") for path in arrays} == expected
  assert all(np.any(leaf) for leaf in jax.tree.leaves(gradient))
  made = tiny.forward(pretrained, laid, ONE)
  np.testing.assert_allclose(made, plain(pretrained, after), atol=1e-5, rtol=0)
  assert not np.allclose(made, plain(pretrained, before), atol=1e-2)


def test_last_layers_of_an_encoder_decoder():
  pretrained = outline("t5")
  section = {"name": "last_layers", "norm": True}
  for encoder, parts in ((False, ["decoder"]), (True, ["decoder", "encoder"])):
    arrays = tree.flatten(tiny.lay(pretrained, section | {"encoder": encoder})[1]["peft"])
    places = tuple(f"{part}/{name}/" for part in parts for name in ("layers", "norm"))
    expected = {path for path in tree.flatten(pretrained.params) if path.startswith(places)}
    assert {path.replace("/last_layers/", "/") for path in arrays} == expected
    assert all(len(x) == 1 for path, x in arrays.items() if "/layers/" in path)


@pytest.mark.full
def test_last_layers_grouped_equal_solo_and_decode(llama):
  """Two trials over one base; and a stack with LoRA decodes and merges as it trains."""
  solo = [tiny.lay(llama, {"name": "last_layers"}, noise=n) for n in (0.05, 0.1)]
  tuned, hyper = (tree.stack([laid[i] for laid in solo]) for i in (1, 2))
  run = lambda t, h: peft.apply(llama.model, peft.Adapted(solo[0][0], t, h, solo[0][3]), ONE)
  for made, laid in zip(jax.jit(jax.vmap(run))(tuned, hyper), solo, strict=True):
    np.testing.assert_allclose(made, tiny.forward(llama, laid, ONE), atol=1e-5, rtol=0)
  section = {"name": "stack", "lora": {}, "last_layers": {"layers": 2}}
  laid = tiny.lay(llama, section, noise=0.05)
  made = tiny.forward(llama, laid, ONE)
  merged = tree.flatten(peft.merge(laid))
  np.testing.assert_allclose(made, plain(llama, merged), atol=1e-5, rtol=0)
  call = lambda method: jax.jit(partial(peft.apply, llama.model, laid, method=method))
  begin = call(lambda model, *prompts: model.prefill(*prompts, 1))
  _, cache = begin(ONE[:, :-1], np.ones(ONE[:, :-1].shape, bool))
  last, _ = call(llama.model.decode)(ONE[:, -1], cache)
  np.testing.assert_allclose(last, made[:, -1], atol=1e-5, rtol=0)


def test_last_layers_are_read_in_the_type_of_the_stack(llama):
  """A bf16 base: the arrays stay fp32 and merge as such; the forward pass sees them rounded."""
  half = llama._replace(params=jax.tree.map(lambda x: x.astype(jnp.bfloat16), llama.params))
  methods, tuned, hyper, base = tiny.lay(half, {"name": "last_layers"}, noise=0.05)
  assert {x.dtype for x in jax.tree.leaves(tuned)} == {jnp.dtype(jnp.float32)}
  seen = peft.weights(peft.Adapted(methods, tuned, hyper, base))
  assert {x.dtype for x in jax.tree.leaves(seen)} == {jnp.dtype(jnp.bfloat16)}
  merged = peft.merge(peft.Adapted(methods, tuned, hyper, base))["trunk"]["layers"]["mlp"][
    "up_proj"
  ]["kernel"]
  own = tuned["peft"]["trunk"]["layers"]["mlp"]["up_proj"]["last_layers"]["kernel"]
  np.testing.assert_array_equal(merged[-1:], own)


@pytest.mark.parametrize(
  "section, words",
  [
    ({"name": "last_layers", "layers": 0}, ("layers is 0",)),
    ({"name": "last_layers", "layers": 4}, ("layers is 4", "3")),
    ({"name": "norms", "targets": ["attn_nrom"]}, ("attn_nrom", "attn_norm")),
    ({"name": "norms", "targets": ["q_proj"]}, ("q_proj", "Norm")),
    ({"name": "norms", "targets": "attn_norm"}, ("attn_norm", "list")),
    ({"name": "bitfit", "targets": ["q_porj"]}, ("q_porj", "q_proj")),
  ],
)
def test_refused(gpt2, section, words):
  with pytest.raises(UserError) as caught:
    tiny.lay(gpt2, section)
  assert all(word in str(caught.value) for word in words), caught.value


def test_a_final_norm_that_is_not_there():
  with pytest.raises(UserError, match="without a norm"):
    tiny.lay(outline("bert"), {"name": "last_layers", "norm": True})


@pytest.mark.parametrize("name", ["full", "last_layers"])
def test_a_quantised_base_is_refused(llama, name):
  whole = tree.flatten(llama.params)
  path = "trunk/layers/mlp/up_proj/kernel"
  parts = {f"{path}/q": jnp.zeros((3, 32, 48), jnp.int8), f"{path}/scale": jnp.ones((3, 48))}
  params = tree.unflatten({p: x for p, x in whole.items() if p != path} | parts)
  held = llama._replace(params=params)
  with pytest.raises(UserError, match="quantised"):
    tiny.lay(held, {"name": name})
  trained = tree.flatten(tiny.lay(held, {"name": "norms"})[1]["params"])
  assert trained.keys() == {p for p in whole if p.endswith("norm/scale")}
