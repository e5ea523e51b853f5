"""AdaLoRA: y = W x + s * B (e * A x), with one budget of ranks for all layers (Zhang et al. 2023).

e stands for singular values. Of the arrays a = A^T (inputs, R), e (R,) and b = B^T (R, outputs), a
triplet is a column of a, an entry of e and a row of b. Between the steps `tinit` and
`steps - tfinal` the budget of triplets falls from init_rank to target_rank, both times the number
of weights (eq. 12), and the least important triplets have their e set to zero. Shapes never change.

Importance (eq. 8-11) is computed as in PEFT. The sensitivity of an entry w with gradient g is the
moving average of |w g|; its uncertainty is the moving average of the distance of |w g| from the
sensitivity; its score is their product. A triplet's importance is the score of its e, plus the mean
scores of its column of a and of its row of b.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from jaxtune import peft
from jaxtune.errors import UserError
from jaxtune.models.layers import times
from jaxtune.schema import Count, Fraction, Natural, NonNegative, Positive, Rate, Width

AVERAGES = ("sensitivity", "uncertainty")
PADDED = {"a": (-1,), "e": (-1,), "b": (-2,), "real": (-1,), "kept": (-1,)}


def method(
  *,
  init_rank: Width = 12,
  target_rank: Width = 8,
  alpha: Positive = 8.0,
  dropout: Rate = 0.0,
  orth_weight: NonNegative = 0.5,
  tinit: Natural | None = None,
  tfinal: Natural | None = None,
  interval: Count = 1,
  beta1: Fraction = 0.85,
  beta2: Fraction = 0.85,
  targets: tuple[str, ...] = ("q_proj", "v_proj"),
) -> peft.Method:
  """Adds a low-rank delta to linear layers and moves its ranks to where they matter.

  Args:
    init_rank: triplets of each weight at the start; at most the smaller side of every target.
    target_rank: triplets of each weight at the end, on average; at most init_rank.
    alpha: numerator of the delta's scale s = alpha / (init_rank + 1e-5), which pruning does not
      change, as in PEFT; above 0, as PEFT reads any other as init_rank.
    dropout: rate at which entries of the delta's input are set to zero in training.
    orth_weight: factor of the penalty, the mean over all a and b of |a^T a - I| and |b b^T - I|
      (Frobenius norms). The reported loss does not include it.
    tinit: number of updates before the budget falls; by default a tenth of the run.
    tfinal: number of updates at the end in which the same triplets stay pruned; by default a third
      of the run. At least one update must lie between the two.
    interval: number of updates from one pruning to the next, in which a pruned e may grow again.
    beta1, beta2: decay rates of the moving averages of sensitivity and of uncertainty.
    targets: regular expressions, matched against the end of the path of Linear sites.

  a and b are drawn from N(0, 0.02^2), e is zero. Of two equal importances the later one is kept,
  where PEFT prunes both. Importance uses gradients before clipping. With `train.keep = "best"` the
  weights of a step before the budget is reached are not kept: their rank is above target_rank.
  """
  if target_rank > init_rank:
    raise UserError(
      f"method.target_rank is {target_rank} and method.init_rank {init_rank}, "
      "expected 1 <= target_rank <= init_rank"
    )
  numbers = dict(scale=alpha / (init_rank + 1e-5), dropout=dropout, orth_weight=orth_weight)
  times = dict(tinit=tinit, tfinal=tfinal)
  return peft.Method(
    "adalora",
    init=partial(_init, rank=init_rank, numbers=numbers | {"target": target_rank}, targets=targets),
    intercept=_intercept,
    merge=_merge,
    factors=_factors,
    penalty=_penalty,
    adjust=partial(_adjust, betas=(beta1, beta2), interval=interval, **times),
    keep_from=lambda steps: schedule_bounds(steps, **times)[1],
    groupable=("init_rank", "target_rank", "alpha", "dropout", "orth_weight"),
    padded_axes=PADDED
    | {f"{kind}:{name}": axes for kind in AVERAGES for name, axes in PADDED.items()},
    patterns=tuple(targets),
    options=dict(init_rank=init_rank, target_rank=target_rank, alpha=alpha, dropout=dropout)
    | dict(orth_weight=orth_weight, beta1=beta1, beta2=beta2, interval=interval, **times),
  )


def _init(
  key: Array, sites: dict[str, peft.Site], frozen: peft.Frozen, *,
  rank: int, numbers: dict, targets: tuple[str, ...],
) -> tuple[peft.Arrays, peft.Arrays]:  # fmt: skip
  trained, fixed, normal = {}, {}, jax.nn.initializers.normal(0.02)
  for path, site in peft.match(targets, sites, "Linear").items():
    peft.check_rank("method.init_rank", rank, path, (site.input, site.output))
    a_key, b_key = (peft.site_key(key, path, name) for name in ("a", "b"))
    arrays = {
      "a": peft.draw(normal, a_key, (*site.lead, site.input, rank), axis=-1),
      "e": jnp.zeros((*site.lead, rank)),
      "b": peft.draw(normal, b_key, (*site.lead, rank, site.output), axis=-2),
    }
    masks = {name: jnp.ones((*site.lead, rank), bool) for name in ("real", "kept")}
    zeros = {f"{kind}:{n}": jnp.zeros_like(x) for n, x in arrays.items() for kind in AVERAGES}
    trained[path] = arrays
    fixed[path] = site.constants(numbers) | masks | zeros
  return trained, fixed


def _intercept(call: peft.Call, x_BTI: Float[Array, "*BT I"]) -> Float[Array, "*BT O"]:
  w = call.cast(x_BTI.dtype)
  low_BTR = times(call.dropout(x_BTI) @ w["a"], call.arrays["e"] * call.arrays["scale"])
  return call.next_fn(x_BTI) + low_BTR @ w["b"]


def _factors(w: dict[str, Array]) -> tuple[Float[Array, "*L I R"], Float[Array, "*L R O"]]:
  e_LR = w["scale"][..., None] * w["e"]
  return w["a"], e_LR[..., None] * w["b"]


def _merge(leaves: dict[str, Array], w: dict[str, Array]) -> dict[str, Array]:
  a_LIR, b_LRO = _factors(w)
  return {"kernel": leaves["kernel"] + a_LIR @ b_LRO}


def _penalty(trained: peft.Arrays, fixed: peft.Arrays) -> Float[Array, ""]:
  norms = []
  for site, w in trained.items():
    weight_L, real_LR = fixed[site]["orth_weight"], fixed[site]["real"]
    identity_LRR = real_LR[..., None] * jnp.eye(real_LR.shape[-1])[(None,) * (real_LR.ndim - 1)]
    for square_LRR in (w["a"].swapaxes(-1, -2) @ w["a"], w["b"] @ w["b"].swapaxes(-1, -2)):
      total_L = jnp.sum((square_LRR - identity_LRR) ** 2, (-2, -1))
      # At a norm of 0, the bound makes the gradient 0 instead of NaN.
      norms.append(weight_L * jnp.sqrt(jnp.maximum(total_L, 1e-12)))
  return sum(x.sum() for x in norms) / sum(x.size for x in norms)


def schedule_bounds(steps: int, tinit: int | None, tfinal: int | None) -> tuple[int, int]:
  """Returns (the last update before the budget falls, the first at which it is the target).

  Raises:
    UserError: unless 0 <= tinit < steps - tfinal <= steps.
  """
  tinit = steps // 10 if tinit is None else tinit
  tfinal = steps // 3 if tfinal is None else tfinal
  if not 0 <= tinit < steps - tfinal <= steps:
    raise UserError(
      f"method.tinit is {tinit} and method.tfinal {tfinal} in a run of {steps} steps; "
      "expected updates between the two, in which the budget falls"
    )
  return tinit, steps - tfinal


def budget(step: ArrayLike, start: int, end: int, initial: Array, target: Array) -> Array:
  """Returns how many triplets all weights together have after update `step` (eq. 12).

  Args:
    start, end: the updates that `schedule_bounds` returns.
    initial, target: the number of triplets until `start`, and from `end` on.
  """
  share = (1 - np.arange(end - start + 1) / (end - start)) ** 3
  # A product of two numbers of 12 bits is exact in fp32, so the share is split into two parts.
  coarse = np.floor(share * 2**12) / 2**12
  at = jnp.clip(step, start, end) - start
  parts = (jnp.asarray(x, jnp.float32)[at] for x in (coarse, share - coarse))
  whole, rest = ((initial - target) * x for x in parts)
  return (target + jnp.floor(whole) + jnp.floor(whole % 1 + rest + 1e-6)).astype(jnp.int32)


def _adjust(
  step: Int[Array, ""], steps: int, trained: peft.Arrays, gradients: peft.Arrays,
  fixed: peft.Arrays, *, betas: tuple[float, float], tinit: int | None, tfinal: int | None,
  interval: int,
) -> tuple[peft.Arrays, peft.Arrays]:  # fmt: skip
  start, end = schedule_bounds(steps, tinit, tfinal)
  averages = {s: _averages(w, gradients[s], fixed[s], betas) for s, w in trained.items()}
  pick = partial(jnp.where, step < end)
  fixed = {s: jax.tree.map(pick, fixed[s] | new, fixed[s]) for s, new in averages.items()}
  initial = sum(f["real"].sum() for f in fixed.values())
  target = sum(f["target"].sum() for f in fixed.values())
  due = ((step > start) & (step < end) & (step % interval == 0)) | (step == end)
  kept = _most_important(fixed, budget(step, start, end, initial, target))
  after = {}
  for site, w in trained.items():
    kept_LR = jnp.where(due, kept[site], fixed[site]["kept"])
    fixed[site] = fixed[site] | {"kept": kept_LR}
    after[site] = w | {"e": jnp.where((due | (step > end)) & ~kept_LR, 0.0, w["e"])}
  return after, fixed


def _averages(w: dict, gradients: dict, fixed: dict, betas: tuple) -> dict[str, Array]:
  """Returns the moving averages after one more gradient (eq. 9, 10)."""
  averages = {}
  for name, x in w.items():
    now = jnp.abs(x * gradients[name])
    mean = betas[0] * fixed[f"sensitivity:{name}"] + (1 - betas[0]) * now
    off = betas[1] * fixed[f"uncertainty:{name}"] + (1 - betas[1]) * jnp.abs(now - mean)
    averages |= {f"sensitivity:{name}": mean, f"uncertainty:{name}": off}
  return averages


def _most_important(fixed: peft.Arrays, count: Int[Array, ""]) -> dict[str, Bool[Array, "*L R"]]:
  """Returns masks of the `count` most important triplets; a NaN counts as the least important."""
  scores = {}
  for site, f in fixed.items():
    entry = {name: f[f"sensitivity:{name}"] * f[f"uncertainty:{name}"] for name in ("a", "e", "b")}
    score_LR = entry["e"] + entry["a"].mean(-2) + entry["b"].mean(-1)
    finite_LR = jnp.where(jnp.isfinite(score_LR), score_LR, -1.0)
    scores[site] = jnp.where(f["real"], finite_LR, jnp.inf)
  scores_M = jnp.concatenate([score_LR.ravel() for score_LR in scores.values()])
  real = sum(f["real"].sum() for f in fixed.values())
  # The least important triplet has order 0; padding comes last.
  order_M = jnp.argsort(jnp.argsort(scores_M))
  kept, start = {}, 0
  for site, score_LR in scores.items():
    kept_M = order_M[start : start + score_LR.size] >= real - count
    kept[site] = kept_M.reshape(score_LR.shape) & fixed[site]["real"]
    start += score_LR.size
  return kept
