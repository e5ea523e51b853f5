"""Noise in training alone, of the stated size; its numbers are arrays of one program."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import made_trials, tiny

from jaxtune import peft, tree
from jaxtune.errors import UserError
from jaxtune.peft.methods import regularize
from jaxtune.runs import programs

RATES = {"dropout": 0.0, "token_dropout": 0.0, "neftune": 0.0}


def laid(pretrained, **rates):
  methods = (regularize.method(**RATES | rates),)
  sites = peft.find_sites(pretrained.model)
  return peft.init(jax.random.key(0), methods, sites, pretrained.params)


@pytest.fixture(scope="module")
def run(llama):
  """(rates, key) -> logits and embeddings; the rates are arrays of one program."""
  seen = {}

  def keep(call, *args):
    """Hands out what the first block is given; a method of its own, behind the noise."""
    seen["x"] = args[0]
    return call.next_fn(*args)

  methods, tuned, hyper, base = laid(llama)
  probe = peft.Method("probe", intercept=keep)

  @partial(jax.jit, static_argnames="noisy")
  def forward(hyper, tokens, key, noisy, mask):
    hyper = tree.unflatten(tree.flatten(hyper) | {"trunk/probe/on": jnp.zeros(())})
    rng = key if noisy else None
    logits = peft.apply(
      llama.model, peft.Adapted((*methods, probe), tuned, hyper, base), tokens, rng=rng, mask=mask
    )
    return logits, seen["x"]

  def go(tokens, seed=0, noisy=True, mask=None, **rates):
    return forward(laid(llama, **rates)[2], tokens, jax.random.key(seed), noisy, mask)

  return go


def test_no_noise_is_the_plain_model(llama, run):
  tokens, _ = tiny.batch(4, 24)
  plain = jax.jit(llama.model.apply)({"params": llama.params}, tokens)
  np.testing.assert_allclose(run(tokens)[0], plain, atol=1e-5)
  strong = {"dropout": 0.5, "token_dropout": 0.5, "neftune": 50.0}
  np.testing.assert_allclose(run(tokens, noisy=False, **strong)[0], plain, atol=1e-5)
  assert np.abs(run(tokens, **strong)[0] - plain).max() > 0.1


def test_neftune_is_uniform_and_as_large_as_stated(run):
  tokens, _ = tiny.batch(8, 24)
  clean = run(tokens)[1]
  noise = np.asarray(run(tokens, neftune=10.0)[1] - clean)
  bound = 10.0 / np.sqrt(24 * clean.shape[-1])  # T times D
  assert 0.99 * bound < np.abs(noise).max() <= bound * (1 + 1e-5)
  assert noise.std() == pytest.approx(bound / np.sqrt(3), rel=0.02)
  assert abs(noise.mean()) < 0.02 * bound
  doubled = np.asarray(run(tokens, neftune=20.0)[1] - clean)
  np.testing.assert_allclose(doubled, 2 * noise, atol=1e-5)
  assert np.abs(run(tokens, 1, neftune=10.0)[1] - clean - noise).max() > bound


def test_padding_does_not_weaken_the_noise(run):
  """The paper's L is a row's own length; padding to the longest row of a data set is no part."""
  tokens, _ = tiny.batch(3, 24)
  lengths = np.array([24, 6, 0])
  mask = np.arange(24)[None] < lengths[:, None]
  noise = np.abs(run(tokens, neftune=10.0, mask=mask)[1] - run(tokens, mask=mask)[1]).max((1, 2))
  bounds = 10.0 / np.sqrt(np.maximum(lengths, 1) * 32)
  assert (noise <= bounds * (1 + 1e-5)).all() and (noise > 0.98 * bounds).all()


def test_token_dropout_takes_whole_tokens_and_dropout_elements(run):
  tokens, _ = tiny.batch(16, 24)
  clean = np.asarray(run(tokens)[1])
  x = np.asarray(run(tokens, token_dropout=0.3)[1])
  gone = (x == 0).all(-1)
  np.testing.assert_array_equal(x[~gone], clean[~gone])
  assert gone.mean() == pytest.approx(0.3, abs=0.07)
  x = np.asarray(run(tokens, dropout=0.25)[1])
  np.testing.assert_allclose(x[x != 0], clean[x != 0] / 0.75, rtol=1e-5)
  assert (x == 0).mean() == pytest.approx(0.25, abs=0.01) and not (x == 0).all(-1).any()


def test_every_sublayer_is_dropped(llama):
  methods, _, hyper, _ = laid(llama, dropout=0.25)
  assert methods[-1].options == {"dropout": 0.25, "token_dropout": 0.0, "neftune": 0.0}
  places = {path.split("/")[-3] for path in tree.flatten(hyper) if path.endswith("/dropout")}
  assert places == {"attn_residual", "mlp_residual", "embed"}


@pytest.mark.parametrize(
  ("rates", "says"),
  [
    ({"dropout": 1.0}, "regularize.dropout is 1.0"),
    ({"token_dropout": -0.1}, "regularize.token_dropout is -0.1"),
    ({"neftune": -1.0}, "neftune is -1.0 .*expected at least 0"),
  ],
)
def test_rates_out_of_range(rates, says):
  with pytest.raises(UserError, match=says):
    made_trials.complete({"name": "lora"}, regularize=rates)


def test_noise_inside_a_stack_is_noise():
  stack = {"name": "stack", "lora": {"rank": 2}, "regularize": {"neftune": 5.0}}
  assert programs.uses_noise(made_trials.complete(stack))
  assert programs.uses_noise(made_trials.complete({"name": "lora", "dropout": 0.1}))
  assert programs.uses_noise(
    made_trials.complete({"name": "lora"}, regularize={"token_dropout": 0.1})
  )
  assert not programs.uses_noise(
    made_trials.complete({"name": "lora"}, regularize={"neftune": 0.0})
  )
