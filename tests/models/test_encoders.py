"""Encoders equal PyTorch transformers, and every method works on them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import tiny

from jaxtune import peft, tree
from jaxtune.errors import UserError
from jaxtune.models import hf
from jaxtune.models.encoder import Encoder

VARIANTS = {
  "modernbert-biases": dict(
    attention_bias=True, mlp_bias=True, norm_bias=True, classifier_bias=True,
    layer_types=["sliding_attention", "full_attention", "full_attention", "sliding_attention"],
    rope_parameters={
      "full_attention": {"rope_type": "default", "rope_theta": 50.0},
      "sliding_attention": {"rope_type": "default", "rope_theta": 9.0},
    },
  ),
  "modernbert-global": dict(layer_types=["full_attention"] * 4),
}  # fmt: skip
PADDING = {"roberta": 1}  # real tokens never are the padding's, from which RoBERTa counts positions


def batch(name, side):
  tokens, mask = tiny.batch(side=side, length=24)
  pad = PADDING.get(name, 0)
  return np.where(mask, np.where(tokens == pad, 5, tokens), pad).astype(np.int32), mask


@pytest.fixture(scope="module", params=[*tiny.ENCODERS, *VARIANTS])
def twin(request, tmp_path_factory):
  """(name, PyTorch's model with a head for tokens, its folder)."""
  name = request.param.partition("-")[0]
  folder = tmp_path_factory.mktemp(name)
  config = tiny.torch_config(name, num_labels=5, **VARIANTS.get(request.param, {}))
  architecture = hf.family_module(name).ARCHITECTURES["tokens"]
  return name, tiny.torch_twin(config, folder, architecture), folder


def test_states_equal_pytorch(twin):
  """Through a head for tokens, which sees the states of every token."""
  name, theirs, folder = twin
  ours = hf.load(str(folder), head="tokens")
  assert not ours.fresh and not ours.dropped
  run, low = (jax.jit(ours.model.apply), hf.load(str(folder), head="tokens", dtype="bfloat16"))
  for side in (None, "left", "right"):
    tokens, mask = batch(name, side)
    extra = {}
    if name == "bert":
      extra["types"] = np.random.default_rng(1).integers(0, 2, tokens.shape).astype(np.int32)
    made = np.asarray(run({"params": ours.params}, tokens, mask, **extra))
    torch = {"token_type_ids": _torch(extra["types"])} if extra else {}
    positions = None if name == "roberta" else tiny.positions_of(mask)
    expected = tiny.torch_logits(theirs, tokens, mask, positions, **torch)
    np.testing.assert_allclose(made[mask], expected[mask], atol=1e-4, rtol=0)
  rough = np.asarray(low.model.apply({"params": low.params}, tokens, mask, **extra))
  assert rough.dtype == np.float32
  difference = (rough - expected)[mask]
  assert 0 < np.sqrt(np.mean(difference**2)) < 0.03 * expected[mask].std()


def _torch(array):
  import torch

  return torch.tensor(array).long()


def test_sight():
  """Padding is not seen; every real token sees the whole text, and its types."""
  bert = tiny.make("bert", head="tokens", labels=3)
  tokens, mask = batch("bert", "right")
  run = jax.jit(lambda *args: bert.model.apply({"params": bert.params}, *args))
  types = np.zeros_like(tokens)
  made = np.asarray(run(tokens, mask, types))
  padded = np.asarray(run(np.where(mask, tokens, 9), mask, np.where(mask, 0, 1)))
  np.testing.assert_array_equal(made[mask], padded[mask])
  last = (np.arange(len(mask)), mask.sum(1) - 1)
  for field in (tokens, types):
    other = field.copy()
    other[last] = 1 - field[last] % 2
    again = np.asarray(run(*(other if x is field else x for x in (tokens, mask, types))))
    assert (np.abs(made - again).max(-1)[mask] > 1e-6).all()


def test_keys_of_modernbert_before_transformers_5():
  config = hf.family_module("modernbert").config
  fields = tiny.ENCODERS["modernbert"]
  rope = {
    "full_attention": {"rope_type": "default", "rope_theta": 77.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 7.0},
  }
  kinds = ["full_attention", "sliding_attention"] * 2
  new = config(fields | dict(layer_types=kinds, rope_parameters=rope))
  old = dict(global_attn_every_n_layers=2, global_rope_theta=77.0, local_rope_theta=7.0)
  assert config(fields | old) == new
  assert new.local == (False, True, False, True) and new.window == 5
  shared = config(fields | old | dict(local_rope_theta=None))
  assert shared.local_rope == shared.rope == new.rope
  assert config(fields | old | dict(global_attn_every_n_layers=1)).local_rope is None


@pytest.mark.parametrize(
  ("name", "change", "word"),
  [
    ("bert", {"position_embedding_type": "relative_key"}, "relative_key"),
    ("bert", {"is_decoder": True}, "is_decoder"),
    ("bert", {"hidden_act": "gelo"}, "gelu"),
    ("roberta", {"add_cross_attention": True}, "add_cross_attention"),
    ("distilbert", {"activation": "rulu"}, "relu"),
    ("modernbert", {"hidden_activation": "gelo"}, "gelu"),
    ("modernbert", {"classifier_pooling": "max"}, "mean"),
    ("modernbert", {"layer_types": ["full_attention"]}, "layer_types"),
    ("modernbert", {"rope_scaling": {"rope_type": "yarm"}}, "yarn"),
  ],
)
def test_config_refused(name, change, word):
  with pytest.raises(UserError, match=word):
    hf.outline(architecture=tiny.ENCODERS[name] | change, head="classify", labels=2)


LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj")
SECTIONS = {
  "deltas": {
    "name": "stack", "lora": {"rank": 3, "targets": LINEARS}, "prefix": {"length": 3},
    "adapter": {"width": 4}, "head": {},
  },
  "weights": {
    "name": "stack", "full": {}, "lora": {"targets": ["down_proj"]},
    "made": {"name": "prefix", "length": 2, "projection": 4},
  },
}  # fmt: skip


@pytest.mark.full
@pytest.mark.parametrize(
  ("name", "section"),
  [
    ("bert", "deltas"),
    ("modernbert", "weights"),
  ],
)
def test_every_trained_leaf_has_a_gradient(name, section):
  pretrained = tiny.make(name, head="classify", labels=3)
  methods, tuned, hyper, base = tiny.lay(pretrained, SECTIONS[section], noise=0.1)
  tokens, mask = batch(name, "right")

  def loss(tuned):
    scores = peft.apply(pretrained.model, peft.Adapted(methods, tuned, hyper, base), tokens, mask)
    return -jax.nn.log_softmax(scores)[:, 0].sum()

  for path, leaf in tree.flatten(jax.jit(jax.grad(loss))(tuned)).items():
    assert np.isfinite(leaf).all(), path
    assert np.abs(leaf).max() > 1e-7, path
    if path.startswith("peft/trunk/layers"):
      assert (np.abs(leaf).reshape(leaf.shape[0], -1).max(1) > 1e-7).all(), path
  trained = tree.flatten(tuned["params"])
  heads = {path for path in tree.flatten(pretrained.params) if path.startswith("head/")}
  assert trained.keys() == (
    heads if section == "deltas" else tree.flatten(pretrained.params).keys()
  )


def test_bitfit_trains_every_bias():
  outline = hf.outline(architecture=tiny.ENCODERS["bert"], head="classify", labels=2)
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape), outline.params)
  _, tuned, _, base = tiny.lay(outline._replace(params=zeros), {"name": "bitfit"})
  assert {path.rpartition("/")[2] for path in tree.flatten(tuned["params"])} == {"bias"}
  assert not any(path.endswith("/bias") for path in tree.flatten(base))


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
  """(our BERT that classifies, PyTorch's)."""
  folder = tmp_path_factory.mktemp("bert")
  config = tiny.torch_config("bert", num_labels=3)
  theirs = tiny.torch_twin(config, folder, "BertForSequenceClassification")
  return hf.load(str(folder), head="classify"), theirs


def test_without_a_head_the_states_are_given(classifier):
  ours, theirs = classifier
  model = Encoder(dataclasses.replace(ours.model.config, head=None))
  tokens, mask = batch("bert", "right")
  states = np.asarray(model.apply({"params": ours.params}, tokens, mask))
  expected = theirs.bert(_torch(tokens), _torch(mask)).last_hidden_state.detach().numpy()
  np.testing.assert_allclose(states[mask], expected[mask], atol=1e-4, rtol=0)


@pytest.mark.parametrize("placement", ["pfeiffer", "houlsby", "parallel"])
def test_adapters_around_a_norm(classifier, placement, monkeypatch):
  """PyTorch's own layers, with AdapterHub's formulas for post-norm models written into them."""
  import torch

  ours, theirs = classifier
  section = {"name": "adapter", "width": 5, "placement": placement}
  laid = tiny.lay(ours, section, noise=0.1)
  tokens, mask = batch("bert", "right")
  made = tiny.forward(ours, laid, tokens, mask)
  arrays = peft.arrays_of(laid[0][0], laid[1]["peft"])
  act = torch.nn.functional.silu if placement == "houlsby" else torch.relu

  def patched(module, w):
    def adapter(h):
      return act(h @ w["down_kernel"] + w["down_bias"]) @ w["up_kernel"] + w["up_bias"]

    def forward(h, x):
      h, norm = module.dense(h), module.LayerNorm
      if placement == "pfeiffer":
        return norm(x + h + adapter(norm(h + x)))
      return norm(x + h + (adapter(h) if placement == "houlsby" else 4 * adapter(x)))

    return forward

  for i, layer in enumerate(theirs.bert.encoder.layer):
    places = {"attn_residual": layer.attention.output, "mlp_residual": layer.output}
    for site, leaves in arrays.items():
      module = places[site.rpartition("/")[2]]
      w = {name: torch.tensor(np.asarray(leaf[i])) for name, leaf in leaves.items()}
      monkeypatch.setattr(module, "forward", patched(module, w))
  expected = tiny.torch_logits(theirs, tokens, mask)
  np.testing.assert_allclose(made, expected, atol=1e-4, rtol=0)
