"""Prefixes of encoder-decoders, and every other method at their three kinds of attention."""

import dataclasses
import importlib
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from support import tiny

from jaxtune import peft, tree
from jaxtune.errors import UserError
from jaxtune.models import hf

P = 3
ATTENDS = ("encoder/layers/attn", "decoder/layers/attn", "decoder/layers/cross")
EVERYTHING = {
  "name": "stack",
  "full": {},
  "lora": {"rank": 2, "targets": ("(q|k|v|o|gate|up|down)_proj",)},
  "prefix": {"length": P, "projection": 5},
  "adapter": {"width": 4, "targets": ("(attn|cross|mlp)_residual",)},
}
INPUTS = (
  *tiny.batch(length=6, side="right"),
  *tiny.batch(length=7, seed=1, side="right"),
)
GAUSS = np.random.default_rng(0).standard_normal((3, 6, tiny.VOCABULARY)).astype(np.float32)


@pytest.fixture(scope="module", params=["t5", "bart"])
def model(request):
  return tiny.make(request.param)


@pytest.fixture(scope="module")
def laid(model):
  """A prefix of P at each attention."""
  return tiny.lay(model, {"name": "prefix", "length": P}, noise=0.3)


@pytest.fixture(scope="module")
def forward(model, laid):
  """The compiled program of that prefix: (tuned, hyper, base) -> logits."""
  methods = laid[0]
  return jax.jit(
    lambda tuned, hyper, base: peft.apply(
      model.model, peft.Adapted(methods, tuned, hyper, base), *INPUTS
    )
  )


@pytest.mark.full
def test_every_trained_leaf_has_a_gradient(model):
  """In every layer, at the encoder, the decoder and the cross-attention."""
  methods, tuned, hyper, base = tiny.lay(model, EVERYTHING, noise=0.05)
  reached = {path.rsplit("/", 3)[0] for path in tree.flatten(tuned["peft"]) if "lora" in path}
  assert reached == {*ATTENDS, "encoder/layers/mlp", "decoder/layers/mlp"}
  assert tree.flatten(tuned["params"]).keys() == tree.flatten(model.params).keys()

  def gradient(module):
    def loss(tuned):
      logits = peft.apply(module, peft.Adapted(methods, tuned, hyper, base), *INPUTS)
      return jnp.sum(jnp.where(INPUTS[1][..., None], jnp.tanh(logits) * GAUSS, 0))

    return tree.flatten(jax.jit(jax.grad(loss))(tuned))

  made = gradient(model.model)
  if model.family == "t5":  # rematerialised blocks give the same
    c = model.model.config
    remat = dataclasses.replace(c, remat=True, encoder=dataclasses.replace(c.encoder, remat=True))
    again = gradient(type(model.model)(remat))
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-4, rtol=1e-4), again, made)
  for path, leaf in made.items():
    stacked = "/layers/" in path or ":" in path
    rows = np.abs(leaf).reshape(leaf.shape[0], -1) if stacked else np.abs(leaf)[None]
    if not path.endswith("k_proj/bias"):  # softmax does not see a shift of all keys
      assert all(np.max(row) > 1e-8 for row in rows), path


def test_every_slot_of_every_layer_matters(laid, forward):
  """Every key and value alone: in PEFT's encoder-decoders, half of them change nothing."""
  _, tuned, hyper, base = laid
  plain, flat = forward(tuned, hyper, base), tree.flatten(tuned)
  names = {f"peft/{site}/attend/prefix/{name}" for site in ATTENDS for name in ("key", "value")}
  assert flat.keys() == names
  for path, leaf in flat.items():
    assert leaf.shape[1] == P
    for slot in np.ndindex(leaf.shape[:2]):
      moved = {"params": {}} | tree.unflatten(flat | {path: leaf.at[slot].add(1.0)})
      change = np.abs(forward(moved, hyper, base) - plain)[INPUTS[1]]
      assert change.max() > 1e-5, (path, slot)


def test_logits_equal_pytorch_with_a_prefix_in_every_attention(
  model, laid, forward, tmp_path, monkeypatch
):
  """The prefix put in front by hand; the biases of its keys are 0, and no position is shifted."""
  hf.save(model, model.params, tmp_path / "model")
  from transformers import AutoModelForSeq2SeqLM

  theirs = AutoModelForSeq2SeqLM.from_pretrained(
    tmp_path / "model", attn_implementation="eager"
  ).eval()
  _, tuned, hyper, base = laid
  modeling = importlib.import_module(type(theirs).__module__)
  plain, flat = modeling.eager_attention_forward, tree.flatten(tuned["peft"])
  place = {}
  for name, module in theirs.named_modules():
    if name.endswith(("Attention", "attn")):
      half = "encoder" if "encoder." in name.replace("encoder_attn", "") else "decoder"
      kind = "cross" if name.endswith(("EncDecAttention", "encoder_attn")) else "attn"
      layer = int(next(part for part in name.split(".") if part.isdigit()))
      place[module] = f"{half}/layers/{kind}/attend/prefix", layer

  def prefixed(module, query, key, value, mask, position_bias=None, **options):
    path, layer = place[module]
    pair = [
      torch.cat([torch.tensor(flat[f"{path}/{name}"][layer]).transpose(0, 1)[None].expand(
        len(x), -1, -1, -1), x], 2)
      for name, x in (("key", key), ("value", value))
    ]  # fmt: skip
    mask = torch.nn.functional.pad(mask.expand(-1, -1, query.shape[2], -1), (P, 0))
    if position_bias is not None:
      options["position_bias"] = torch.nn.functional.pad(position_bias, (P, 0))
    return plain(module, query, *pair, mask, **options)

  monkeypatch.setattr(modeling, "eager_attention_forward", prefixed)
  tokens, mask, inputs, inputs_mask = (torch.tensor(np.asarray(x)).long() for x in INPUTS)
  with torch.no_grad():
    expected = theirs(
      input_ids=inputs, attention_mask=inputs_mask, decoder_input_ids=tokens,
      decoder_attention_mask=mask, use_cache=False,
    ).logits.numpy()  # fmt: skip
  unshifted = tree.flatten(hyper) | {f"{h}/prefix/offset": 0 for h in ("encoder", "decoder")}
  made = forward(tuned, tree.unflatten(unshifted), base)
  np.testing.assert_allclose(made[INPUTS[1]], expected[INPUTS[1]], atol=1e-4, rtol=0)


def test_positions_are_shifted_where_self_attention_has_a_prefix(laid, model, forward):
  """As if each table of learned positions began P rows later; relative ones stay as they are."""
  _, tuned, hyper, base = laid
  flat, unshifted = tree.flatten(base), tree.flatten(hyper)
  for half in ("encoder", "decoder"):
    assert unshifted[f"{half}/prefix/offset"] == P
    unshifted[f"{half}/prefix/offset"] = jnp.asarray(0)
    if model.family == "bart":
      path = f"{half}/positions/embedding"
      flat[path] = jnp.roll(flat[path], -P, 0)
  made = forward(tuned, tree.unflatten(unshifted), tree.unflatten(flat))
  np.testing.assert_allclose(made, forward(tuned, hyper, base), atol=1e-5, rtol=0)


def test_the_mlp_makes_the_prefix_of_each_attention(laid, model, forward):
  """What every trunk's MLP makes, given to the plain method, gives the same logits."""
  section = {"name": "prefix", "length": P, "projection": 5}
  methods, tuned, hyper, base = tiny.lay(model, section, noise=0.3)
  assert tuned["peft"].keys() == {"encoder", "decoder"}
  embeddings = [tuned["peft"][half]["prefix"]["embedding"] for half in ("encoder", "decoder")]
  assert not np.allclose(*embeddings, atol=1e-2)
  made = peft.reparametrise(methods, tuned["peft"])
  assert tree.flatten(made).keys() == tree.flatten(laid[1]["peft"]).keys()
  assert tree.flatten(hyper).keys() == tree.flatten(laid[2]).keys()
  adapted = peft.Adapted(methods, tuned, hyper, base)
  whole = jax.jit(lambda: peft.apply(model.model, adapted, *INPUTS))()
  plain = forward({"params": {}, "peft": made}, hyper, base)
  np.testing.assert_allclose(whole, plain, atol=1e-5, rtol=0)


@pytest.mark.parametrize("places", [("encoder",), ("decoder",), ("cross",), ("encoder", "cross")])
@pytest.mark.parametrize("projection", [None, 5])
def test_each_attention_has_its_own_switch(model, places, projection):
  switches = {place: place in places for place in ("encoder", "decoder", "cross")}
  section = {"name": "prefix", "length": P, "projection": projection} | switches
  methods, tuned, hyper, _ = tiny.lay(model, section)
  sites = dict(zip(switches, ATTENDS, strict=True))
  arrays = tree.flatten(peft.reparametrise(methods, tuned["peft"]))
  names = {f"{sites[p]}/attend/prefix/{name}" for p in places for name in ("key", "value")}
  assert arrays.keys() == names
  fixed = {f"{sites[p]}/attend/prefix/mask" for p in places}
  fixed |= {f"{p}/prefix/offset" for p in places if p != "cross"}
  assert tree.flatten(hyper).keys() == fixed
  off = {place for place in switches if methods[0].options.get(place, True) is False}
  assert off == switches.keys() - {*places}


def test_the_network_of_a_prefix_starts_small(model):
  """Its outputs are keys and values of a tenth of a standard deviation."""
  section = {"name": "prefix", "length": P, "projection": 64}
  flat = tree.flatten(tiny.lay(model, section)[1]["peft"])
  outputs = {path: x for path, x in flat.items() if "/w2:" in path}
  assert len(outputs) == 3
  for path, x in outputs.items():
    assert x.shape[0] == 64 and x.shape[-3] == 2, path  # a key and a value
    assert x.std() == pytest.approx(0.1 / 64**0.5, rel=0.1)
    assert abs(x.mean()) < 0.1 * x.std()


def test_a_prefix_nowhere_is_refused(llama):
  nowhere = dict.fromkeys(("encoder", "decoder", "cross"), False)
  with pytest.raises(UserError, match="method.encoder, method.decoder and method.cross are all"):
    peft.build({"name": "prefix"} | nowhere)
  plain, switched = (
    tiny.lay(llama, {"name": "prefix"} | switches)[1]
    for switches in ({}, nowhere | {"cross": True})
  )
  jax.tree.map(np.testing.assert_array_equal, plain, switched)


@pytest.mark.full
@pytest.mark.parametrize("model", ["bart"], indirect=True)
def test_padded_lengths_equal_solo_runs(model, laid, forward):
  methods, _, _, base = laid
  lone = [tiny.lay(model, {"name": "prefix", "length": n}, noise=0.3) for n in (1, P)]
  tuned, hyper = (tree.stack([one[i] for one in lone]) for i in (1, 2))
  both = jax.jit(jax.vmap(
    lambda tuned, hyper: peft.apply(model.model, peft.Adapted(methods, tuned, hyper, base), *INPUTS)
  ))(tuned, hyper)  # fmt: skip
  for i, one in enumerate(lone):
    np.testing.assert_allclose(both[i], forward(*one[1:]), atol=2e-5, rtol=0)


LENGTHS = (2, 0, 1)


@pytest.mark.parametrize("projection", [None, 5])
def test_layers_of_different_lengths(llama, projection):
  """As if every layer had the longest prefix and saw the first tokens of it; the rest is inert."""
  section = {"name": "prefix", "lengths": LENGTHS, "projection": projection}
  methods, tuned, hyper, base = laid = tiny.lay(llama, section)
  mask = np.arange(max(LENGTHS))[None] < np.array(LENGTHS)[:, None]
  assert methods[0].positions == hyper["trunk"]["prefix"]["offset"] == max(LENGTHS)
  np.testing.assert_array_equal(hyper["trunk"]["layers"]["attn"]["attend"]["prefix"]["mask"], mask)
  unused = methods[0].count_unused(*(peft.arrays_of(methods[0], x) for x in (tuned["peft"], hyper)))
  assert unused == (0 if projection else 2 * 2 * 8 * (~mask).sum())  # keys and values, heads, sizes
  if projection:
    return
  pair = tuned["peft"]["trunk"]["layers"]["attn"]["attend"]["prefix"]
  for leaf in pair.values():
    np.testing.assert_array_equal(np.any(leaf, (2, 3)), mask)
  loss = lambda tuned, tokens: jnp.sum(
    jnp.tanh(peft.apply(llama.model, peft.Adapted(methods, tuned, hyper, base), tokens)) * GAUSS[:1]
  )
  value, gradient = jax.jit(jax.value_and_grad(loss))(tuned, INPUTS[0][:1])
  for leaf in jax.tree.leaves(gradient):
    np.testing.assert_array_equal(np.any(leaf, (2, 3)), mask)
  moved = tiny.perturb(tuned["peft"], 3)  # also what nothing reads
  kept = jax.tree.map(
    lambda new, old: jnp.where(mask[..., None, None], old, new), moved, tuned["peft"]
  )
  run = partial(tiny.forward, llama, tokens=INPUTS[0])
  np.testing.assert_array_equal(run(laid), run((methods, tuned | {"peft": kept}, hyper, base)))


def test_lengths_are_numbers(llama):
  """A prefix of equal lengths is one of that length, and groups with one of different lengths."""
  plain = tiny.lay(llama, {"name": "prefix", "length": 2})
  equal, mixed = (
    tiny.lay(llama, {"name": "prefix", "lengths": lengths}) for lengths in ((2, 2, 2), (1, 3, 0))
  )
  for i in (1, 2):
    jax.tree.map(np.testing.assert_array_equal, plain[i], equal[i])
  assert equal[0][0].groupable == ("length", "lengths")
  methods, *_, base = plain
  one = lambda tuned, hyper: peft.apply(
    llama.model, peft.Adapted(methods, tuned, hyper, base), INPUTS[0]
  )
  both = jax.jit(jax.vmap(one))(*(tree.stack([plain[i], mixed[i]]) for i in (1, 2)))
  for made, laid in zip(both, (plain, mixed), strict=True):
    np.testing.assert_allclose(made, tiny.forward(llama, laid, INPUTS[0]), atol=2e-5, rtol=0)


@pytest.mark.parametrize(
  ("section", "words"),
  [
    ({"lengths": (1, 2)}, ("2 numbers", "trunk has 3 layers")),
    ({"lengths": (0, 0, 0)}, ("(0, 0, 0)", "at least 1")),
    ({"lengths": (1, -1, 2)}, ("lengths[1] is -1", "at least 0")),
    ({"lengths": 4}, ("lengths is 4", "list or None")),
    ({"lengths": ()}, ("lengths is ()",)),
  ],
)
def test_lengths_are_refused(llama, section, words):
  with pytest.raises(UserError) as caught:
    tiny.lay(llama, {"name": "prefix"} | section)
  assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize("model", ["t5"], indirect=True)
def test_lengths_in_an_encoder_decoder(model):
  """Its halves have 2 and 3 layers here: either can have lengths of its own, both together not."""
  section = {"name": "prefix", "lengths": (1, 2, 3)}
  with pytest.raises(UserError, match="3 numbers, but encoder has 2 layers"):
    tiny.lay(model, section)
  _, tuned, hyper, _ = tiny.lay(model, section | {"encoder": False})
  assert hyper["decoder"]["prefix"]["offset"] == 3
  assert {np.shape(x)[:2] for x in jax.tree.leaves(tuned["peft"])} == {(3, 3)}
