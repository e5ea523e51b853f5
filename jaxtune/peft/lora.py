"""LoRA: y = W x + s * B A x with trained low-rank A and B (Hu et al. 2021, eq. 3)."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from jaxtune import peft, tree
from jaxtune.errors import UserError


def method(
  rank: int = 8,
  alpha: float = 16.0,
  scale: float | None = None,
  rslora: bool = False,
  dropout: float = 0.0,
  targets: tuple[str, ...] = ("q_proj", "v_proj"),
) -> peft.Method:
  """Adds a low-rank delta to linear layers.

  Args:
    rank: columns of A; at most the smaller side of every target.
    alpha: the delta's scale is alpha / rank, or alpha / sqrt(rank) with `rslora` (Kalajdzievski
      2023). A rank sweep then also changes the scale.
    scale: a fixed scale instead, the same at every rank.
    dropout: of the delta's input, in training.
    targets: regular expressions, matched against the end of the path of Linear sites.

  A is drawn uniformly from +-1/sqrt(inputs), B is zero, as in the authors' code.
  """
  if not 0 <= dropout < 1:
    raise UserError(f"method.dropout is {dropout}, expected 0 <= dropout < 1")
  if rank < 1:
    raise UserError(f"method.rank is {rank}, expected at least 1")
  if scale is None:
    scale = alpha / (rank**0.5 if rslora else rank)
  return peft.Method(
    "lora",
    init=partial(_init, rank=rank, scale=scale, rate=dropout, targets=targets),
    intercept=_intercept,
    merge=_merge,
    numbers=("rank", "alpha", "scale", "rslora", "dropout"),
    patterns=tuple(targets),
    options=dict(rank=rank, alpha=scale * rank, dropout=dropout),
  )


def _init(key, sites, frozen, *, rank, scale, rate, targets):
  trained, fixed = {}, {}
  for path, site in peft.match(targets, sites, "Linear").items():
    inputs, outputs = site.inputs[0][-1], site.output
    if rank > min(inputs, outputs):
      raise UserError(
        f"method.rank is {rank}, but {path} is {inputs} x {outputs}: "
        f"expected at most {min(inputs, outputs)}"
      )
    bound = inputs**-0.5
    sample = lambda k, shape=(*site.lead, inputs), b=bound: jax.random.uniform(
      k, shape, minval=-b, maxval=b
    )  # noqa: E501
    trained[path] = {
      "a": peft.draw_columns(sample, peft.site_key(key, path), rank),
      "b": jnp.zeros((*site.lead, rank, outputs)),
    }
    fixed[path] = {"scale": jnp.full(site.lead, scale), "dropout": jnp.full(site.lead, rate)}
  return trained, fixed


def _intercept(module, trained, fixed, next_fn, x):
  a, b = trained["a"].astype(x.dtype), trained["b"].astype(x.dtype)
  delta = peft.dropout(module, x, fixed["dropout"]) @ a * fixed["scale"].astype(x.dtype)
  return next_fn(x) + delta @ b


def _merge(params, trained, fixed):
  flat = tree.flatten(params)
  for site, factors in trained.items():
    scale = fixed[site]["scale"][..., None, None]
    flat[f"{site}/kernel"] += scale * factors["a"] @ factors["b"]
  return tree.unflatten(flat)
