"""Every method on every family: gradients, formulas, merging, padding and refusals."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import tiny

from jaxtune import peft, tree
from jaxtune.errors import UserError
from jaxtune.models.layers import ACTIVATIONS
from jaxtune.peft.methods import adalora, adapter, compacter, loha, lokr, lora

SECTIONS = {
  "lora": {"name": "lora", "rank": 3, "targets": ("q_proj", "down_proj"), "alpha": 5},
  "pfeiffer": {"name": "adapter", "width": 5},
  "houlsby": {"name": "adapter", "width": 5, "placement": "houlsby"},
  "parallel": {"name": "adapter", "width": 5, "placement": "parallel"},
  "prefix": {"name": "prefix", "length": 4},
  "prefix-mlp": {"name": "prefix", "length": 4, "projection": 6},
  "bitfit": {"name": "bitfit"},
  "full": {"name": "full"},
  "stack": {"name": "stack", "lora": {}, "prefix": {"length": 3}, "adapter": {"width": 4}},
}
ONE = np.array([[3, 14, 15, 9, 26]], np.int32)


def run(pretrained, laid, tokens=ONE, mask=None, rng=None):
  return np.asarray(tiny.forward(pretrained, laid, tokens, mask, rng))


def base_logits(pretrained, tokens=ONE, params=None):
  return tiny.forward(pretrained, peft.untuned(params or pretrained.params), tokens)


def loss_of(pretrained, laid):
  """A loss of tuned, whose gradient is of order one."""
  methods, _, _, base = laid

  def loss(tuned, hyper):
    logits = peft.apply(
      pretrained.model, peft.Adapted(methods, tuned, hyper, base), jnp.asarray(ONE)
    )
    return -jnp.sum(jax.nn.log_softmax(logits)[0, :-1, :2])

  return loss


@pytest.mark.parametrize(
  ("name", "section"),
  [("llama", "lora"), ("llama", "prefix-mlp"), ("gpt2", "full"), ("gpt2", "stack")],
)
def test_every_trained_leaf_has_a_gradient(name, section, request):
  """For every layer of every leaf; `tests/matrix.py` has every method."""
  pretrained = request.getfixturevalue(name)
  laid = tiny.lay(pretrained, SECTIONS[section], noise=0.05)
  _, tuned, hyper, base = laid
  held = tree.flatten(tree.combine(base, tuned["params"])).keys()
  assert held == tree.flatten(pretrained.params).keys()
  assert not tree.flatten(base).keys() & tree.flatten(tuned["params"]).keys()
  gradient = tree.flatten(jax.jit(jax.grad(loss_of(pretrained, laid)))(tuned, hyper))
  assert gradient
  dead = {"params/trunk/layers/attn/k_proj/bias"}  # softmax does not see a shift of all keys
  for path, leaf in gradient.items():
    rows = np.abs(np.asarray(leaf)).reshape(leaf.shape[0], -1) if leaf.ndim > 1 else [leaf]
    if path not in dead and "embedding" not in path:
      assert all(np.max(np.abs(row)) > 1e-7 for row in rows), path
    assert np.any(np.asarray(leaf)), path


@pytest.mark.parametrize("section", ["lora", "parallel", "full"])
def test_untouched_at_the_start(pretrained, section):
  made = run(pretrained, tiny.lay(pretrained, SECTIONS[section]))
  np.testing.assert_allclose(made, base_logits(pretrained), atol=1e-6, rtol=0)


@pytest.mark.parametrize("section", ["lora", "full", "bitfit"])
def test_merge_equals_intercept(pretrained, section):
  if section == "bitfit" and pretrained.family == "llama":
    pytest.skip("Llama has no biases")
  laid = tiny.lay(pretrained, SECTIONS[section], noise=0.1)
  methods, tuned, hyper, base = laid
  params = peft.merge(peft.Adapted(methods, tuned, hyper, base))
  made = run(pretrained, laid)
  np.testing.assert_allclose(made, base_logits(pretrained, params=params), atol=1e-5, rtol=0)
  assert not np.allclose(made, base_logits(pretrained), atol=1e-2)


@pytest.mark.parametrize("section", ["prefix", "houlsby", "stack"])
def test_merge_refused(gpt2, section):
  methods, tuned, hyper, base = tiny.lay(gpt2, SECTIONS[section])
  with pytest.raises(UserError, match="cannot be merged"):
    peft.merge(peft.Adapted(methods, tuned, hyper, base))


@pytest.mark.parametrize("options, scale", [({}, 5 / 3), ({"rslora": True}, 5 / 3**0.5),
                                            ({"scale": 2}, 2.0)])  # fmt: skip
def test_lora_is_w_plus_scaled_ba(llama, options, scale):
  laid = tiny.lay(llama, SECTIONS["lora"] | options, noise=0.1)
  flat = dict(tree.flatten(llama.params))
  for path, leaf in tree.flatten(laid[1]["peft"]).items():
    if path.endswith("/a"):
      site = path.removesuffix("/lora/a")
      b = tree.flatten(laid[1]["peft"])[f"{site}/lora/b"]
      flat[f"{site}/kernel"] += scale * np.einsum("lir,lro->lio", leaf, b)
  expected = base_logits(llama, params=tree.unflatten(flat))
  np.testing.assert_allclose(run(llama, laid), expected, atol=1e-5, rtol=0)


def test_two_methods_of_one_name_are_refused(llama):
  sites, twice = peft.find_sites(llama.model), 2 * peft.build({"name": "lora"})
  with pytest.raises(UserError, match="two methods are called 'lora': give one another key"):
    peft.init(jax.random.key(0), twice, sites, llama.params)


def test_a_target_that_hits_nothing_is_named_with_what_it_could_be(llama):
  sites = peft.find_sites(llama.model)
  with pytest.raises(
    UserError, match="target 'k_prj' hits no Linear site; did you mean .*'k_proj'"
  ):
    peft.match(("k_prj",), sites, "Linear")
  with pytest.raises(UserError, match="hits no Linear or Embed site"):
    peft.match(("k_prj",), sites, ("Linear", "Embed"))


def test_lora_on_the_head(llama):
  laid = tiny.lay(llama, {"name": "lora", "rank": 2, "targets": ["head"]}, noise=0.1)
  assert set(tree.flatten(laid[1]["peft"])) == {"head/lora/a", "head/lora/b"}
  params = peft.merge(peft.Adapted(*laid))
  np.testing.assert_allclose(run(llama, laid), base_logits(llama, params=params), atol=1e-5, rtol=0)


@pytest.mark.parametrize("placement, act, scale", [("pfeiffer", "relu", 1.0),
                                                   ("houlsby", "silu", 1.0),
                                                   ("parallel", "relu", 4.0)])  # fmt: skip
def test_adapter_formulas(placement, act, scale):
  """y = x + f + s (W_up act(W_down h + b) + b'), with h by placement."""
  method = peft.build({"name": "adapter", "placement": placement})[0]
  rng = np.random.default_rng(0)
  make = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)
  w = dict(down_kernel=make(6, 2), down_bias=make(2), up_kernel=make(2, 6), up_bias=make(6))
  x, f = make(1, 3, 6), make(1, 3, 6)
  h = np.asarray({"pfeiffer": x + f, "houlsby": f, "parallel": x}[placement])
  inner = np.asarray(ACTIVATIONS[act](np.einsum("btd,dw->btw", h, w["down_kernel"])
                                      + np.asarray(w["down_bias"])))  # fmt: skip
  expected = x + f + scale * (np.einsum("btw,wd->btd", inner, w["up_kernel"])
                              + np.asarray(w["up_bias"]))  # fmt: skip
  assert method.options["scale"] == scale and method.options["activation"] == act

  class Evaluation:
    has_rng = staticmethod(lambda name: False)

  fixed = {"scale": jnp.float32(scale), "dropout": jnp.float32(0)}
  assert method.intercept is not None
  made = method.intercept(peft.Call(Evaluation, fixed | w, lambda x, y: x + y), x, f)
  np.testing.assert_allclose(made, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("shift", [True, False])
def test_prefix_equals_past_key_values_in_pytorch(name, shift, request, tmp_path):
  import torch
  from transformers import AutoModelForCausalLM, DynamicCache

  from jaxtune.models import hf

  pretrained, length = request.getfixturevalue(name), 4
  folder = hf.save(pretrained, pretrained.params, tmp_path / "model")
  theirs = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
  section = {"name": "prefix", "length": length, "shift": shift}
  laid = tiny.lay(pretrained, section, noise=0.5)
  pair = laid[1]["peft"]["trunk"]["layers"]["attn"]["attend"]["prefix"]
  tokens, mask = tiny.batch(side="left")
  cache = DynamicCache(config=theirs.config)
  for layer in range(pretrained.model.config.layers):
    both = (np.asarray(pair[n][layer]).swapaxes(0, 1)[None] for n in ("key", "value"))
    both = [torch.tensor(np.repeat(x, len(tokens), 0)) for x in both]
    cache.update(*both, layer)
  whole = np.pad(mask, ((0, 0), (length, 0)), constant_values=True)
  positions = tiny.positions_of(mask) + (length if shift else 0)
  expected = tiny.torch_logits(theirs, tokens, whole, positions, past_key_values=cache)
  made = run(pretrained, laid, tokens, mask)
  np.testing.assert_allclose(made[mask], expected[mask], atol=1e-5, rtol=0)


AXES = {
  "rank": ({"name": "lora", "targets": ("q_proj", "down_proj")}, "rank", (1, 4)),
  "width": ({"name": "adapter"}, "width", (1, 4)),
  "width-houlsby": ({"name": "adapter", "placement": "houlsby"}, "width", (2, 5)),
  "length": ({"name": "prefix"}, "length", (1, 4)),
  "length-mlp": ({"name": "prefix", "projection": 6}, "length", (1, 4)),
}


def group(pretrained, axis, noise=0.05):
  section, name, values = AXES[axis]
  return [tiny.lay(pretrained, section | {name: v}, noise=noise) for v in values]


@pytest.mark.parametrize("axis", AXES)
def test_a_small_draw_starts_a_large_one(llama, axis):
  small, large = (laid[1]["peft"] for laid in group(llama, axis, noise=0)[:2])
  jax.tree.map(np.testing.assert_array_equal, tree.crop(large, small), small)
  assert any(np.std(x) for x in jax.tree.leaves(small))


def test_draws_differ_by_seed_site_and_layer(llama):
  draw = lambda seed: tree.flatten(tiny.lay(llama, {"name": "lora"}, seed=seed)[1]["peft"])
  first, again, other = draw(0), draw(0), draw(1)
  q, v = (f"trunk/layers/attn/{p}_proj/lora/a" for p in "qv")
  np.testing.assert_array_equal(first[q], again[q])
  assert not np.allclose(first[q], other[q]) and not np.allclose(first[q], first[v])
  assert not np.allclose(first[q][0], first[q][1])


def test_an_interceptor_around_a_jitted_call_is_lost(llama):
  """Why `peft.apply` belongs inside jit (hazard 1): the cached program knows no interceptor."""
  import flax.linen as nn

  apply = jax.jit(lambda params: llama.model.apply({"params": params}, jnp.asarray(ONE)))
  plain = apply(llama.params)
  with nn.intercept_methods(lambda next_fn, args, kwargs, context: 0 * next_fn(*args, **kwargs)):
    np.testing.assert_array_equal(apply(llama.params), plain)
  laid = tiny.lay(llama, SECTIONS["lora"], noise=0.1)
  assert not np.allclose(run(llama, laid), plain, atol=1e-2)


@pytest.mark.parametrize("section", SECTIONS)
def test_every_delta_lives_at_a_site_that_the_model_calls(gpt2, section):
  """Hazard 3: a misspelt site or a lost collection would be ignored in silence."""
  methods, tuned, hyper, _ = tiny.lay(gpt2, SECTIONS[section])
  sites = peft.find_sites(gpt2.model)
  for method in methods:
    here = peft.arrays_of(method, peft.reparametrise(methods, tuned["peft"])) | peft.arrays_of(
      method, hyper
    )
    assert here.keys() <= sites.keys()
    for path, arrays in here.items():
      lead = sites[path].lead
      assert all(x.shape[: len(lead)] == lead for x in arrays.values())


def test_dropout(gpt2):
  section = {"name": "stack", "lora": {"dropout": 0.5}, "adapter": {"dropout": 0.5, "width": 4}}
  laid = methods, tuned, hyper, base = tiny.lay(gpt2, section, noise=0.1)
  off = jax.tree.map_with_path(
    lambda path, x: jnp.zeros_like(x) if path[-1].key == "dropout" else x, hyper
  )
  quiet = run(gpt2, laid)
  key = jax.random.key(1)
  np.testing.assert_allclose(
    run(gpt2, (methods, tuned, off, base), rng=key), quiet, atol=1e-6, rtol=0
  )
  noisy = run(gpt2, laid, rng=key)
  assert not np.allclose(noisy, quiet, atol=1e-3)
  assert not np.allclose(noisy, run(gpt2, laid, rng=jax.random.key(2)), atol=1e-3)


def test_dropout_keeps_the_mean():
  class Training:
    has_rng = staticmethod(lambda name: True)
    make_rng = staticmethod(lambda name: jax.random.key(0))

  for rate in (0.0, 0.25, 0.9):
    call = peft.Call(Training, {"dropout": jnp.float32(rate)}, lambda x: x)
    dropped = call.dropout(jnp.ones((200, 200)))
    assert abs(float(jnp.mean(dropped == 0)) - rate) < 0.01
    assert abs(float(dropped.mean()) - 1) < 0.05


@pytest.mark.parametrize(
  "section, words",
  [
    ({"name": "lora", "rank": 0}, ("rank is 0",)),
    ({"name": "lora", "rank": 17}, ("rank is 17", "16")),
    ({"name": "lora", "dropout": 1.0}, ("dropout",)),
    ({"name": "lora", "targets": ["q_porj"]}, ("q_porj", "q_proj")),
    ({"name": "lora", "targets": ["q_proj", "c_attn"]}, ("c_attn",)),
    ({"name": "lora", "targets": ["attn_norm"]}, ("attn_norm", "Linear")),
    ({"name": "lora", "targets": ["q_proj("]}, ("q_proj(", "regular expression")),
    ({"name": "lora", "targets": ["(.|.|..)*q_"]}, ("takes longer than", "repetitions")),
    ({"name": "lora", "targets": ["(a?){1000}{1000}{1000}"]}, ("is too large",)),
    ({"name": "lora", "targets": ["a" * 1001]}, ("is too large", "1000 characters")),
    ({"name": "lora", "ranks": {"(.|.|..)*q_": 2}}, ("takes longer than",)),
    ({"name": "lora", "targets": []}, ("no targets", "q_proj")),
    ({"name": "lora", "targets": "q_proj"}, ("targets", "q_proj")),
    ({"name": "adapter", "width": 0}, ("width is 0",)),
    ({"name": "adapter", "width": 33}, ("width is 33", "32")),
    ({"name": "adapter", "placement": "pfeifer"}, ("pfeifer", "pfeiffer")),
    ({"name": "adapter", "activation": "rellu"}, ("rellu", "relu")),
    ({"name": "prefix", "length": 0}, ("length is 0",)),
    ({"name": "prefix", "projection": 0}, ("projection is 0",)),
    ({"name": "bitfit"}, ("bitfit", "bias")),
    ({"name": "lorra"}, ("lorra", "lora")),
    ({}, ("None", "lora")),
    ({"name": "stack"}, ("stack",)),
    ({"name": "stack", "lora": 4}, ("lora",)),
    ({"name": "stack", "attn": {"name": "lora"}}, ("attn",)),
    ({"name": "stack", "a/b": {"name": "lora"}}, ("a/b",)),
    ({"name": "stack", "norms": {}, "last_layers": {"layers": 3}}, ("two methods train", "norm")),
    ({"name": "head", "paths": ["trunk/nrom/scale"]}, ("trunk/nrom/scale", "trunk/norm/scale")),
    ({"name": "lora", "scale": 1.0, "rslora": True}, ("method.scale", "rslora")),
  ],
)
def test_refused(llama, section, words):
  with pytest.raises(UserError) as caught:
    tiny.lay(llama, section)
  message = str(caught.value)
  assert all(word in message for word in words) and "\n" not in message, message


def test_dora_over_another_delta_is_not_merged(llama):
  section = {"name": "stack", "a": {"name": "lora"}, "b": {"name": "lora", "dora": True}}
  methods, tuned, hyper, base = tiny.lay(llama, section, noise=0.1)
  with pytest.raises(UserError, match="'b' scales .* a name that sorts before"):
    peft.merge(peft.Adapted(methods, tuned, hyper, base))
  peft.merge(peft.Adapted(methods[::-1], tuned, hyper, base))


def test_dora_over_layers_that_are_trained_is_merged(llama):
  section = {"name": "stack", "last_layers": {"layers": 1}, "lora": {"dora": True}}
  laid, tokens = tiny.lay(llama, section, noise=0.1), tiny.batch()[0]
  merged = peft.untuned(peft.merge(laid))
  np.testing.assert_allclose(
    tiny.forward(llama, merged, tokens), tiny.forward(llama, laid, tokens), atol=1e-4
  )


ONES = {"scale": (), "a": (4, 2), "b": (2, 4), "e": (2,)}
BIASES = {"scale": (), "down_bias": (2,), "up_bias": (4,)}
PHM = {"down_rule": (1, 1, 1), "down_left": (1, 4, 1), "down_right": (1, 1, 2)}
PHM |= {"up_rule": (1, 1, 1), "up_left": (1, 2, 1), "up_right": (1, 1, 4)}
NETWORK = lambda module: lambda call, x: module(call, x, ACTIVATIONS["silu"])
SCALED = {
  "lora": (lora._intercept, ONES),
  "adalora": (adalora._intercept, ONES),
  "loha": (loha._intercept, {"scale": ()} | {f"w{i}_{n}": ONES[n] for i in (1, 2) for n in "ab"}),
  "lokr": (lokr._intercept, {"scale": (), "w1": (2, 2), "w2": (2, 2)}),
  "adapter": (
    NETWORK(adapter._bottleneck), BIASES | {"down_kernel": (4, 2), "up_kernel": (2, 4)},
  ),
  "compacter": (NETWORK(compacter._network), BIASES | PHM),
}  # fmt: skip


@pytest.mark.parametrize("name", SCALED)
def test_a_scale_is_not_rounded_to_bf16(name):
  """1.003 would be 1; of the products, which are rounded alone, some become the next number."""
  call, shapes = SCALED[name]
  module = SimpleNamespace(has_rng=lambda _: False)
  x_BI = jax.random.normal(jax.random.key(0), (64, 4)).astype(jnp.bfloat16)
  ones = {name: jnp.ones(shape) for name, shape in shapes.items()}
  plain, scaled = (
    call(peft.Call(module, ones | {"scale": jnp.float32(scale)}, jnp.zeros_like), x_BI)
    for scale in (1.0, 1.003)
  )
  assert (plain != scaled).any()


def test_dropout_keeps_the_mean_in_bf16():
  """Of a rate of 0.1, nine tenths are 0.898 in bf16."""
  module = SimpleNamespace(has_rng=lambda _: True, make_rng=lambda _: jax.random.key(0))
  x = jnp.linspace(1, 2, 4096).astype(jnp.bfloat16)
  kept = peft.Call(module, {"dropout": jnp.float32(0.1)}, lambda x: x).dropout(x)
  ratios = np.asarray(kept, np.float32) / np.asarray(x, np.float32)
  assert ratios[ratios > 0].mean() == pytest.approx(1 / 0.9, rel=3e-4)
