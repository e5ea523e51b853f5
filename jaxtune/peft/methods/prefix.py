"""Prefix tuning: trained keys and values in front of every layer's own (Li & Liang 2021).

Keys are stored as attention reads them, after RoPE, and are never rotated. All tokens see the whole
prefix. As in PEFT, real tokens stand at positions P, P+1, ...; with `shift=False`, as in
AdapterHub's `adapters`, at 0, 1, ...

In an encoder-decoder, the encoder, the decoder and the cross-attention have prefixes of their own,
one pair of keys and values for each layer. Positions are shifted in a trunk whose self-attention
has a prefix.

Layers may have different numbers of virtual tokens. As all layers share the positions, real tokens
then stand behind the longest prefix in every layer.

Relative biases (T5) are not added to prefix keys, and are unchanged between real tokens.
`adapters` 1.3 differs: it counts the prefix as the first P key slots but leaves queries at 0, 1,
..., so that every key appears P slots further ahead than the model was trained with.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.nn import initializers
from jaxtyping import Array, Bool, Float

from jaxtune import peft
from jaxtune.errors import UserError
from jaxtune.models.context import Mask
from jaxtune.schema import Natural, NonNegative, Width

Sites = dict[str, peft.Site]


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
    length: P, the number of virtual tokens in the prefix; with `shift` they take as many of the
      model's positions.
    lengths: P of every layer, one number each, in place of `length`; 0 for a layer without a
      prefix, but not for all. In an encoder-decoder every chosen attention has the same lengths, so
      its trunks must have equal depth.
    projection: hidden width of the MLP that makes the prefix from P trained embeddings, the
      paper's reparametrisation; None trains keys and values themselves. The MLP is kept to resume a
      run and dropped at export.
    shift: whether real tokens start at position P (PEFT) or at 0 (adapters).
    gate: whether what a query q takes from the prefix is multiplied by sigmoid(w q + b), where w
      and b of each layer are trained and start at zero, so that it starts at 1/2. UniPELT (Mao et
      al. 2022) scales keys and values by a gate averaged over the sequence, by which a decoder's
      tokens see later ones; here each query has its own gate, and only the values are scaled.
    init_scale: standard deviation of the initial keys and values, or of the MLP's embeddings. With
      0 all slots stay equal to each other.
    encoder, decoder, cross: which attentions of an encoder-decoder have a prefix: its encoder's,
      its decoder's own, and the decoder's over the encoder. At least one must. Other models have
      one attention a layer, which always has one.
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
  numbers = dict(length=length, lengths=lengths, shift=shift, std=init_scale, gate=gate)
  return peft.Method(
    "prefix",
    init=partial(_init, make=make, attentions=attentions, **numbers),
    intercept=_intercept,
    reparametrise=_reparametrise,
    count_unused=_count_unused,
    groupable=("length", "lengths"),
    padded_axes={"key": (-3,), "value": (-3,), "embedding": (-2,), "mask": (-1,)},
    patterns=("attend",),
    positions=length if shift else 0,
    options=dict(length=length, shift=shift, projection=projection, gate=gate)
    | ({} if lengths is None else {"lengths": tuple(lengths)})
    | {name: False for name, chosen in attentions.items() if not chosen},
  )


def _init(
  key: Array, sites: Sites, frozen: peft.Frozen, *, make: Callable, length: int,
  lengths: tuple[int, ...] | None, shift: bool, std: float, gate: bool, attentions: dict,
) -> tuple[peft.Arrays, peft.Arrays]:  # fmt: skip
  attends = {
    path: site
    for path, site in peft.match(("attend",), sites, "Attend").items()
    if attentions.get(_attention(path), True)
  }
  fixed = {path: {"mask": _mask(path, s, length, lengths)} for path, s in attends.items()}
  shifted = {_trunk(path) for path in attends if _attention(path) != "cross"}
  trained = make(key, attends, sites, length, std)
  for path in trained.keys() & fixed.keys():  # keys and values themselves, where there is no MLP
    real = fixed[path]["mask"][..., None, None]
    trained[path] = {name: jnp.where(real, x, 0) for name, x in trained[path].items()}
  for path, site in attends.items() if gate else ():
    heads = (*site.lead, *site.inputs[0][-2:])  # q is (B, T, N, H)
    gates = {"gate_kernel": jnp.zeros(heads), "gate_bias": jnp.zeros(site.lead)}
    trained[path] = trained.get(path, {}) | gates
  fixed |= {path: {"offset": jnp.asarray(length if shift else 0)} for path in sorted(shifted)}
  return trained, fixed


def _mask(path: str, site: peft.Site, length: int, lengths: tuple | None) -> Bool[Array, "*L P"]:
  """Returns which of P slots hold a key in each layer of a site."""
  if lengths is None:
    return jnp.ones((*site.lead, length), bool)
  if len(lengths) != site.layers:
    raise UserError(
      f"method.lengths has {len(lengths)} numbers, but {_trunk(path)} has {site.layers} layers: "
      "expected one for every layer of all attentions that method.encoder, method.decoder and "
      "method.cross choose"
    )
  return jnp.arange(length)[None] < jnp.asarray(lengths)[:, None]


def _count_unused(trained: peft.Arrays, fixed: peft.Arrays) -> Array | int:
  """Counts the keys and values of slots that a layer does not have; with an MLP there are none."""
  flat = [path for path in trained if "key" in trained[path]]
  return sum(2 * trained[p]["key"][0, 0].size * (~fixed[p]["mask"]).sum() for p in flat)


def _attention(path: str) -> str:
  """Returns which attention a site is: "cross", or its trunk ("encoder", "decoder", "trunk")."""
  return "cross" if path.endswith("/cross/attend") else _trunk(path)


def _trunk(path: str) -> str:
  return path.partition("/layers/")[0]


def _init_flat(key: Array, attends: Sites, sites: Sites, length: int, std: float) -> peft.Arrays:
  trained, normal = {}, initializers.normal(std)
  for path, site in attends.items():
    shape = (*site.lead, length, *site.inputs[1][-2:])  # k is (B, S, K, H)
    trained[path] = {
      name: peft.draw(normal, peft.site_key(key, path, name), shape, axis=-3)
      for name in ("key", "value")
    }
  return trained


def _init_mlp(
  key: Array, attends: Sites, sites: Sites, length: int, std: float, *, hidden: int
) -> peft.Arrays:
  """Draws the embeddings and the MLP of each trunk; the last layer is each attention's own."""
  trained = {}
  for path, site in attends.items():
    trunk = _trunk(path)
    width, trunk_key = sites[trunk].input, partial(peft.site_key, peft.site_key(key, trunk))
    if trunk not in trained:
      embeddings = initializers.normal(std)
      trained[trunk] = {
        "embedding": peft.draw(embeddings, trunk_key("embedding"), (length, width), axis=0),
        "w1": initializers.normal(width**-0.5)(trunk_key("w1"), (width, hidden)),
        "bias1": jnp.zeros(hidden),
      }
    shape, name = (hidden, *site.lead, 2, *site.inputs[1][-2:]), path.replace("/", ".")
    w2 = initializers.normal(0.1 * hidden**-0.5)(trunk_key("w2", path), shape)
    trained[trunk] |= {f"w2:{name}": w2, f"bias2:{name}": jnp.zeros(shape[1:])}
  return trained


def _reparametrise(trained: peft.Arrays) -> peft.Arrays:
  """Turns embeddings and MLP into keys and values: k, v = W2 tanh(W1 e + b1) + b2."""
  reparametrised = {}
  for arrays in trained.values():
    if "embedding" not in arrays:
      continue
    hidden_PF = jnp.tanh(arrays["embedding"] @ arrays["w1"] + arrays["bias1"][None])
    for name in [name.removeprefix("w2:") for name in arrays if name.startswith("w2:")]:
      pairs = jnp.tensordot(hidden_PF, arrays[f"w2:{name}"], 1)  # (P, [L,] 2, K, H)
      pairs = pairs + arrays[f"bias2:{name}"][None]
      key_LPKH, value_LPKH = jnp.moveaxis(pairs, (0, -3), (-3, 0))
      site = name.replace(".", "/")
      reparametrised[site] = trained.get(site, {}) | {"key": key_LPKH, "value": value_LPKH}
  return reparametrised or trained


def _intercept(call: peft.Call, *args: Any) -> Any:
  """Shifts the positions of a trunk's tokens, or puts keys and values before an attention's own."""
  if "offset" not in call.arrays:
    return _attend(call, *args)
  x_BTD, context = args
  shifted = context._replace(positions=context.positions + call.arrays["offset"])
  return call.next_fn(x_BTD, shifted)


def _attend(
  call: peft.Call,
  q_BTNH: Float[Array, "B T N H"],
  k_BSKH: Float[Array, "B S K H"],
  v_BSKH: Float[Array, "B S K H"],
  mask: Mask,
  *biases: Float[Array, "1 N T S"] | None,
) -> Float[Array, "B T N H"]:
  """Attends to the prefix too; the arguments are those of `Attend`, with or without a bias."""
  arrays, real_P = call.arrays, call.arrays["mask"]
  rows = lambda x, y: jnp.broadcast_to(x, (y.shape[0], *x.shape)).astype(y.dtype)
  front = lambda x, y: jnp.concatenate([rows(x, y), y], 1)
  real_M = real_P if mask.front is None else jnp.concatenate([real_P, mask.front])
  mask = mask.replace(front=real_M)
  unbiased = lambda b: jnp.pad(b, ((0, 0), (0, 0), (0, 0), (real_P.shape[-1], 0)))
  biases_1NTM = [None if bias is None else unbiased(bias) for bias in biases]
  k_BMKH = front(arrays["key"], k_BSKH)
  attend = lambda v: call.next_fn(q_BTNH, k_BMKH, front(v, v_BSKH), mask, *biases_1NTM)
  whole_BTNH = attend(arrays["value"])
  if "gate_kernel" not in arrays:
    return whole_BTNH
  gate_NH, bias = (arrays[name].astype(q_BTNH.dtype) for name in ("gate_kernel", "gate_bias"))
  gate_BT = jax.nn.sigmoid(jnp.einsum("btnh,nh->bt", q_BTNH, gate_NH) + bias)
  without_BTNH = attend(jnp.zeros_like(arrays["value"]))
  gate_BT11 = gate_BT[..., None, None].astype(whole_BTNH.dtype)
  return without_BTNH + gate_BT11 * (whole_BTNH - without_BTNH)
