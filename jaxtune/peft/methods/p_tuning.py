"""P-tuning: a small network makes the prompt from trained embeddings (Liu et al. 2021, section 3).

The network is PEFT's. From embeddings e_1 .. e_P it makes the prompt's vectors p_1 .. p_P:
  mlp:  p_i = W3 relu(W2 relu(W1 e_i + b1) + b2) + b3
  lstm: p_i = W2 relu(W1 h_i + b1) + b2, with h = BiLSTM(e_1 .. e_P), the paper's eq. 5
It is trained with the embeddings, kept to resume a run and dropped at export. `prompt` says
where the prompt stands and how the model reads it.
"""

from __future__ import annotations

import itertools
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxtune import peft
from jaxtune.peft.methods import prompt
from jaxtune.schema import Count, Width


def method(
  length: Width = 20,
  encoder: Literal["mlp", "lstm"] = "mlp",
  hidden: Width | None = None,
  layers: Count = 2,
) -> peft.Method:
  """Puts a prompt before the text, which a trained network makes from trained embeddings.

  Args:
    length: P, the number of virtual tokens, which take as many of the model's positions. Trials of
      different lengths share a program only with "mlp": an LSTM reads the prompt from both ends.
    encoder: the network, "mlp" or "lstm".
    hidden: width of its hidden layers (of each direction, in an LSTM); by default the model's.
    layers: number of the LSTM's layers; an MLP always has two hidden layers.

  Embeddings are drawn from N(0, 1), weights and biases uniformly from +-1/sqrt(inputs), in an LSTM
  from +-1/sqrt(hidden), as PyTorch does; the LSTM has one bias where PyTorch adds two.
  """
  make = partial(_draw, length=length, hidden=hidden, layers=layers if encoder == "lstm" else 0)
  return peft.Method(
    "p_tuning",
    init=partial(prompt.init, make=make, length=length),
    intercept=prompt.intercept,
    reparametrise=_reparametrise,
    prepends=True,
    groupable=("length",) if encoder == "mlp" else (),
    padded_axes={"embedding": (-2,), "mask": (-1,)} if encoder == "mlp" else {},
    positions=length,
    options=dict(length=length, encoder=encoder, hidden=hidden, layers=layers),
  )


def _draw(
  key: Array, site: peft.Site, frozen: peft.Frozen, *, length: int, hidden: int | None, layers: int
) -> dict[str, Array]:
  width, hidden = site.input, hidden or site.input
  uniform = lambda name, shape, fan: peft.uniform(fan**-0.5)(peft.site_key(key, name), shape)
  embedding_key = peft.site_key(key, "embedding")
  arrays = {"embedding": peft.draw(jax.random.normal, embedding_key, (length, width), axis=0)}
  for i in range(layers):
    inputs = 2 * hidden if i else width
    shapes = {"input": (2, inputs, 4 * hidden), "state": (2, hidden, 4 * hidden)}
    for name, shape in (shapes | {"bias": (2, 4 * hidden)}).items():
      arrays[f"lstm{i}_{name}"] = uniform(f"lstm{i}_{name}", shape, hidden)
  sizes = [2 * hidden, 2 * hidden, width] if layers else [width, hidden, hidden, width]
  for i, (inputs, outputs) in enumerate(itertools.pairwise(sizes), 1):
    arrays[f"w{i}"] = uniform(f"w{i}", (inputs, outputs), inputs)
    arrays[f"bias{i}"] = uniform(f"b{i}", (outputs,), inputs)
  return arrays


def _reparametrise(trained: peft.Arrays) -> peft.Arrays:
  """Runs the network where there is one; a prompt that was loaded without it stays."""
  return {
    site: {"prompt": _encode(arrays)} if "embedding" in arrays else arrays
    for site, arrays in trained.items()
  }


def _encode(arrays: dict[str, Array]) -> Float[Array, "P D"]:
  """Runs the network on the embeddings."""
  x_PF = arrays["embedding"]
  for i in range(sum(name.endswith("_state") for name in arrays)):
    weights = [arrays[f"lstm{i}_{name}"] for name in ("input", "state", "bias")]
    ahead, back = (_lstm(*(w[way] for w in weights), x_PF, way == 1) for way in (0, 1))
    x_PF = jnp.concatenate([ahead, back], -1)
  last = sum(name.startswith("w") for name in arrays)
  for i in range(1, last + 1):
    x_PF = x_PF @ arrays[f"w{i}"] + arrays[f"bias{i}"][None]
    x_PF = jax.nn.relu(x_PF) if i < last else x_PF
  return x_PF


def _lstm(
  input_IM: Float[Array, "I M"],
  state_FM: Float[Array, "F M"],
  bias_M: Float[Array, " M"],
  x_PI: Float[Array, "P I"],
  reverse: bool,
) -> Float[Array, "P F"]:
  """Returns the states of an LSTM in one direction, M = 4 F (Hochreiter & Schmidhuber 1997)."""

  def step(carry, inputs_M):
    state_F, cell_F = carry
    i_F, f_F, g_F, o_F = jnp.split(inputs_M + state_F @ state_FM, 4)
    cell_F = jax.nn.sigmoid(f_F) * cell_F + jax.nn.sigmoid(i_F) * jnp.tanh(g_F)
    state_F = jax.nn.sigmoid(o_F) * jnp.tanh(cell_F)
    return (state_F, cell_F), state_F

  start_F = jnp.zeros(state_FM.shape[0])
  inputs_PM = x_PI @ input_IM + bias_M[None]
  return jax.lax.scan(step, (start_F, start_F), inputs_PM, reverse=reverse)[1]
