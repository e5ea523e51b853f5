"""MAM and UniPELT: what they stand for, gates by formula, and cached decoding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit, softmax
from support import deltas, tiny

from jaxtune import config, peft, tree
from jaxtune.errors import UserError
from jaxtune.evaluation import generate, texts
from jaxtune.models.context import Mask
from jaxtune.models.layers import Attend
from jaxtune.peft import unions

SMALL = {"prefix": {"length": 3, "projection": 5}}
SECTIONS = {"mam": {"name": "mam", **SMALL}, "unipelt": {"name": "unipelt", **SMALL}}
PROMPTS, LENGTH, NEW = [[5, 9, 2], [7], [11, 3, 8, 1, 30]], 5, 5


def draw(seed, *shape):
  return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_unions_are_the_published_stacks():
  mam = config.complete_method({"name": "mam", "adapter": {"scale": 2.0}})
  assert mam["name"] == "stack" and list(mam) == ["name", "adapter", "prefix"]
  assert mam["prefix"]["length"] == 30 and not mam["prefix"]["shift"]
  assert mam["adapter"]["placement"] == "parallel" and mam["adapter"]["scale"] == 2
  assert mam["adapter"]["reduction_factor"] == 2
  assert config.complete_method(mam) == mam
  prefix, adapter = peft.build({"name": "mam"})
  assert (prefix.kind, adapter.kind) == ("prefix", "adapter") and adapter.options["scale"] == 4
  unipelt = peft.build({"name": "unipelt"})
  assert [method.kind for method in unipelt] == ["prefix", "adapter", "lora"]
  assert all(method.options["gate"] for method in unipelt)


def test_options_and_other_methods_in_a_union():
  found = unions.expand({"name": "stack", "mam": {"adapter": {"width": 8}}, "lora": {"rank": 2}})
  assert list(found) == ["name", "prefix", "adapter", "lora"]
  assert found["adapter"]["width"] == 8 and "reduction_factor" not in found["adapter"]
  swapped = unions.expand({"name": "mam", "adapter": {"name": "compacter", "n": 2}})
  assert swapped["adapter"] == {"name": "compacter", "n": 2}
  assert [m.kind for m in peft.build(swapped)] == ["prefix", "compacter"]
  assert unions.expand({"name": "lora"}) == {"name": "lora"}


@pytest.mark.parametrize(
  "section, words",
  [
    ({"name": "mam", "adaptor": {}}, ("method.adaptor", "adapter")),
    ({"name": "unipelt", "lora": 8}, ("method.lora is 8", "section")),
    ({"name": "stack", "mam": {}, "prefix": {}}, ("method.prefix", "twice")),
    ({"name": "unipel"}, ("unipel", "unipelt")),
    ({"name": "unions"}, ("unknown method 'unions'",)),
    ({"name": "lora", "gate": True, "dora": True}, ("gate", "dora")),
  ],
)
@pytest.mark.parametrize("read", [peft.build, config.complete_method])
def test_refused(section, words, read):
  if read is config.complete_method and "dora" in section:
    pytest.skip("options are compared where the method is made")
  with pytest.raises(UserError) as caught:
    read(section)
  assert all(word in str(caught.value) for word in words), str(caught.value)


def test_a_gate_scales_each_token_of_lora():
  (method,) = peft.build({"name": "lora", "rank": 2, "alpha": 6, "gate": True, "targets": ["q"]})
  site = peft.Site("q", "Linear", ((1, 4, 6),), 5, None)
  frozen = peft.Frozen(lambda path: jnp.zeros((6, 5)))
  trained, fixed = method.init(jax.random.key(0), {"q": site}, frozen)
  assert not np.any(trained["q"]["gate_kernel"]) and trained["q"]["gate_bias"].shape == ()
  w, x, y = tiny.perturb(trained["q"], 1, 0.7), draw(1, 2, 4, 6), draw(2, 2, 4, 5)
  assert method.intercept is not None
  call = peft.Call(deltas.Evaluation, fixed["q"] | w, lambda x: jnp.array(y))
  made = method.intercept(call, jnp.array(x))
  w = jax.tree.map(np.asarray, w)
  gate = expit(x @ w["gate_kernel"] + w["gate_bias"])[..., None]
  np.testing.assert_allclose(made, y + gate * 3 * (x @ w["a"] @ w["b"]), atol=1e-5)
  assert method.merge is None


def test_a_gate_scales_what_each_query_takes_from_the_prefix():
  """softmax(q [p; k]) [g(q) p'; v]: weights stay, and the prefix's values count g(q) times."""
  (method,) = peft.build({"name": "prefix", "length": 2, "gate": True})
  shapes = (2, 3, 4, 6), (2, 5, 2, 6)
  site = peft.Site("attend", "Attend", (shapes[0], shapes[1], shapes[1]), 6, None)
  trained = method.init(jax.random.key(0), {"attend": site}, None)[0]["attend"]
  assert not np.any(trained["gate_kernel"]) and trained["gate_kernel"].shape == (4, 6)
  w = tiny.perturb(trained, 1, 0.7)
  q, k, v = draw(1, *shapes[0]), draw(2, *shapes[1]), draw(3, *shapes[1])
  mask = Mask(np.random.default_rng(4).random((2, 5)) < 0.7)
  attend = lambda *args: Attend().apply({}, *args)
  assert method.intercept is not None
  call = peft.Call(deltas.Evaluation, {"mask": jnp.ones(2, bool)} | w, attend)
  made = method.intercept(call, *map(jnp.array, (q, k, v)), mask)
  w = jax.tree.map(np.asarray, w)
  whole = lambda p, x: np.concatenate([np.broadcast_to(p, (2, *p.shape)), x], 1).repeat(2, 2)
  scores = np.einsum("btnh,bsnh->bnts", q, whole(w["key"], k)) / 6**0.5
  scores[..., 2:] = np.where(mask.array(3), scores[..., 2:], -1e30)
  weights = softmax(scores, -1)
  gate = expit(np.einsum("btnh,nh->bt", q, w["gate_kernel"]) + w["gate_bias"])
  weights[..., :2] *= gate[:, None, :, None]
  expected = np.einsum("bnts,bsnh->btnh", weights, whole(w["value"], v))
  np.testing.assert_allclose(made, expected, atol=1e-5)


def laid_over(name, pretrained, noise=0.2):
  return tiny.lay(pretrained, SECTIONS[name], noise=noise)


@pytest.mark.parametrize(("name", "family"), [("mam", "gpt2"), ("unipelt", "llama")])
def test_cached_decoding_equals_teacher_forcing(request, name, family):
  pretrained = request.getfixturevalue(family)
  methods, tuned, hyper, base = laid = laid_over(name, pretrained, 0.1 if family == "gpt2" else 0.2)
  tokens, mask = texts.pad_left(PROMPTS, 0, LENGTH)
  made = jax.jit(
    lambda base, tuned, hyper: generate.generate(
      pretrained.model, peft.Adapted(methods, tuned, hyper, base), tokens, mask, max_new_tokens=NEW,
      stop_tokens=(tiny.VOCABULARY,), key=jax.random.key(0),
    )
  )(base, tuned, hyper)  # fmt: skip
  whole = np.concatenate([tokens, made], 1), np.pad(mask, ((0, 0), (0, NEW)), constant_values=True)
  logits = np.asarray(tiny.forward(pretrained, laid, *whole))
  np.testing.assert_array_equal(logits[:, LENGTH - 1 : -1].argmax(-1), made)
  assert len({tuple(row) for row in np.asarray(made).tolist()}) > 1


@pytest.mark.full
@pytest.mark.parametrize("name", SECTIONS)
def test_every_array_has_a_gradient_in_an_encoder(name):
  pretrained = tiny.make("bert", head="tokens", labels=3)
  methods, tuned, hyper, base = laid_over(name, pretrained)
  tokens, mask = tiny.batch(2, 5, side="right")

  @jax.jit
  @jax.value_and_grad
  def loss(deltas):
    tuned = {"params": {}, "peft": deltas}
    logits = peft.apply(pretrained.model, peft.Adapted(methods, tuned, hyper, base), tokens, mask)
    return jnp.sum(jax.nn.log_softmax(logits)[..., :2])

  value, gradient = loss(tuned["peft"])
  gradient = tree.flatten(gradient)
  assert np.isfinite(value)
  assert sum("gate_kernel" in path for path in gradient) == {"mam": 0, "unipelt": 4}[name]
  for path, leaf in gradient.items():
    assert np.abs(leaf).max() > 1e-7, path
