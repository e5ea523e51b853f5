"""What an analysis measures, against dense computations, closed forms and PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import tiny
from support.methods import METHODS

from jaxtune import peft, tree
from jaxtune.evaluation.analysis import changes, probes, spectra, subspaces, truncation
from jaxtune.models import hf, quantize
from jaxtune.training.step import Program

LOW_RANK = {"LoRA": 3, "LoRA of embeddings": 2, "PiSSA": 6, "VeRA": 6, "AdaLoRA": 12}
OTHERS = ("DoRA", "LoHa", "norms", "last layers", "full", "MAM")
STACK = {"name": "stack", "lora": {"rank": 2}, "more": {"name": "lora", "rank": 1}, "prefix": {}}
RNG = np.random.default_rng(0)


def orthonormal(size, columns):
  return np.linalg.qr(RNG.standard_normal((size, columns)))[0].astype(np.float32)


def dense(laid, params):
  """Returns {path: change, (L, ...)} of the weights, by merging and subtracting."""
  methods = tuple(m for m in laid.methods if changes.changes_weights(m))
  merged = tree.flatten(peft.merge(laid._replace(methods=methods)))
  base = tree.flatten(quantize.dequantised(params))
  lift = lambda path, x: x if "layers" in path.split("/") else x[None]
  return {path: lift(path, np.asarray(x) - np.asarray(base[path])) for path, x in merged.items()}


@pytest.mark.parametrize("name", [*LOW_RANK, *OTHERS, "stack", "NF4 base + LoRA"])
def test_changes_are_what_merging_adds(name):
  section = STACK if name == "stack" else METHODS[name].section
  pretrained = tiny.make("llama", quantize="nf4" if "NF4" in name else None)
  laid = tiny.lay(pretrained, section, noise=0.1)
  found = changes.of(laid, pretrained.params)
  expected = {p: x for p, x in dense(laid, pretrained.params).items() if np.abs(x).max() > 1e-6}
  assert found.keys() == expected.keys() and (name == "MAM") == (not found)
  for path, change in found.items():
    if not change.is_matrix:
      np.testing.assert_allclose(change.delta, expected[path], atol=1e-6)
      continue
    u, s, v = spectrum = change.spectrum()
    np.testing.assert_allclose((u * s[:, None]) @ v, expected[path], atol=2e-6)
    largest = np.linalg.svd(expected[path], compute_uv=False)[:, : s.shape[1]]
    np.testing.assert_allclose(s, largest, atol=2e-5)
    if name in LOW_RANK:
      assert s.shape[1] == LOW_RANK[name], "nothing larger than the factors was decomposed"
    if name == "stack":
      assert spectrum.ranks == [3] * 3, "the sum of two methods"


@pytest.mark.parametrize("name", ["LoRA", "PiSSA", "DoRA", "full"])
def test_what_is_not_trained_changes_nothing(name):
  pretrained = tiny.make("llama")
  laid = tiny.lay(pretrained, METHODS[name].section)
  for change in changes.of(laid, pretrained.params).values():
    if not change.is_matrix:
      assert not spectra.of_vector(change)["frobenius"].any()
      continue
    spectrum = change.spectrum()
    measured = spectra.of_matrix(change, spectrum, spectra.largest_squares(change.base))
    assert spectrum.ranks == [0] * len(change.base) and not measured["relative"].any()
    assert not measured["effective_rank"].any()
    assert measured["amplification"]["factor"] == [None] * len(change.base)
    assert all(np.isnan(side).all() for side in spectrum.directions)


def test_effective_rank_in_closed_form():
  s_LM = np.array([[2.0, 2, 2, 2], [5, 0, 0, 0], [3, 1, 0, 0], [0, 0, 0, 0]])
  two = np.exp(-(0.75 * np.log(0.75) + 0.25 * np.log(0.25)))
  np.testing.assert_allclose(spectra.effective_rank(s_LM), [4, 1, two, 0], rtol=1e-6)


def test_similarity_of_equal_nested_orthogonal_and_random_subspaces():
  q = orthonormal(40, 8)
  turned = q[:, :4] @ orthonormal(4, 4)  # another basis of the first four
  phi = subspaces.similarity(np.stack([q[:, :4]] * 3), np.stack([turned, q[:, :4], q[:, 4:]]))
  assert phi[0, 3, 3] == pytest.approx(1, abs=1e-5) and phi[0, 0, 0] < 0.999
  np.testing.assert_allclose(phi[1], np.ones((4, 4)), atol=1e-5)
  np.testing.assert_allclose(phi[2], np.zeros((4, 4)), atol=1e-5)
  a, b = (np.stack([orthonormal(40, 8) for _ in range(500)]) for _ in range(2))
  phi = subspaces.similarity(a, b)
  assert phi.min() >= 0 and phi.max() <= 1 + 1e-5
  direct = np.linalg.norm(a[7, :, :3].T @ b[7, :, :5]) ** 2 / 3
  assert phi[7, 2, 4] == pytest.approx(direct, rel=1e-4)
  for i, j in ((1, 1), (3, 8), (8, 8)):
    error = phi[:, i - 1, j - 1].std() / 500**0.5
    assert abs(phi[:, i - 1, j - 1].mean() - subspaces.random_similarity(40, i, j)) < 4 * error


def test_configurations_are_compared_over_seeds_that_differ():
  made = {name: {"w": (orthonormal(30, 4)[None], orthonormal(20, 4)[None])} for name in "abcd"}
  made["d"] = {"w": made["a"]["w"]}
  rows, seeds = [["a", "b"], ["c", "d"]], {"a": 0, "b": 1, "c": 1, "d": 0}
  first, across, second = subspaces.compare(rows, seeds, made)
  assert [first["seeds"], across["seeds"], second["seeds"]] == ["different"] * 3
  phi = [subspaces.similarity(made[x]["w"][1], made[y]["w"][1])[0] for x, y in ("ac", "bd")]
  found = across["outputs"]["similarity"]
  assert found[1, 2] == pytest.approx(np.mean([x[1, 3] for x in phi]), rel=1e-4)
  assert np.isnan(found[3, 3]), "neither has eight directions"
  (same,) = subspaces.compare([["a"], ["d"]], seeds, made)
  assert same["seeds"] == "the same" and same["inputs"]["similarity"][2, 2] == pytest.approx(1)


def test_amplification_against_the_dense_matrices():
  w_LIO = RNG.standard_normal((2, 12, 9)).astype(np.float32)
  u, s, v = np.linalg.svd(w_LIO, full_matrices=False)
  own = 0.5 * (u[:, :, :3] * s[:, None, :3]) @ v[:, :3]  # half of W's own three largest directions
  a, b = RNG.standard_normal((2, 2, 12, 4)).astype(np.float32)[0], np.ones((2, 4, 9), np.float32)
  b[:, :3] = RNG.standard_normal((2, 3, 9))
  squares = spectra.largest_squares(w_LIO)
  np.testing.assert_allclose(squares, s[:, :16] ** 2, rtol=1e-4)
  found = spectra.amplification(w_LIO, changes.Change(w_LIO, own).spectrum(), squares)
  assert found["directions"] == [3, 3]
  np.testing.assert_allclose(found["factor"], [0.5, 0.5], rtol=1e-4)
  np.testing.assert_allclose(found["update"], found["base"], rtol=1e-4)
  other = changes.Change(w_LIO, factors=(a, b)).spectrum()
  found = spectra.amplification(w_LIO, other, squares)
  u, s, v = (x[0] for x in np.linalg.svd(a @ b, full_matrices=False))
  inside = np.linalg.norm(u[:, :4].T @ w_LIO[0] @ v[:4].T)
  assert found["update"][0] == pytest.approx(inside, rel=1e-3)
  assert found["factor"][0] == pytest.approx(np.linalg.norm(a[0] @ b[0]) / inside, rel=1e-3)
  drawn = [np.linalg.norm(orthonormal(12, 4).T @ w_LIO[0] @ orthonormal(9, 4)) for _ in range(800)]
  assert found["random"][0] == pytest.approx(np.mean(np.square(drawn)) ** 0.5, rel=0.05)


@pytest.mark.parametrize("name", ["DoRA", "stack", "NF4 base + LoRA"])
def test_cutting_to_the_whole_rank_changes_no_logit(name):
  section = STACK if name == "stack" else METHODS[name].section
  pretrained = tiny.make("llama", quantize="nf4" if "NF4" in name else None)
  laid = tiny.lay(pretrained, section, noise=0.1)
  tokens, _ = tiny.batch()
  changed = changes.of(laid, pretrained.params)
  found = {path: x.spectrum() for path, x in changed.items() if x.is_matrix}
  ranks = truncation.ranks(list(found.values()))
  assert ranks[:3] == [0, 1, 2] and ranks[-1] == max(max(x.ranks) for x in found.values())
  logits = lambda rank: np.asarray(
    tiny.forward(pretrained, cut(laid, pretrained, changed, found, rank), tokens)
  )
  whole = np.asarray(tiny.forward(pretrained, laid, tokens))
  np.testing.assert_allclose(logits(ranks[-1]), whole, atol=2e-4)
  assert np.abs(logits(1) - whole).max() > 1e-2
  if name == "DoRA":
    base = tiny.forward(pretrained, peft.untuned(pretrained.params), tokens)
    np.testing.assert_allclose(logits(0), base, atol=1e-5)


def cut(laid, pretrained, changed, found, rank):
  overlay, base = truncation.cut(laid, pretrained.params, changed, found, rank)
  return peft.Adapted(truncation.rest(laid), *overlay, base)


def observed(pretrained, laid, tokens, mask=None, **inputs):
  """Returns the means of one batch, with tokens as they are."""
  batch = {"tokens": tokens, "mask": np.ones_like(tokens, bool) if mask is None else mask, **inputs}
  objective = lambda forward, batch: (forward(batch).sum(), {})
  program = Program(pretrained.model, laid.methods, objective, None, 0)
  prompt = sum(m.positions for m in laid.methods if m.prepends)
  run = jax.jit(lambda *weights: probes.compare(program, prompt, *weights))
  sums = run(laid.overlay, laid.base, pretrained.params, jax.tree.map(jnp.asarray, batch))
  return probes.means(probes.add(None, sums), str)


@pytest.mark.parametrize("method", ["prefix", "prompt"])
def test_attention_and_states_equal_those_of_pytorch(method, llama, tmp_path):
  import torch
  from transformers import AutoModelForCausalLM, DynamicCache

  folder = hf.save(llama, llama.params, tmp_path / "model")
  theirs = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
  laid = tiny.lay(llama, {"name": method, "length": 4}, noise=0.5)
  tokens, mask = tiny.batch(side="right")
  rows = torch.tensor(tokens).long()
  given = dict(output_attentions=True, output_hidden_states=True)
  whole = torch.tensor(np.pad(mask, ((0, 0), (4, 0)), constant_values=True)).long()
  plain = {"input_ids": rows, "attention_mask": whole[:, 4:]}
  arrays = laid.tuned["peft"]["trunk"]
  if method == "prompt":
    front = torch.tensor(np.asarray(arrays["prompt"]["prompt"]))[None].expand(len(rows), -1, -1)
    embeds = torch.cat([front, theirs.get_input_embeddings()(rows)], 1)
    inputs = {"inputs_embeds": embeds, "attention_mask": whole}
  else:
    cache, pair = DynamicCache(config=theirs.config), arrays["layers"]["attn"]["attend"]["prefix"]
    for layer in range(3):
      both = (np.asarray(pair[name][layer]).swapaxes(0, 1)[None] for name in ("key", "value"))
      cache.update(*(torch.tensor(np.repeat(x, len(rows), 0)) for x in both), layer)
    inputs = {"input_ids": rows, "attention_mask": whole, "past_key_values": cache}
  with torch.no_grad():
    after, before = theirs(**inputs, **given), theirs(**plain, **given)
  found = observed(llama, laid, tokens, mask)
  masses = [x[:, :, -tokens.shape[1] :, :4].sum(-1).numpy() for x in after.attentions]
  expected = [x.transpose(0, 2, 1)[mask].mean(0) for x in masses]
  np.testing.assert_allclose(found["attention"]["trunk/attn"]["mass"], expected, atol=1e-5)
  # transformers keeps the last layer's states only behind the final norm.
  pairs = zip(after.hidden_states[1:-1], before.hidden_states[1:-1], strict=True)
  pairs = [(a.numpy()[:, -tokens.shape[1] :][mask], b.numpy()[mask]) for a, b in pairs]
  change = [np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in pairs]
  np.testing.assert_allclose(found["states"]["trunk"][:-1], change, rtol=1e-4)


def test_uniform_attention_and_norms_of_every_attention_of_an_encoder_decoder():
  pretrained = tiny.make("t5")
  laid = tiny.lay(pretrained, {"name": "prefix", "length": 2, "gate": True}, noise=0.1)
  tokens, _ = tiny.batch(2, 5)
  found = observed(pretrained, laid, tokens, inputs=tiny.batch(2, 7)[0])["attention"]
  causal = np.mean([2 / (2 + t) for t in range(1, 6)])
  uniform = {"encoder/attn": 2 / 9, "decoder/attn": causal, "decoder/cross": 2 / 9}
  assert found.keys() == uniform.keys()
  arrays = peft.arrays_of(laid.methods[0], laid.tuned["peft"])
  for name, share in uniform.items():
    one, site = found[name], arrays[name.replace("/", "/layers/") + "/attend"]
    np.testing.assert_allclose(one["uniform"], share, rtol=1e-5)
    assert one["mass"].min() > 0 and one["mass"].max() < 1
    for part in ("key", "value"):
      expected = np.linalg.norm(site[part], axis=-1).mean((1, 2))
      np.testing.assert_allclose(one["virtual"][part], expected, rtol=1e-5)
    assert np.shape(one["nearest"]) == one["cosine"].shape == (len(one["mass"]), 2)
  read = {str(x) for x in np.unique(tokens)}
  assert set(np.ravel(found["decoder/attn"]["nearest"])) <= read


def test_a_method_that_edits_the_states_of_a_layer_changes_that_layer(llama):
  laid = tiny.lay(llama, {"name": "reft", "rank": 2}, noise=0.3)
  last = lambda x: x.at[:-1].set(0) if x.ndim > 1 and len(x) == 3 else x
  tuned = laid.tuned | {"peft": jax.tree.map(last, laid.tuned["peft"])}
  found = observed(llama, laid._replace(tuned=tuned), tiny.batch(2, 5)[0])
  change = np.asarray(found["states"]["trunk"])
  assert change[-1] > 0
  np.testing.assert_allclose(change[:-1], 0, atol=1e-6)


def test_the_nearest_token_is_the_one_whose_key_was_copied(llama):
  """A prefix key is set to that of a token in one row, scaled, as norms do not count."""
  laid = tiny.lay(llama, {"name": "prefix", "length": 2, "shift": False}, noise=0.1)
  tokens = np.arange(10, 16, dtype=np.int32)[None]
  kernel = np.asarray(llama.params["trunk"]["layers"]["attn"]["k_proj"]["kernel"][0])
  x = np.asarray(llama.params["embed"]["embedding"])[10]
  x = x / np.sqrt((x * x).mean() + 1e-5)
  scale = np.asarray(llama.params["trunk"]["layers"]["attn_norm"]["scale"][0])
  key_KH = ((x * scale) @ kernel).reshape(2, 8)  # the token at position 0 is not rotated
  path = "peft/trunk/layers/attn/attend/prefix/key"
  flat = tree.flatten(laid.tuned)
  flat[path] = flat[path].at[0, 1].set(3 * key_KH)
  tuned = {"params": {}} | tree.unflatten(flat)
  found = observed(llama, laid._replace(tuned=tuned), tokens)
  one = found["attention"]["trunk/attn"]
  assert one["nearest"][0][1] == "10" and one["cosine"][0, 1] == pytest.approx(1, abs=1e-5)
