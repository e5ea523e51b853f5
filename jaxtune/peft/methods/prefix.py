"""Prefix tuning: trained keys and values in front of every layer's own (Li & Liang 2021).

Keys are stored as attention reads them, after RoPE, and are never rotated. All tokens see the whole
prefix. As in PEFT, real tokens stand at positions P, P+1, ...; with `shift=False`, as in
AdapterHub's `adapters`, at 0, 1, ...

In an encoder-decoder, the encoder, the decoder and the cross-attention have prefixes of their own,
one pair for each layer; positions are shifted where a trunk's self-attention has one.

Layers may differ in how many virtual tokens they have. They share positions, so real tokens then
stand behind the longest prefix, in every layer.

Relative biases (T5): prefix keys get none, and distances between real tokens stay what they were.
`adapters` 1.3 differs: it takes the prefix for the first P key slots but leaves queries at 0, 1,
..., so that every key looks P further ahead than the model was trained with.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxtune import peft
from jaxtune.errors import UserError
from jaxtune.schema import Natural, NonNegative, Width


def method(
  *,
  length: Width = 10,
  lengths: tuple[Natural, ...] | None = None,
  projection: Width | None = None,
  shift: bool = True,
  gate: bool = False,
  init_scale: NonNegative = 0.5,
  encoder: bool = True,
  decoder: bool = True,
  cross: bool = True,
) -> peft.Method:
  """Adds trained key/value pairs to every attention.

  Args:
    length: P, of the prefix, in virtual tokens; takes as many of the model's positions.
    lengths: P of every layer, one number each, in place of `length`; 0 for a layer without. In an
      encoder-decoder the same ones for every attention chosen, which takes trunks of equal depth.
    projection: hidden width of the MLP that makes the prefix from P trained embeddings, the
      paper's reparametrisation; None trains keys and values themselves. The MLP is kept for resume
      and dropped at export.
    shift: whether real tokens start at position P (PEFT) or at 0 (adapters).
    gate: whether what a query q takes from the prefix is multiplied by sigmoid(w q + b), with w and
      b trained from zero in each layer, so by 1/2 at first. UniPELT (Mao et al. 2022) scales keys
      and values by a gate averaged over the sequence, in which a decoder's tokens see later ones;
      here it scales the values, for each query by itself.
    init_scale: standard deviation of the initial keys and values, or embeddings.
    encoder, decoder, cross: which attentions of an encoder-decoder have a prefix: its encoder's,
      its decoder's own, and the decoder's over the encoder. Other models have one attention a
      layer, which always has one.
  """
  if lengths is not None:
    length = max(lengths, default=0)
    if length < 1:
      raise UserError(f"method.lengths is {lengths!r}, expected at least 1 for one of the layers")
  if not (encoder or decoder or cross):
    raise UserError(
      "method.encoder, method.decoder and method.cross are all False: expected a prefix in at "
      "least one of them"
    )
  attentions = dict(encoder=encoder, decoder=decoder, cross=cross)
  make = _init_flat if projection is None else partial(_init_mlp, hidden=projection)
  numbers = dict(length=length, lengths=lengths, shift=shift, deviation=init_scale, gate=gate)
  return peft.Method(
    "prefix",
    init=partial(_init, make=make, attentions=attentions, **numbers),
    intercept=_intercept,
    realise=_realise,
    unused=_unused,
    numbers=("length", "lengths"),
    padded={"key": (-3,), "value": (-3,), "embedding": (-2,), "mask": (-1,)},
    patterns=("attend",),
    positions=length if shift else 0,
    options=dict(length=length, shift=shift, projection=projection, gate=gate)
    | ({} if lengths is None else {"lengths": tuple(lengths)})
    | {name: False for name, chosen in attentions.items() if not chosen},
  )


def _init(key, sites, frozen, *, make, length, lengths, shift, deviation, gate, attentions):
  attends = {
    path: site
    for path, site in peft.match(("attend",), sites, "Attend").items()
    if attentions.get(_attention(path), True)
  }
  fixed = {path: {"mask": _mask(path, s, length, lengths)} for path, s in attends.items()}
  own = {_trunk(path) for path in attends if _attention(path) != "cross"}
  trained = make(key, attends, sites, length, deviation)
  for path in trained.keys() & fixed.keys():  # keys and values themselves, without an MLP
    real = fixed[path]["mask"][..., None, None]
    trained[path] = {name: jnp.where(real, x, 0) for name, x in trained[path].items()}
  for path, site in attends.items() if gate else ():
    heads = (*site.lead, *site.inputs[0][-2:])  # q is (B, T, N, H)
    gates = {"gate_kernel": jnp.zeros(heads), "gate_bias": jnp.zeros(site.lead)}
    trained[path] = trained.get(path, {}) | gates
  fixed |= {path: {"offset": jnp.asarray(length if shift else 0)} for path in sorted(own)}
  return trained, fixed


def _mask(path, site, length, lengths):
  """Says which of P slots each layer of a site has a key in: (L, P)."""
  if lengths is None:
    return jnp.ones((*site.lead, length), bool)
  if len(lengths) != site.layers:
    raise UserError(
      f"method.lengths has {len(lengths)} numbers, but {_trunk(path)} has {site.layers} layers: "
      "expected one for every layer of all attentions that method.encoder, method.decoder and "
      "method.cross choose"
    )
  return jnp.arange(length)[None] < jnp.asarray(lengths)[:, None]


def _unused(trained, fixed):
  """Counts keys and values of slots that a layer does not have; an MLP's weights make others."""
  flat = [path for path in trained if "key" in trained[path]]
  return sum(2 * trained[p]["key"][0, 0].size * (~fixed[p]["mask"]).sum() for p in flat)


def _attention(path):
  """Names the attention of a site: "cross", or its trunk ("encoder", "decoder", "trunk")."""
  return "cross" if path.endswith("/cross/attend") else _trunk(path)


def _trunk(path):
  return path.partition("/layers/")[0]


def _init_flat(key, attends, sites, length, deviation):
  trained = {}
  for path, site in attends.items():
    shape = (*site.lead, *site.inputs[1][-2:])  # k is (B, S, K, H)
    sample = lambda k, shape=shape: deviation * jax.random.normal(k, shape)
    trained[path] = {
      name: jnp.moveaxis(peft.draw_columns(sample, peft.site_key(key, path, name), length), -1, -3)
      for name in ("key", "value")
    }
  return trained


def _init_mlp(key, attends, sites, length, deviation, *, hidden):
  """Makes the embeddings and the MLP of each trunk; the last layer is each attention's own."""
  trunks = dict.fromkeys(map(_trunk, attends))
  return {
    trunk: _init_trunk(
      peft.site_key(key, trunk),
      {path: site for path, site in attends.items() if _trunk(path) == trunk},
      sites[trunk].inputs[0][-1],
      length,
      deviation,
      hidden,
    )
    for trunk in trunks
  }


def _init_trunk(key, attends, width, length, deviation, hidden):
  keys = {name: peft.site_key(key, name) for name in ("embedding", "w1", "w2")}
  sample = lambda k: deviation * jax.random.normal(k, (width,))
  made = {
    "embedding": peft.draw_columns(sample, keys["embedding"], length).T,
    "w1": jax.random.normal(keys["w1"], (width, hidden)) * width**-0.5,
    "bias1": jnp.zeros(hidden),
  }
  for path, site in attends.items():
    shape = (hidden, *site.lead, 2, *site.inputs[1][-2:])
    name = path.replace("/", ".")
    made[f"w2:{name}"] = (
      0.1 * hidden**-0.5 * jax.random.normal(peft.site_key(keys["w2"], path), shape)
    )
    made[f"bias2:{name}"] = jnp.zeros(shape[1:])
  return made


def _realise(trained):
  """Turns embeddings and MLP into keys and values: k, v = W2 tanh(W1 e + b1) + b2."""
  trunks = [arrays for arrays in trained.values() if "embedding" in arrays]
  if not trunks:
    return trained
  pairs = {path: pair for made in trunks for path, pair in _realised(made).items()}
  return {path: {**trained.get(path, {}), **pair} for path, pair in pairs.items()}


def _realised(made):
  hidden_PF = jnp.tanh(made["embedding"] @ made["w1"] + made["bias1"][None])
  found = {}
  for name in made:
    if name.startswith("w2:"):
      both = jnp.tensordot(hidden_PF, made[name], 1)  # (P, [L,] 2, K, H)
      both = both + made["bias2" + name[2:]][None]
      pair = jnp.moveaxis(both, (0, -3), (-3, 0))  # (2, [L,] P, K, H)
      found[name[3:].replace(".", "/")] = {"key": pair[0], "value": pair[1]}
  return found


def _intercept(
  module: nn.Module,
  trained: dict[str, Array],
  fixed: dict[str, Array],
  next_fn: Callable,
  *args: Any,
) -> Any:
  """Moves the positions of a trunk's tokens, or puts keys and values before an attention's own."""
  if "offset" in fixed:
    x_BTD, context = args
    return next_fn(x_BTD, context._replace(positions=context.positions + fixed["offset"]))
  return _attend(trained, fixed["mask"], next_fn, *args)


def _attend(
  trained: dict[str, Array], real_P: Bool[Array, " P"], next_fn: Callable, *args: Any
) -> Float[Array, "B T N H"]:
  """Attends to the prefix too; `args` are q, k, v, the mask and the bias (see `Attend`)."""
  q_BTNH, k_BSKH, v_BSKH, mask_B1TS, *biases = args
  rows = lambda x, y: jnp.broadcast_to(x, (y.shape[0], *x.shape)).astype(y.dtype)
  front = lambda x, y: jnp.concatenate([rows(x, y), y], 1)
  real_B1TP = jnp.broadcast_to(real_P, (*mask_B1TS.shape[:-1], real_P.shape[-1]))
  mask_B1TM = jnp.concatenate([real_B1TP, mask_B1TS], -1)
  unbiased = lambda b: jnp.pad(b, ((0, 0), (0, 0), (0, 0), (real_P.shape[-1], 0)))
  biases = [None if bias is None else unbiased(bias) for bias in biases]
  k_BMKH = front(trained["key"], k_BSKH)
  attend = lambda value: next_fn(q_BTNH, k_BMKH, front(value, v_BSKH), mask_B1TM, *biases)
  whole_BTNH = attend(trained["value"])
  if "gate_kernel" not in trained:
    return whole_BTNH
  gate_NH, bias = (trained[name].astype(q_BTNH.dtype) for name in ("gate_kernel", "gate_bias"))
  gate_BT = jax.nn.sigmoid(jnp.einsum("btnh,nh->bt", q_BTNH, gate_NH) + bias)
  without_BTNH = attend(jnp.zeros_like(trained["value"]))
  gate_BT11 = gate_BT[..., None, None].astype(whole_BTNH.dtype)
  return without_BTNH + gate_BT11 * (whole_BTNH - without_BTNH)
