"""Weight deltas at two plain layers beside PEFT's, and trials trained in one program."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxtune import peft, tree
from jaxtune.objectives import sft
from jaxtune.training import optim
from jaxtune.training import step as update
from support import tiny

SIZES = {"q_proj": (24, 16), "v_proj": (12, 20)}  # inputs, outputs


class Evaluation:
  """Stands for a linen module without a dropout key."""

  has_rng = staticmethod(lambda name: False)


def sites(layers: int | None = None) -> dict[str, peft.Site]:
  return {
    name: peft.Site(name, "Linear", ((1, 5, inputs),), outputs, layers)
    for name, (inputs, outputs) in SIZES.items()
  }


def start(section: dict, layers: int | None = None):
  """Makes a method and its first (trained, fixed) arrays at the two layers."""
  (method,) = peft.build(section)
  return method, *jax.jit(lambda key: method.init(key, sites(layers), None))(jax.random.key(0))


def torch_layers(config):
  """Two random linear layers with a PEFT adapter on both."""
  import peft as theirs
  import torch

  torch.manual_seed(0)
  layers = torch.nn.ModuleDict({name: torch.nn.Linear(*size) for name, size in SIZES.items()})
  layers.forward = lambda x: x
  return theirs.get_peft_model(layers, config)


def check_against_torch(section: dict, config, names: dict[str, str], prepare=None):
  """Compares outputs and merged weights, with every trained array moved off its start.

  Args:
    section: of the config, whose targets are both layers.
    config: PEFT's, with the same numbers.
    names: {array: PEFT's name of it, which is its transpose}.
    prepare: (PEFT's model) -> None, to set what is not trained.
  """
  import torch

  method, trained, fixed = start(section)
  trained = tree.unflatten(tiny.perturb(tree.flatten(trained), 1, 0.3))
  model = torch_layers(config)
  if prepare is not None:
    prepare(model)
  x = {name: np.random.default_rng(0).standard_normal((2, 5, n)) for name, (n, _) in SIZES.items()}
  made, expected = {}, {}
  for name in SIZES:
    layer = model.base_model.model[name]
    for array, value in trained[name].items():
      parameter = getattr(layer, names[array])["default"]
      value = np.ascontiguousarray(np.asarray(value).T)
      parameter.data = torch.tensor(value.reshape(parameter.shape))
    arrays = fixed[name] | trained[name]
    call = peft.Call(Evaluation, arrays, plain(layer))
    made[name] = method.intercept(call, jnp.asarray(x[name], jnp.float32))
    with torch.no_grad():
      expected[name] = layer(torch.tensor(x[name], dtype=torch.float32)).numpy()
    assert np.abs(made[name] - plain(layer)(x[name])).max() > 1e-2
    np.testing.assert_allclose(made[name], expected[name], atol=1e-5, rtol=1e-5)
    half = jax.ShapeDtypeStruct(x[name].shape, jnp.bfloat16)
    call = peft.Call(Evaluation, arrays, lambda x: x[..., :1])
    assert jax.eval_shape(partial(method.intercept, call), half).dtype == jnp.bfloat16
  merged = {
    name: method.merge(
      {"kernel": kernel(model.base_model.model[name])}, fixed[name] | trained[name]
    )
    for name in SIZES
  }
  model = model.merge_and_unload()
  for name in SIZES:
    theirs = model[name].weight.detach().numpy().T
    np.testing.assert_allclose(merged[name]["kernel"], theirs, atol=1e-5, rtol=1e-5)


def kernel(layer):
  return jnp.asarray(layer.base_layer.weight.detach().numpy().T)


def plain(layer):
  """Returns the call of a layer without its adapter."""
  bias = layer.base_layer.bias.detach().numpy()
  return lambda x: x @ kernel(layer) + bias[None, None]


def lay(pretrained, section: dict, noise: float = 0.0):
  """Does what `tiny.lay` does, in one program."""
  methods, sites = tiny.build(section), tiny.find_sites(pretrained.model)
  init = jax.jit(lambda key, params: peft.init(key, methods, sites, params).overlay)
  tuned, hyper = init(jax.random.key(0), pretrained.params)
  tuned = {"params": {}, "peft": {}} | tiny.perturb(tuned, 1, noise)
  return peft.Adapted(methods, tuned, hyper, pretrained.params)


def train(pretrained, sections: list[dict], steps: int = 3, noise: float = 0.05):
  """Trains trials in one program and returns their states after every step, stacked, and losses."""
  laid = [lay(pretrained, section, noise) for section in sections]
  methods, _, _, base = laid[0]
  make = lambda numbers: optim.make(
    None, steps, learning_rate=0.02, weight_decay=0.1, epsilon=1e-3, clip=None
  )
  program = update.Program(pretrained.model, methods, sft.loss, make, steps)
  tuned, hyper = (tree.stack([trial[i] for trial in laid]) for i in (1, 2))
  tokens, mask = tiny.batch(2, 7)
  batch = dict(tokens=tokens[None], mask=mask[None], weights=mask[None].astype(np.float32))
  step = jax.jit(jax.vmap(lambda state: update.update(program, state, base, batch)))
  zeros = jnp.zeros(len(laid), jnp.int32)
  ratio = {"head_ratio": jnp.ones(len(laid))}
  state = update.State(zeros, zeros, tuned, hyper, ratio, jax.vmap(make(None).init)(tuned))
  states, losses = [state], []
  for _ in range(steps):
    state, metrics = step(state)
    states.append(jax.device_get(state))
    losses.append(metrics["loss"])
  return states, np.stack(losses)


def check_trials_equal_solo(pretrained, sections: list[dict], steps: int = 3):
  """Padded trials train as they do alone; what is padding is exactly zero in the end.

  Args:
    sections: the first is the largest; the others are run alone too.

  Returns:
    The grouped states after every step.
  """
  states, losses = train(pretrained, sections, steps)
  for i, section in enumerate(sections[1:], 1):
    alone, mine = train(pretrained, [section], steps)
    np.testing.assert_allclose(losses[:, i], mine[:, 0], rtol=1e-5)
    assert np.ptp(mine) > 1e-4
    ours = lambda state, i: jax.tree.map(lambda x: x[i], (state.tuned, state.hyper))
    check_padded(ours(states[-1], i), ours(alone[-1], 0))
  return states


def check_padded(together, solo):
  close = lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5, rtol=1e-4)
  jax.tree.map(close, tree.crop(together, solo), solo)
  outside = jax.tree.map(lambda x, like: padding(x, like.shape), together, solo)
  assert not any(np.any(x) for x in jax.tree.leaves(outside))


def padding(x, shape):
  """Returns an array with zeros in place of its part of a shape."""
  outside = np.array(x)
  outside[tuple(map(slice, shape))] = 0
  return outside


def check_merge(pretrained, section: dict):
  """A merged model computes what the intercepted one does, and not what the base does."""
  laid = methods, tuned, hyper, base = lay(pretrained, section, 0.1)
  tokens, _ = tiny.batch(2, 7)
  params = peft.merge(peft.Adapted(methods, tuned, hyper, base))
  run = jax.jit(lambda p: pretrained.model.apply({"params": p}, tokens))
  made = tiny.forward(pretrained, laid, tokens)
  np.testing.assert_allclose(made, run(params), atol=2e-5, rtol=0)
  assert np.abs(made - run(pretrained.params)).max() > 1e-3
  untouched = lay(pretrained, section)[1]
  plain = tiny.forward(pretrained, (methods, untouched, hyper, base), tokens)
  np.testing.assert_allclose(plain, run(pretrained.params), atol=1e-6, rtol=0)
