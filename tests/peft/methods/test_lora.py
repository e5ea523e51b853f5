"""LoRA's kin against PEFT on the same numbers, in groups of trials, merged, and in bf16."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support import tiny

from jaxtune import peft, tree
from jaxtune.errors import UserError
from jaxtune.models import hf
from jaxtune.models.layers import Embed, Linear
from jaxtune.training import optim

COUNT, WIDTH, OUTPUTS = 11, 8, 6
IDS = np.array([[3, 1, 4, 1, 10], [5, 9, 2, 6, 0]], np.int32)
BOTH = ("embed", "q_proj")


class Toy(nn.Module):
  """An embedding and a linear layer."""

  dtype: type = jnp.float32

  def setup(self):
    self.embed = Embed(COUNT, WIDTH, self.dtype)
    self.q_proj = Linear(WIDTH, OUTPUTS, use_bias=True, dtype=self.dtype)

  def __call__(self, tokens):
    return self.q_proj(self.embed(tokens))

  @staticmethod
  def trace_inputs():
    return {"tokens": jnp.asarray(IDS)}


TOY = Toy()
PARAMS = tiny.perturb(TOY.init(jax.random.key(0), IDS)["params"], 0, 0.5)
GAUSS = np.random.default_rng(0).standard_normal((*IDS.shape, OUTPUTS)).astype(np.float32)
LORA = {"name": "lora", "rank": 3, "alpha": 5.0, "targets": BOTH}
# ours, and what PEFT calls it
VARIANTS = {
  "lora": ({}, {}),
  "rslora": ({"rslora": True}, {"use_rslora": True}),
  "gaussian": ({"initialise": "gaussian"}, {"init_lora_weights": "gaussian"}),
  "dora": ({"dora": True}, {"use_dora": True}),
  "pissa": ({"initialise": "pissa"}, {"init_lora_weights": "pissa"}),
  "olora": ({"initialise": "olora"}, {"init_lora_weights": "olora"}),
  "dora-pissa": (
    {"dora": True, "initialise": "pissa"},
    {"use_dora": True, "init_lora_weights": "pissa"},
  ),
  "patterns": (
    {"ranks": {"q_.*": 2}, "alphas": {"embed": 3.0}},
    {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"embed": 3.0}},
  ),
}
OURS = {name: ours for name, (ours, _) in VARIANTS.items()}
OURS["lora-fa"] = {"train_a": False, "targets": ("q_proj",)}
OURS["lora-fa-pissa"] = OURS["lora-fa"] | {"initialise": "pissa"}


def lay(options, noise=0.0, params=PARAMS):
  return tiny.lay(hf.Pretrained(TOY, params, *[None] * 4), LORA | options, noise=noise)


def run(laid, model=TOY, rng=None):
  methods, tuned, hyper, base = laid
  return peft.apply(model, peft.Adapted(methods, tuned, hyper, base), IDS, rng=rng)


def loss_of(laid):
  methods, _, _, base = laid
  return lambda tuned, hyper: jnp.sum(
    peft.apply(TOY, peft.Adapted(methods, tuned, hyper, base), IDS) * GAUSS
  )


def numbers(laid, site):
  """Returns all of the method's arrays at a site."""
  trained, fixed = laid.overlay.arrays_of(laid.methods[0])
  return fixed[site] | trained[site]


@pytest.fixture
def theirs():
  """Makes the same toy in PyTorch with PEFT's LoRA over it."""
  import torch
  from peft import LoraConfig, get_peft_model

  class Twin(torch.nn.Module):
    def __init__(self):
      super().__init__()
      self.embed = torch.nn.Embedding(COUNT, WIDTH)
      self.q_proj = torch.nn.Linear(WIDTH, OUTPUTS)

    def forward(self, ids):
      return self.q_proj(self.embed(ids))

  def make(**options):
    torch.manual_seed(0)  # whatever ran before
    twin = Twin()
    with torch.no_grad():
      twin.embed.weight.copy_(tensor(PARAMS["embed"]["embedding"]))
      twin.q_proj.weight.copy_(tensor(PARAMS["q_proj"]["kernel"]).T)
      twin.q_proj.bias.copy_(tensor(PARAMS["q_proj"]["bias"]))
    config = LoraConfig(r=3, lora_alpha=5, target_modules=list(BOTH)) if not options else (
      LoraConfig(**{"r": 3, "lora_alpha": 5, "target_modules": list(BOTH)} | options)
    )  # fmt: skip
    return get_peft_model(twin, config)

  return make


def tensor(array):
  import torch

  return torch.tensor(np.asarray(array, np.float32))


def transposed(place):
  return place.detach().numpy().T


def places(model, site):
  """Returns {our array: PEFT's parameter}, each the transpose of the other."""
  module = getattr(model.base_model.model, site)
  kind = "lora_embedding_" if site == "embed" else "lora_"
  pick = lambda name: getattr(module, kind + name)["default"]
  found = {
    n: p if site == "embed" else p.weight for n, p in zip("ab", map(pick, "AB"), strict=True)
  }
  if len(module.lora_magnitude_vector):
    found["magnitude"] = module.lora_magnitude_vector["default"].weight
  return found


def copy(laid, model):
  import torch

  for site in BOTH:
    for name, place in places(model, site).items():
      with torch.no_grad():
        place.copy_(tensor(np.transpose(numbers(laid, site)[name])))


@pytest.mark.parametrize("variant", VARIANTS)
def test_as_peft(variant, theirs):
  """Outputs and the gradient of every array, of moved numbers; outputs at the start."""
  import torch

  ours, options = VARIANTS[variant]
  plain = np.asarray(TOY.apply({"params": PARAMS}, IDS))
  np.testing.assert_allclose(run(lay(ours)), plain, atol=2e-6, rtol=0)
  model, laid = theirs(**options), lay(ours, noise=0.3)
  copy(laid, model)
  output = model(torch.tensor(IDS).long())
  assert not np.allclose(run(laid), plain, atol=0.1)
  np.testing.assert_allclose(run(laid), output.detach().numpy(), atol=1e-5, rtol=0)
  (output * tensor(GAUSS)).sum().backward()
  gradient = peft.arrays_of(laid[0][0], jax.grad(loss_of(laid))(*laid[1:3])["peft"])
  for site in BOTH:
    mirrored = places(model, site)
    assert mirrored.keys() == gradient[site].keys()
    for name, place in mirrored.items():
      made = gradient[site][name]
      assert np.abs(made).max() > 1e-3
      np.testing.assert_allclose(made, transposed(place.grad), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("variant", ["pissa", "olora", "dora", "gaussian", "lora"])
def test_starts_as_peft(variant, theirs):
  """PiSSA's and OLoRA's first factors are PEFT's up to signs, and what stays frozen is the same."""
  ours, options = VARIANTS[variant]
  made, model = numbers(lay(ours), "q_proj"), theirs(**options)
  mirrored = {n: transposed(p) for n, p in places(model, "q_proj").items()}
  made, kernel = jax.tree.map(np.asarray, made), np.asarray(PARAMS["q_proj"]["kernel"])
  if variant in ("pissa", "olora"):
    signs = np.sign(np.sum(made["a"] * mirrored["a"], 0))
    np.testing.assert_allclose(made["a"] * signs, mirrored["a"], atol=1e-5, rtol=0)
    np.testing.assert_allclose(made["b"] * signs[:, None], mirrored["b"], atol=1e-5, rtol=0)
    frozen = model.base_model.model.q_proj.base_layer.weight.detach().numpy().T
    rest = kernel - made["scale"] * made["a0"] @ made["b0"]
    np.testing.assert_allclose(rest, frozen, atol=1e-5, rtol=0)
    assert np.abs(frozen - kernel).max() > 0.1
  else:
    assert not made["b"].any() and not mirrored["b"].any()
  if "magnitude" in mirrored:
    np.testing.assert_allclose(made["magnitude"], mirrored["magnitude"], rtol=1e-6)
  embed = numbers(lay(ours), "embed")
  assert not embed["a"].any() and np.std(embed["b"]) == pytest.approx(1, rel=0.4)


@pytest.mark.parametrize("initialise", ["kaiming", "gaussian"])
def test_draws_are_as_wide_as_peft_draws(llama, initialise):
  import torch
  from peft import LoraConfig, get_peft_model

  torch.manual_seed(0)
  names = list(map(str, range(8)))
  drawn = LoraConfig(r=8, init_lora_weights=initialise == "kaiming" or initialise)
  drawn.target_modules = names
  model = get_peft_model(torch.nn.Sequential(*(torch.nn.Linear(32, 32) for _ in names)), drawn)
  theirs = [x.detach() for n, x in model.named_parameters() if "lora_A" in n]
  section = LORA | {"rank": 8, "targets": ["q_proj", "o_proj"], "initialise": initialise}
  flat = tree.flatten(tiny.lay(llama, section).tuned["peft"])
  ours = np.concatenate([np.ravel(x) for path, x in flat.items() if path.endswith("/a")])
  assert ours.std() == pytest.approx(float(torch.stack(theirs).std()), rel=0.1)


@pytest.mark.parametrize("variant", ["lora", "dora"])
def test_dropout_as_peft(variant, theirs, monkeypatch):
  """With the same elements dropped, which DoRA drops for the frozen weights too."""
  import torch

  keep = np.random.default_rng(1).random((*IDS.shape, WIDTH)) < 0.5
  drop = torch.nn.Module()
  drop.forward = lambda x: x * tensor(keep) * 2
  ours, options = VARIANTS[variant]
  laid, model = lay(ours | {"dropout": 0.5}, noise=0.3), theirs(**options)
  copy(laid, model)
  model.base_model.model.q_proj.lora_dropout["default"] = drop
  quiet = run(laid)
  monkeypatch.setattr(peft.Call, "dropout", lambda call, x: x * keep * 2)
  made = run(laid, rng=jax.random.key(0))
  expected = model.train()(torch.tensor(IDS).long()).detach().numpy()
  np.testing.assert_allclose(made, expected, atol=1e-5, rtol=0)
  assert not np.allclose(made, quiet, atol=0.1)


@pytest.mark.parametrize("name", ["llama", "llama3"])
def test_embeddings_as_peft(name, tmp_path):
  """Where the logits are scored by the embeddings (llama3), only the lookup changes."""
  from peft import LoraConfig, get_peft_model

  twin = tiny.torch_twin(tiny.torch_config(name), tmp_path)
  pretrained = hf.load(str(tmp_path))
  laid = tiny.lay(pretrained, {"name": "lora", "rank": 3, "targets": ("embed",)}, noise=0.1)
  model = get_peft_model(twin, LoraConfig(r=3, lora_alpha=16, target_modules=["embed_tokens"]))
  module = model.base_model.model.model.embed_tokens
  for place, array in zip((module.lora_embedding_A, module.lora_embedding_B), "ab", strict=True):
    place["default"].data.copy_(tensor(numbers(laid, "embed")[array]).T)
  made = tiny.forward(pretrained, laid, IDS)
  np.testing.assert_allclose(made, tiny.torch_logits(model, IDS), atol=1e-4, rtol=0)
  with model.disable_adapter():
    assert not np.allclose(made, tiny.torch_logits(model, IDS), atol=0.1)


@pytest.mark.parametrize("variant", OURS)
def test_merge_equals_intercept(variant):
  methods, tuned, hyper, base = laid = lay(OURS[variant], noise=0.3)
  params = peft.merge(peft.Adapted(methods, tuned, hyper, base))
  merged = TOY.apply({"params": params}, IDS)
  np.testing.assert_allclose(run(laid), merged, atol=1e-5, rtol=0)


@pytest.mark.full
def test_merge_equals_intercept_in_scanned_layers(llama):
  section = {
    "name": "lora", "rank": 3, "dora": True, "initialise": "pissa", "ranks": {"mlp/\\w+": 2},
    "targets": ("embed", "q_proj", "down_proj"),
  }  # fmt: skip
  methods, tuned, hyper, base = start = tiny.lay(llama, section)
  assert numbers(start, "trunk/layers/mlp/down_proj")["a"].shape == (3, 48, 2)
  laid = methods, tiny.perturb(tuned, 1) | {"params": {}}, hyper, base
  apply = jax.jit(lambda params: llama.model.apply({"params": params}, IDS))
  plain, merged = (
    apply(llama.params),
    apply(peft.merge(peft.Adapted(methods, laid[1], hyper, base))),
  )
  made = tiny.forward(llama, laid, IDS)
  np.testing.assert_allclose(made, merged, atol=2e-5, rtol=0)
  np.testing.assert_allclose(tiny.forward(llama, start, IDS), plain, atol=1e-5, rtol=0)
  assert not np.allclose(made, plain, atol=0.1)


GROUPS = {
  "dora-pissa": (
    OURS["dora-pissa"],
    [{"rank": 1, "b_rate": 16.0}, {"rank": 4, "alpha": 7.0, "rslora": True}],
  ),
  "lora-fa-olora": (OURS["lora-fa"] | {"initialise": "olora"}, [{"rank": 2}, {"rank": 3}]),
  "patterns": (
    {"initialise": "gaussian"},
    [{"ranks": {"q_proj": 1}}, {"ranks": {"embed": 5}, "alphas": {"q_proj|embed": 2.0}}],
  ),
}


def three_steps(laid):
  """Makes (tuned, hyper) -> the loss, its gradient, and tuned after three steps of adamw."""
  loss, tx = jax.value_and_grad(loss_of(laid)), optax.adamw(0.1, weight_decay=0.1)

  def run(tuned, hyper):
    def step(carry, _):
      tuned, state = carry
      value, gradient = loss(tuned, hyper)
      changes, state = tx.update(gradient, state, tuned)
      changes = {"peft": optim.scale(changes, hyper, 1.0)["peft"], "params": tuned["params"]}
      return (optax.apply_updates(tuned, changes), state), (value, gradient)

    (tuned, _), seen = jax.lax.scan(step, (tuned, tx.init(tuned)), None, 3)
    return *jax.tree.map(lambda x: x[0], seen), tuned

  return run


@pytest.mark.full
@pytest.mark.parametrize("name", GROUPS)
def test_grouped_trials_equal_solo_trials(name):
  """Loss, gradient and three steps; the padding stays exactly zero."""
  options, trials = GROUPS[name]
  solo = [lay(options | trial, noise=0.1) for trial in trials]
  tuned, hyper = (tree.stack([laid[i] for laid in solo]) for i in (1, 2))
  every = jax.jit(jax.vmap(three_steps(solo[0])))(tuned, hyper)
  for i, laid in enumerate(solo):
    alone = jax.jit(three_steps(laid))(*laid[1:3])
    mine = jax.tree.map(lambda x, i=i: x[i], every)
    close = lambda a, b: np.testing.assert_allclose(a, b, atol=5e-5, rtol=1e-4)
    close(mine[0], alone[0])
    for many, one in zip(mine[1:], alone[1:], strict=True):
      jax.tree.map(close, tree.crop(many, one), one)
      inside = tree.stack([jax.tree.map(jnp.ones_like, one), many])
      jax.tree.map(lambda x: np.testing.assert_array_equal(x[1] * (1 - x[0]), 0), inside)


def test_b_rate_is_a_ratio_of_learning_rates():
  """LoRA+: of linear layers' b; the embedding's learning rates stay."""
  laid = lay({"b_rate": 16.0}, noise=0.1)
  changes = jax.tree.map(jnp.ones_like, laid[1])
  made = peft.arrays_of(laid[0][0], optim.scale(changes, laid[2], 1.0)["peft"])
  rates = {(site, n): np.unique(x).tolist() for site in BOTH for n, x in made[site].items()}
  expected = {("embed", "a"): [1], ("embed", "b"): [1], ("q_proj", "a"): [1], ("q_proj", "b"): [16]}
  assert rates == expected


def test_lora_fa_trains_b_alone():
  laid, whole = lay(OURS["lora-fa"]), lay({"targets": ("q_proj",)})
  assert tree.flatten(laid[1]["peft"]).keys() == {"q_proj/lora/b"}
  np.testing.assert_array_equal(numbers(laid, "q_proj")["a"], numbers(whole, "q_proj")["a"])
  gradients = [jax.grad(loss_of(x))(*x[1:3])["peft"]["q_proj"]["lora"]["b"] for x in (laid, whole)]
  np.testing.assert_array_equal(*gradients)
  assert gradients[0].any()


@pytest.mark.parametrize("variant", ["lora", "dora", "dora-pissa"])
def test_bf16_is_close_to_fp32(variant):
  half = Toy(jnp.bfloat16)
  laid, start = lay(OURS[variant], noise=0.1), lay(OURS[variant])
  wide, narrow = np.asarray(run(laid)), run(laid, half)
  assert narrow.dtype == jnp.bfloat16
  close = 2**-6 * np.abs(wide).max()
  np.testing.assert_allclose(np.asarray(narrow, np.float32), wide, atol=close, rtol=0)
  plain = half.apply({"params": PARAMS}, IDS)
  # W - s a0 b0 in bf16 would have moved it: here it is the base to the last bit.
  np.testing.assert_array_equal(run(start, half), plain)


def test_what_was_asked_of_each_target_is_kept():
  """As exports and cards need it: alpha as it takes effect, and only what was given."""
  own = {"ranks": {"q_proj": 2}, "alphas": {"k_proj": 3.0}}
  (method,) = peft.build({"name": "lora", "rank": 4, "alpha": 8.0, "rslora": True} | own)
  assert {name: method.options[name] for name in own} == own
  assert method.options["rank"] == 4 and method.options["alpha"] == 16.0
  assert not own.keys() & peft.build({"name": "lora"})[0].options.keys()


@pytest.mark.parametrize(
  "options, words",
  [
    ({"initialise": "pisa"}, ("'pisa'", "'pissa'")),
    ({"initialise": "pissa", "alpha": 0.0}, ("pissa", "scale 0")),
    ({"ranks": {"k_proj": 2}}, ("method.ranks", "'k_proj'", "q_proj")),
    ({"alphas": {"q_porj": 2.0}}, ("method.alphas", "'q_porj'", "'q_proj'")),
    ({"ranks": {"q_proj(": 2}}, ("q_proj(", "regular expression")),
    ({"ranks": {"q_proj": 7}}, ("7", "q_proj", "8 x 6", "at most 6")),
    ({"ranks": {"q_proj": 2.5}}, ("ranks.q_proj is 2.5", "expected int")),
    ({"ranks": {"q_proj": 0}}, ("ranks.q_proj is 0", "at least 1")),
    ({"ranks": {"q_proj": 1, "q_.*": 2}}, ("ranks", "q_proj", "several", "expected one")),
    ({"alphas": {"q_proj": "8"}}, ("alphas.q_proj is '8'", "expected float")),
    ({"alphas": {"q_proj": 8}, "scale": 2.0}, ("scale", "alphas")),
    ({"b_rate": 0.0}, ("b_rate is 0.0", "above 0")),
    ({"train_a": False}, ("train_a=False", "embed")),
    ({"rank": 9}, ("rank is 9", "11 x 8", "at most 8")),
    ({"targets": ["embd"]}, ("embd", "Linear or Embed", "'embed'")),
  ],
)
def test_refused(options, words):
  with pytest.raises(UserError) as caught:
    lay(options)
  message = str(caught.value)
  assert all(word in message for word in words) and "\n" not in message, message
