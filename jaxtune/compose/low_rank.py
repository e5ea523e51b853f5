"""LoRAs made of other LoRAs, of weight deltas, and of the difference of two models.

Every result is an ordinary LoRA with scale 1: sites in `targets`, a (L, in, R), b (L, R, out).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxtune import compose, peft, tree
from jaxtune.errors import UserError
from jaxtune.models import hf, quantize
from jaxtune.models.heads import is_head
from jaxtune.peft.methods.lora import LEAVES
from jaxtune.peft.spectrum import spectrum
from jaxtune.runs.finished import Run


def concatenate(runs: Sequence[Run], weights: Sequence[float] | None = None) -> Run:
  """Adds LoRAs exactly, sum w_i delta_i: factors side by side, with the sum of their ranks.

  Where this rank exceeds the weight's smaller side, an SVD writes the same sum with that rank. The
  changes of heads that were trained with the LoRAs are added too.

  Args:
    weights: w_i of each delta, by default 1.
  """
  compose.check_bases(runs)
  weights = compose.check_weights(weights, len(runs), 1.0)
  products = [factors(run) for run in runs]
  made = {}
  for site in sorted(set().union(*products)):
    have = [(w, *p[site]) for w, p in zip(weights, products, strict=True) if site in p]
    with np.errstate(over="ignore"):
      a = np.concatenate([w * a for w, a, _ in have], -1)
    tree.check_finite({site: a}, "the sum of the adapters")
    b = np.concatenate([b for *_, b in have], -2)
    side = min(a.shape[-2], b.shape[-1])
    made[site] = (a, b) if a.shape[-1] <= side else _cut(*spectrum(a, b), side, site)[0]
  return with_lora(runs[0], made, _add_heads(runs, weights))


def _add_heads(runs: Sequence[Run], weights: Sequence[float]) -> dict[str, np.ndarray]:
  """Returns {path: W + sum w_i (W_i - W)} of the weights that were trained in place.

  W is the base's, and 0 of a new head: what it was drawn as is no part of the sum.
  """
  start, found = compose.start_of(runs[0]), {}
  for run, w in zip(runs, weights, strict=True):
    for path, x in tree.flatten(run.adapted.tuned["params"]).items():
      found[path] = found.get(path, start(path)) + w * (np.asarray(x) - start(path))
  return found


def factors(run: Run) -> dict[str, tuple[np.ndarray, np.ndarray]]:
  """Returns {site: (s a, b)} of a LoRA; the start of PiSSA and OLoRA is subtracted.

  Raises:
    UserError: for a run whose delta is no product of two factors.
  """
  (method,) = peft.build(run.config["method"]) if len(compose.sections(run)) == 1 else (None,)
  product = method.factors if method is not None and method.kind == "lora" else None
  if product is None:
    raise UserError(
      f"{run.folder} is no plain LoRA ({run.config['method']['name']}): expected factors a and b; "
      "`deltas` combines weight deltas of any method"
    )
  trained, fixed = run.adapted.overlay.arrays_of(method)
  of = lambda site: map(np.asarray, product(fixed[site] | trained[site]))
  return {site: tuple(of(site)) for site in trained}


def truncate(run: Run, rank: int) -> tuple[Run, dict[str, float]]:
  """Cuts a trained LoRA to its best approximation of a lower rank (Eckart & Young 1936).

  A site that has a lower rank keeps its own.

  Returns:
    (the run, {site: share of the delta's squared norm that is kept}).
  """
  made, kept, found = {}, {}, factors(run)
  most = max(a.shape[-1] for a, _ in found.values())
  if not 1 <= rank <= most:
    raise UserError(f"rank is {rank}, expected 1 to {most}, the largest of {run.folder}")
  for site, (a, b) in found.items():
    u, s, v = spectrum(a, b)
    made[site], kept[site] = _cut(u, s, v, min(rank, s.shape[-1]), site)
  return with_lora(run, made), kept


def of_delta(run: Run, delta: dict[str, np.ndarray], rank: int) -> tuple[Run, dict[str, float]]:
  """Writes weight deltas {path: (L, in, out)} as a LoRA, by truncated SVD.

  A site whose delta has a lower rank than `rank` keeps its own. A task's head is kept whole, with
  all that the base's folder does not have.

  Raises:
    UserError: where something else than a linear layer or an embedding has changed.
  """
  made, kept, start, base = {}, {}, compose.start_of(run), tree.flatten(run.pretrained.params)
  of_task = run.pretrained.model.config.head is not None
  whole = {p for p in base if of_task and is_head(p, pooler=False)} | {*run.pretrained.fresh}
  heads = {path: start(path) + delta.get(path, 0) for path in sorted(whole)}
  sites = peft.find_sites(run.pretrained.model)
  able = {f"{at}/{LEAVES[site.kind]}": at for at, site in sites.items() if site.kind in LEAVES}
  changed = delta.keys() - heads
  if beyond := sorted(changed - able.keys()):
    raise UserError(
      f"{beyond[0]} has changed too, which no LoRA can hold: expected models that differ in linear "
      "layers, embeddings and new heads alone"
    )
  if not changed:
    averaged = "only the head differs (jaxtune compose --how average takes the mean of heads)"
    what = averaged if delta else "they are equal"
    raise UserError(f"there is no difference of weights to write as a LoRA: {what}")
  for path in sorted(changed):
    u, s, v = np.linalg.svd(delta[path], full_matrices=False)
    made[able[path]], kept[able[path]] = _cut(u, s, v, min(rank, s.shape[-1]), able[path])
  return with_lora(run, made, heads), kept


def extract(run: Run, folder: str, rank: int) -> tuple[Run, dict[str, float]]:
  """Makes a LoRA of the difference between a fine-tuned checkpoint and a base.

  Args:
    run: any run over the base, whose config says how it is loaded.
    folder: of the fine-tuned model.
  """
  head = run.pretrained.model.config.head
  kind, labels = ("lm", None) if head is None else (head.kind, head.outputs)
  whole = {"path": folder, "architecture": None, "quantize": None, "dtype": "float32",
           "attention": None}  # fmt: skip
  tuned = hf.load(**run.config["model"] | whole, head=kind, labels=labels)
  if tuned.fresh:
    raise UserError(
      f"{folder} has no head {kind!r}, as it lacks {tuned.fresh[0]}: expected the checkpoint of a "
      "model that was fine-tuned with this head"
    )
  before = tree.flatten(quantize.dequantised(run.pretrained.params))
  after = tree.flatten(tuned.params)
  if jax.tree.map(jnp.shape, before) != jax.tree.map(jnp.shape, after):
    raise UserError(f"{folder} is another model than the base: its weights have other shapes")
  # A leaf that differs only as the base's own weights were rounded has not changed.
  rounded = lambda path: np.asarray(after[path]).astype(before[path].dtype)
  changed = [path for path, x in before.items() if (rounded(path) != np.asarray(x)).any()]
  start = compose.start_of(run)
  delta = {path: np.asarray(after[path], np.float32) - start(path) for path in changed}
  tree.check_finite(delta, str(folder))
  check_untied(run, delta, folder)
  return of_delta(run, delta, rank)


def check_untied(run: Run, changed: Collection[str], where: str | Path) -> None:
  """Raises UserError for a change of embeddings that score the logits too.

  A LoRA of embeddings changes their lookup alone.
  """
  c = run.pretrained.model.config
  scores = c.tied and (c.head is None or c.head.kind == "mlm")
  if scores and "embed/embedding" in changed:
    raise UserError(
      f"{where} changes the embeddings, which score the logits too: no LoRA can hold that; "
      "expected a model whose embeddings are the base's"
    )


def _cut(
  u: np.ndarray, s: np.ndarray, v: np.ndarray, rank: int, site: str
) -> tuple[tuple[np.ndarray, np.ndarray], float]:
  """Keeps the largest singular values: returns ((a, b), the share of the squared norm)."""
  if not 1 <= rank <= s.shape[-1]:
    raise UserError(f"rank is {rank}, expected 1 to {s.shape[-1]}, the rank of {site}")
  root = np.sqrt(s[..., :rank])
  pair = u[..., :rank] * root[..., None, :], root[..., None] * v[..., :rank, :]
  return pair, float((s[..., :rank] ** 2).sum() / max((s**2).sum(), 1e-30))


def with_lora(
  run: Run, made: dict[str, tuple[np.ndarray, np.ndarray]], params: dict | None = None
) -> Run:
  """Returns a run over the same base whose method is a LoRA of the given factors.

  Args:
    params: {path: array} of a head; by default the run's own.
  """
  ranks = {site: a.shape[-1] for site, (a, _) in made.items()}
  section = {"name": "lora", "scale": 1.0, "targets": tuple(ranks)}
  section |= {"rank": max(ranks.values()), "ranks": ranks if len(set(ranks.values())) > 1 else None}
  arrays = lambda a, b: {"a": jnp.asarray(a, jnp.float32), "b": jnp.asarray(b, jnp.float32)}
  (method,) = peft.build(section)
  trained = {site: arrays(*pair) for site, pair in made.items()}
  one = lambda site, value: jnp.full(made[site][0].shape[:-2], value)
  sites = peft.find_sites(run.pretrained.model)
  fixed = {
    site: {"scale": one(site, 1.0), "dropout": one(site, 0.0)}
    | ({} if sites[site].kind == "Embed" else {"rate:b": one(site, 1.0)})
    for site in made
  }
  moved = run.adapted.tuned["params"]
  if params is not None:
    moved = tree.unflatten({path: jnp.asarray(x, jnp.float32) for path, x in params.items()})
  tuned = {"params": moved, "peft": tree.unflatten(peft.by_path(method, trained))}
  hyper = tree.unflatten(peft.by_path(method, fixed))
  return compose.with_method(run, section, peft.Overlay(tuned, hyper))
