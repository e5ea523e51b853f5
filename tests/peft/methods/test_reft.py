"""ReFT: its equations, orthonormal rows, which tokens and layers are edited, decoding, padding."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import tiny

from jaxtune import peft, tree
from jaxtune.errors import UserError
from jaxtune.models.context import Mask, Shared
from jaxtune.peft.methods import reft

PLACE = "trunk/layers"


@pytest.mark.parametrize("variant", ["loreft", "direft"])
def test_the_equations(variant):
  """h + R^T (W h + b - R h) with orthonormal R, and h + W_2^T (W_1 h + b), token by token."""
  rng = np.random.default_rng(0)
  draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)
  arrays = {"rotate": draw(2, 6, 3), "learned_kernel": draw(2, 6, 3), "learned_bias": draw(2, 3)}
  (method,) = peft.build({"name": "reft", "variant": variant})
  trained = method.reparametrise({PLACE: arrays})[PLACE]
  h, mask = draw(1, 4, 6), Mask(np.ones((1, 4), bool), causal=True)
  fixed = {"first": jnp.asarray(3), "edited": jnp.asarray(True)}
  assert method.intercept is not None
  layer = {name: x[1] for name, x in trained.items()}
  call = peft.Call(None, fixed | layer, lambda *args: args[:2])
  shared = Shared(None, mask, None, None, None, None, None)
  made, cache = method.intercept(call, jnp.asarray(h), "cache", None, shared)
  R = arrays["rotate"][1].T
  if variant == "loreft":
    q, upper = np.linalg.qr(arrays["rotate"][1])
    R = (q * np.sign(np.diag(upper))).T
    np.testing.assert_allclose(trained["rotate"][1].T, R, atol=1e-5)
  W, b = arrays["learned_kernel"][1].T, arrays["learned_bias"][1]
  for t in range(4):
    x = h[0, t]
    expected = x + R.T @ (W @ x + b - (R @ x if variant == "loreft" else 0))
    np.testing.assert_allclose(made[0, t], expected if t < 3 else x, atol=1e-4)
  assert cache == "cache"


def test_positions_count_real_tokens():
  mask = np.array([[0, 0, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], bool)
  for causal in (True, False):
    made = reft._positions(mask.shape[1], Mask(mask, causal))
    np.testing.assert_array_equal(np.asarray(made)[mask], tiny.positions_of(mask)[mask])


@pytest.mark.full
def test_decoding_equals_teacher_forcing(llama):
  """Left-padded prompts, of which one is shorter than the first n tokens that are edited."""
  tokens, mask = tiny.batch(side="left")
  half = 7  # of 11; rows begin at 0, 2 and 4
  section = {"name": "reft", "first": 4}
  laid = tiny.lay(llama, section, noise=0.3)
  whole = np.asarray(tiny.forward(llama, laid, tokens, mask))
  call = lambda method: jax.jit(partial(peft.apply, llama.model, laid, method=method))
  begin = call(lambda model, *prompts: model.prefill(*prompts, 4))
  made, cache = begin(jnp.asarray(tokens[:, :half]), jnp.asarray(mask[:, :half]))
  np.testing.assert_allclose(made, whole[:, half - 1], atol=1e-5, rtol=0)
  decode = call(llama.model.decode)
  for t in range(half, half + 3):
    made, cache = decode(tokens[:, t], cache)
    np.testing.assert_allclose(made, whole[:, t], atol=1e-5, rtol=0)
  every = laid.hyper[PLACE.split("/")[0]]["layers"]["reft"] | {"first": jnp.full(3, reft.EVERY)}
  hyper = {"trunk": {"layers": {"reft": every}}}
  other = tiny.forward(llama, laid._replace(hyper=hyper), tokens, mask)
  assert not np.allclose(other[0, -1], whole[0, -1], atol=1e-3)
  packed = np.concatenate([tokens[2:, 4:], tokens[2:, :4]], 1), mask[2:, ::-1]
  right = tiny.forward(llama, laid, *packed)
  np.testing.assert_allclose(right[0, :7], whole[2, 4:], atol=1e-5, rtol=0)


def loss_of(pretrained, laid):
  methods, _, _, base = laid
  tokens = jnp.asarray(tiny.batch(1, 5)[0])

  def loss(tuned, hyper):
    logits = peft.apply(pretrained.model, peft.Adapted(methods, tuned, hyper, base), tokens)
    return -jax.nn.log_softmax(logits)[0, :-1, :2].sum()

  return loss


@pytest.mark.full
def test_padded_trials_of_direft_equal_solo_trials(llama):
  """Ranks and numbers of edited tokens in one program; padding gets exactly no gradient."""
  chosen = ({"rank": 1}, {"rank": 4, "first": 2})
  sections = [{"name": "reft", "variant": "direft"} | options for options in chosen]
  solo = [tiny.lay(llama, section, noise=0.1) for section in sections]
  tuned, hyper = (tree.stack([laid[i] for laid in solo]) for i in (1, 2))
  every = jax.jit(jax.vmap(jax.value_and_grad(loss_of(llama, solo[0]))))
  losses, gradients = every(tuned, hyper)
  alone = jax.jit(jax.value_and_grad(loss_of(llama, solo[0])))
  for i, laid in enumerate(solo):
    loss, gradient = alone(*laid[1:3])
    np.testing.assert_allclose(losses[i], loss, rtol=1e-5)
    mine = jax.tree.map(lambda x, i=i: np.asarray(x[i]), gradients)
    close = lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4, rtol=1e-3)
    jax.tree.map(close, tree.crop(mine, gradient), gradient)
    for path, leaf in tree.flatten(gradient).items():
      assert all(np.any(layer) for layer in leaf), path
      outside = tree.flatten(mine)[path].copy()
      outside[tuple(map(slice, leaf.shape))] = 0
      np.testing.assert_array_equal(outside, np.zeros_like(outside))


def test_a_small_draw_starts_a_large_one(llama):
  small, large = (tiny.lay(llama, {"name": "reft", "rank": r})[1]["peft"] for r in (2, 5))
  jax.tree.map(np.testing.assert_array_equal, tree.crop(large, small), small)


def test_only_chosen_layers_are_edited(llama):
  laid = methods, tuned, hyper, _ = tiny.lay(llama, {"name": "reft", "rank": 2, "layers": (1,)})
  gradient = tree.flatten(jax.jit(jax.grad(loss_of(llama, laid)))(tuned, hyper))
  for path, leaf in gradient.items():
    assert [bool(np.any(layer)) for layer in leaf] == [False, True, False], path
  (method,) = methods
  unused = method.count_unused(peft.arrays_of(method, tuned["peft"]), peft.arrays_of(method, hyper))
  assert int(unused) == 2 * tree.size(tuned) // 3


def test_a_side_of_an_encoder_decoder():
  pretrained = tiny.make("t5")
  places = lambda **options: {
    path.split("/reft/")[0]
    for path in tree.flatten(tiny.lay(pretrained, {"name": "reft"} | options)[1]["peft"])
  }
  assert places() == {"encoder/layers", "decoder/layers"}
  assert places(targets=("decoder/layers",)) == {"decoder/layers"}


def test_no_merge(llama):
  methods, tuned, hyper, base = tiny.lay(llama, {"name": "reft"})
  with pytest.raises(UserError, match="cannot be merged"):
    peft.merge(peft.Adapted(methods, tuned, hyper, base))


@pytest.mark.parametrize(
  "options, words",
  [
    ({"rank": 0}, ("rank is 0",)),
    ({"rank": 33}, ("rank is 33", "32")),
    ({"variant": "loreff"}, ("loreff", "loreft")),
    ({"first": 0}, ("first is 0", "None")),
    ({"layers": (3,)}, ("layers has 3", "0 to 2")),
    ({"layers": ()}, ("layers is empty", "None")),
    ({"targets": ["layer"]}, ("layer", "layers")),
  ],
)
def test_refused(llama, options, words):
  with pytest.raises(UserError) as caught:
    tiny.lay(llama, {"name": "reft"} | options)
  assert all(word in str(caught.value) for word in words), caught.value
