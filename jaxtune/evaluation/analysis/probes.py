"""Looks into a model while it runs: the states of its layers, and attention to virtual tokens.

Nothing of the model is changed for this. An interceptor below those of the methods lets each layer
return what is asked for in place of its cache, so that the scan over layers stacks it; one above
them adds the states, as the methods that edit a layer's output leave them. Attention
weights are never read: attention is linear in its values, so that with 1 as the value of virtual
tokens and 0 as that of all others its output is the weight that virtual tokens get. So this holds
for every mask, bias, window and kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from jaxtune import peft
from jaxtune.models.context import Mask
from jaxtune.models.layers import Attend, Embed
from jaxtune.models.transformer import Block, Trunk
from jaxtune.training.step import INPUTS, Program, numbers_of

Shown = dict[str, Any]


def compare(
  program: Program, prompt: int, overlay: peft.Overlay, base: PyTree, params: PyTree, batch: dict
) -> dict[str, Shown]:
  """Runs a batch with methods and without them.

  Args:
    prompt: the length of the prompt that a method puts before the text; 0 without one.
    base: the frozen weights that lie under the overlay.
    params: all weights of the model as they were before training.

  Returns:
    {trunk: {"change", "size" (L,): sums over real tokens of the squared norms of the change of a
    layer's output, and of the output without methods; attention: {...}}}, with the sums that
    `_attention` returns for each attention of a layer that sees virtual tokens.
  """
  adapted = peft.Adapted(program.methods, *overlay, base)
  before = _observe(program, peft.untuned(params)._replace(hyper=overlay.hyper), 0, batch)
  found = {}
  for trunk, shown in _observe(program, adapted, prompt, batch).items():
    states_LBTD, real_BT = before[trunk].pop("states"), before[trunk].pop("real")
    after_LBTD = shown.pop("states")[:, :, -real_BT.shape[1] :]
    squares = lambda x, real_BT=real_BT: jnp.sum(
      jnp.where(real_BT[None, ..., None], x * x, 0), (1, 2, 3)
    )
    shown |= {"change": squares(after_LBTD - states_LBTD), "size": squares(states_LBTD)}
    found[trunk] = {name: x for name, x in shown.items() if name != "real"}
  return found


def _observe(
  program: Program, adapted: peft.Adapted, prompt: int, batch: dict[str, Array]
) -> dict[str, Shown]:
  """Returns {trunk: {"states" (L, B, S, D), "real" (B, S), attention: {...}}} of a forward pass."""
  seen: dict[str, Shown] = {}
  inputs = lambda batch: {name: batch[name] for name in INPUTS if name in batch}

  def watched(model: nn.Module, **options: Any) -> Any:
    with nn.intercept_methods(_hook(prompt, seen)):  # opened last, it is the innermost
      return model(**options)

  # With a method named, the layers are never run in parts.
  call = partial(peft.apply, program.model, adapted, method=watched)
  forward = lambda batch, **options: call(**inputs(batch), **options)
  with nn.intercept_methods(_with_states):  # opened first, it is the outermost
    program.objective(forward, batch, **numbers_of(adapted.overlay))
  return seen


def _with_states(next_fn: Callable, args: tuple, kwargs: dict, context: Any) -> Any:
  """Adds a layer's states to what `_hook` returns in place of its cache."""
  out = next_fn(*args, **kwargs)
  if context.method_name != "__call__" or not isinstance(context.module, Block):
    return out
  x_BTD, shown = out
  return x_BTD, shown | {"states": x_BTD.astype(jnp.float32)}


def _hook(prompt: int, seen: dict[str, Shown]) -> Callable:
  """Returns an interceptor that puts into `seen` what `_observe` returns."""
  now: Shown = {}  # of the trunk that is running

  def hook(next_fn: Callable, args: tuple, kwargs: dict, context: Any) -> Any:
    module, path = context.module, "/".join(context.module.path)
    if context.method_name != "__call__":
      return next_fn(*args, **kwargs)
    if isinstance(module, Embed) and path == "embed":
      now["tokens"] = args[0]
    elif isinstance(module, Trunk):
      x_BTD, of_rows = args
      _begin(now, of_rows.mask.keys, path == "decoder", prompt)
      y_BTD, (shown, _) = next_fn(x_BTD, of_rows._replace(cache={}))
      seen[path] = shown | {"real": of_rows.mask.keys}
      return y_BTD, None
    elif isinstance(module, Block):
      now["shown"] = {}
      x_BTD, _ = next_fn(*args, **kwargs)
      return x_BTD, now["shown"]
    elif isinstance(module, Attend):
      name = "cross" if "cross" in module.path else "attn"
      own, tokens_BS = now[name]
      # A gated prefix calls twice, the second time with values of zero.
      if name not in now["shown"] and (own or args[3].front is not None):
        now["shown"][name] = _attention(next_fn, args, own, now["queries"], tokens_BS)
    return next_fn(*args, **kwargs)

  return hook


def _begin(now: Shown, keys_BS: Bool[Array, "B S"], decodes: bool, prompt: int) -> None:
  """Notes what the attentions of a trunk read: (length of a prompt there, tokens), and queries.

  Args:
    decodes: whether it is the decoder of an encoder-decoder, whose encoder has read the prompt.
  """
  own = 0 if decodes else prompt
  padded = keys_BS.shape[1] - now["tokens"].shape[1]
  tokens_BS = jnp.pad(now["tokens"], ((0, 0), (padded, 0)), constant_values=-1)
  now["attn"] = own, tokens_BS
  if not decodes:
    now["cross"] = own, tokens_BS
  now["queries"] = keys_BS & ~_first(keys_BS, own)


def _first(keys_BS: Bool[Array, "B S"], count: int) -> Bool[Array, "B S"]:
  """Says which slots hold the first `count` real tokens of each row."""
  return keys_BS & (jnp.cumsum(keys_BS, 1) <= count)


def _attention(
  attend: Callable, args: tuple, prompt: int, queries_BT: Bool[Array, "B T"],
  tokens_BS: Int[Array, "B S"],
) -> Shown:  # fmt: skip
  """Sums what one attention does with virtual tokens over a batch.

  Args:
    args: of `Attend`: queries, keys, values, the mask and maybe a bias.
    prompt: how many of each row's first real keys are virtual, beside those in front of the keys.
    queries_BT: which queries are real tokens.
    tokens_BS: the token of each key but those in front.

  Returns:
    "mass" (N,): the weight that virtual tokens get, summed over queries; "uniform" (): the same if
    the weight were equal on all keys that a query sees; "queries" (): how many there are;
    "virtual" and "real" (3,): the norms of keys, of values, and 1, summed over tokens, the norms'
    mean over heads; "cosine" and "token" (P,): of the token whose key is nearest to each key in
    front of all others, by cosine over all heads.
  """
  q_BTNH, k_BMKH, v_BMKH, mask, *bias = args
  slots_BS = _first(mask.keys, prompt)
  front_P = jnp.zeros(0, bool) if mask.front is None else mask.front
  in_front = lambda front_BS: jnp.concatenate(
    [jnp.broadcast_to(front_P, (len(front_BS), len(front_P))), front_BS], 1
  )
  virtual_BM, seen_BM = in_front(slots_BS), in_front(mask.keys)
  marks_BMKH = jnp.broadcast_to(virtual_BM[..., None, None], k_BMKH.shape).astype(v_BMKH.dtype)
  weight = lambda q, *bias: jnp.where(
    queries_BT[..., None], attend(q, k_BMKH, marks_BMKH, mask, *bias)[..., 0], 0
  ).astype(jnp.float32)
  norms = [jnp.linalg.norm(x.astype(jnp.float32), axis=-1).mean(-1) for x in (k_BMKH, v_BMKH)]
  sizes_3BM = jnp.stack([*norms, jnp.ones_like(norms[0])])
  total = lambda where_BM: jnp.where(where_BM[None], sizes_3BM, 0).sum((1, 2))
  return {
    "mass": weight(q_BTNH, *bias).sum((0, 1)),
    "uniform": weight(jnp.zeros_like(q_BTNH)).mean(-1).sum(),
    "queries": queries_BT.sum().astype(jnp.float32),
    "virtual": total(virtual_BM),
    "real": total(seen_BM & ~virtual_BM),
  } | _nearest(k_BMKH, mask, tokens_BS)


def _nearest(k_BMKH: Float[Array, "B M K H"], mask: Mask, tokens_BS: Int[Array, "B S"]) -> Shown:
  """Finds the token whose key is nearest to each key in front."""
  if mask.front is None:
    return {}
  k_BMF = k_BMKH.astype(jnp.float32).reshape(*k_BMKH.shape[:2], -1)
  unit_BMF = k_BMF / jnp.maximum(jnp.linalg.norm(k_BMF, axis=-1, keepdims=True), 1e-12)
  count = len(mask.front)
  cosine_BSP = jnp.einsum("bsf,pf->bsp", unit_BMF[:, count:], unit_BMF[0, :count])
  real_BS = mask.keys & (tokens_BS >= 0)
  flat = jnp.where(real_BS[..., None], cosine_BSP, -2.0).reshape(-1, count)
  best_P = flat.argmax(0)
  return {
    "cosine": jnp.where(mask.front, flat.max(0), -2.0),
    "token": tokens_BS.reshape(-1)[best_P],
  }


def add(total: dict[str, Shown] | None, one: dict[str, Shown]) -> dict[str, Shown]:
  """Adds what `compare` returned of one more batch; of nearest tokens the nearer one is kept."""
  if total is None:
    return one
  joined = jax.tree.map(jnp.add, total, one)
  for trunk, shown in joined.items():
    for name, sums in shown.items():
      if isinstance(sums, dict) and "token" in sums:
        old, new = total[trunk][name], one[trunk][name]
        nearer = new["cosine"] > old["cosine"]
        sums["token"] = jnp.where(nearer, new["token"], old["token"])
        sums["cosine"] = jnp.where(nearer, new["cosine"], old["cosine"])
  return joined


def means(total: dict[str, Shown], decode: Callable[[int], str]) -> dict[str, Any]:
  """Turns sums over batches into means.

  Args:
    decode: (token) -> its text.

  Returns:
    {"states": {trunk: relative change of each layer's output}, "attention": {attention: {"mass"
    (L, N): the weight on virtual tokens, mean over real tokens; "uniform" (L,): that of attention
    which weighs all keys alike; "virtual" and "real": mean norms {"key", "value"} (L,); "nearest"
    and "cosine" (L, P): the token whose key is nearest to each key in front}}}.
  """
  sums = jax.tree.map(np.asarray, total)
  return {
    "states": {trunk: np.sqrt(x["change"] / x["size"]) for trunk, x in sums.items()},
    "attention": {
      f"{trunk}/{name}": _mean_attention(x, decode)
      for trunk, shown in sums.items()
      for name, x in shown.items()
      if isinstance(x, dict)
    },
  }


def _mean_attention(x: dict[str, np.ndarray], decode: Callable[[int], str]) -> dict[str, Any]:
  """Turns the sums of one attention into means."""
  with np.errstate(invalid="ignore", divide="ignore"):  # a layer without virtual tokens
    norms = {name: x[name][:, :2] / x[name][:, 2:] for name in ("virtual", "real")}
  found = {
    "mass": x["mass"] / x["queries"][:, None],
    "uniform": x["uniform"] / x["queries"],
    **{name: {"key": pair[:, 0], "value": pair[:, 1]} for name, pair in norms.items()},
  }
  if "token" in x:
    there = x["cosine"] >= -1.5
    found["cosine"] = np.where(there, x["cosine"], np.nan)
    found["nearest"] = [
      [decode(token) if known else None for token, known in zip(*pair, strict=True)]
      for pair in zip(x["token"].tolist(), there.tolist(), strict=True)
    ]
  return found
