"""LoRAs made of other LoRAs, of weight deltas, and of the difference of two models.

Every result is an ordinary LoRA with scale 1: sites in `targets`, a (L, in, R), b (L, R, out).
"""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from jaxtune import compose, peft, tree
from jaxtune.errors import UserError
from jaxtune.models import hf, quantize
from jaxtune.runs import Run

LEAVES = ("/kernel", "/embedding")


def concatenate(runs: Sequence[Run], weights: Sequence[float] | None = None) -> Run:
  """Adds LoRAs exactly: factors side by side, with the sum of their ranks.

  Args:
    weights: of each delta, by default 1 / n.
  """
  compose.check_bases(runs)
  weights = compose.check_weights(weights, len(runs))
  products = [factors(run) for run in runs]
  made = {}
  for site in sorted(set().union(*products)):
    have = [(w, *p[site]) for w, p in zip(weights, products, strict=True) if site in p]
    made[site] = tuple(
      np.concatenate(xs, axis)
      for axis, xs in ((-1, [w * a for w, a, _ in have]), (-2, [b for *_, b in have]))
    )
  return as_run(runs[0], made)


def factors(run: Run) -> dict[str, tuple[np.ndarray, np.ndarray]]:
  """Returns {site: (s a, b)} of a LoRA; with PiSSA's and OLoRA's start taken off.

  Raises:
    UserError: for a run whose delta is no product of two factors.
  """
  (method,) = peft.build(run.config["method"]) if len(compose.parts(run)) == 1 else (None,)
  if method is None or method.kind != "lora" or method.options["dora"]:
    raise UserError(
      f"{run.folder} is no plain LoRA ({run.config['method']['name']}): expected factors a and b; "
      "`deltas` combines weight deltas of any method"
    )
  trained, fixed = peft.own(method, run.tuned["peft"]), peft.own(method, run.hyper)
  found = {}
  for site in trained:
    arrays = {name: np.asarray(x) for name, x in (fixed[site] | trained[site]).items()}
    a, b = arrays["a"] * arrays["scale"][..., None, None], arrays["b"]
    if "a0" in arrays:
      a = np.concatenate([a, -arrays["a0"] * arrays["scale"][..., None, None]], -1)
      b = np.concatenate([b, arrays["b0"]], -2)
    found[site] = (a, b)
  return found


def truncate(run: Run, rank: int) -> tuple[Run, dict[str, float]]:
  """Cuts a trained LoRA to its best approximation of a lower rank (Eckart & Young 1936).

  Returns:
    (the run, {site: share of the delta's squared norm that is kept}).
  """
  made, kept = {}, {}
  for site, (a, b) in factors(run).items():
    made[site], kept[site] = _cut(*spectrum(a, b), rank, site)
  return as_run(run, made), kept


def spectrum(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns the SVD (u, s, v) of the products a b (L, in, out) from the factors alone."""
  (q_a, r_a), (q_b, r_b) = np.linalg.qr(a), np.linalg.qr(b.swapaxes(-1, -2))
  u, s, v = np.linalg.svd(r_a @ r_b.swapaxes(-1, -2))
  return q_a @ u, s, v @ q_b.swapaxes(-1, -2)


def of_delta(run: Run, delta: dict[str, np.ndarray], rank: int) -> tuple[Run, dict[str, float]]:
  """Writes weight deltas {path: (L, in, out)} as a LoRA, by truncated SVD.

  A site whose own rank is lower than `rank` keeps that.

  Raises:
    UserError: where something else than a linear layer or an embedding has changed.
  """
  made, kept = {}, {}
  for path, x in delta.items():
    if not path.endswith(LEAVES):
      raise UserError(
        f"{path} has changed too, which no LoRA can hold: write a merged model, or extract from "
        "models that differ in linear layers alone"
      )
    site = path.rsplit("/", 1)[0]
    u, s, v = np.linalg.svd(x, full_matrices=False)
    made[site], kept[site] = _cut(u, s, v, min(rank, s.shape[-1]), site)
  if not made:
    raise UserError("the weights are equal: there is no difference to write as a LoRA")
  return as_run(run, made), kept


def extract(run: Run, folder: str, rank: int) -> tuple[Run, dict[str, float]]:
  """Makes a LoRA of the difference between a fine-tuned checkpoint and a base.

  Args:
    run: any run over the base, whose config says how it is loaded.
    folder: of the fine-tuned model.
  """
  head = run.pretrained.model.config.head
  kind, labels = ("lm", None) if head is None else (head.kind, head.outputs)
  tuned = hf.load(**run.config["model"] | {"path": folder, "quantize": None}, head=kind,
                  labels=labels)  # fmt: skip
  before = tree.flatten(quantize.dequantised(run.pretrained.params))
  after = tree.flatten(tuned.params)
  if shapes(before) != shapes(after):
    raise UserError(f"{folder} is another model than the base: its weights have other shapes")
  fp32 = lambda x: np.asarray(x, np.float32)
  delta = {path: fp32(x) - fp32(before[path]) for path, x in after.items()}
  return of_delta(run, {path: x for path, x in delta.items() if x.any()}, rank)


def shapes(flat: dict) -> dict:
  return {path: x.shape for path, x in flat.items()}


def _cut(u, s, v, rank: int, site: str):
  """Keeps the largest singular values: returns ((a, b), the share of the squared norm)."""
  if not 1 <= rank <= s.shape[-1]:
    raise UserError(f"rank is {rank}, expected 1 to {s.shape[-1]}, the rank of {site}")
  root = np.sqrt(s[..., :rank])
  pair = u[..., :rank] * root[..., None, :], root[..., None] * v[..., :rank, :]
  return pair, float((s[..., :rank] ** 2).sum() / max((s**2).sum(), 1e-30))


def as_run(run: Run, made: dict[str, tuple[np.ndarray, np.ndarray]]) -> Run:
  """Returns a run over the same base whose method is a LoRA of the given factors."""
  ranks = {site: a.shape[-1] for site, (a, _) in made.items()}
  section = {"name": "lora", "scale": 1.0, "targets": tuple(ranks)}
  section |= {"rank": max(ranks.values()), "ranks": ranks if len(set(ranks.values())) > 1 else None}
  arrays = lambda a, b: {"a": jnp.asarray(a, jnp.float32), "b": jnp.asarray(b, jnp.float32)}
  (method,) = peft.build(section)
  trained = {site: arrays(*pair) for site, pair in made.items()}
  one = lambda site, value: jnp.full(made[site][0].shape[:-2], value)
  fixed = {
    site: {"scale": one(site, 1.0), "dropout": one(site, 0.0)}
    | ({} if site.endswith("embed") else {"rate:b": one(site, 1.0)})
    for site in made
  }
  tuned = {"params": run.tuned["params"], "peft": tree.unflatten(peft.placed(method, trained))}
  return compose.remade(run, section, tuned, tree.unflatten(peft.placed(method, fixed)))
