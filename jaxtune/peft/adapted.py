"""Initialises, reads, changes and merges the arrays that methods lay over a model's weights."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from jaxtune import tree
from jaxtune.errors import UserError
from jaxtune.models import quantize
from jaxtune.peft.draws import site_key
from jaxtune.peft.method import Arrays, Frozen, Method
from jaxtune.peft.sites import Site


class Overlay(NamedTuple):
  """Holds the arrays that one trial lays over the base; a pytree, so that trials can be stacked.

  Attributes:
    tuned: the trained arrays in fp32, {"params": leaves taken out of the base, "peft": arrays that
      methods add}.
    hyper: the methods' fixed numbers, such as scales and masks.
  """

  tuned: PyTree
  hyper: PyTree

  def arrays_of(self, method: Method) -> tuple[Arrays, Arrays]:
    """Returns one method's (trained, fixed) arrays."""
    return arrays_of(method, self.tuned["peft"]), arrays_of(method, self.hyper)


class Adapted(NamedTuple):
  """Holds a model's weights with methods laid over them: all that a forward pass reads.

  Attributes:
    methods: the methods, as `build` returns them.
    tuned, hyper: the arrays of one trial; see `Overlay`.
    base: the weights that stay frozen, in their stored types.
  """

  methods: tuple[Method, ...]
  tuned: PyTree
  hyper: PyTree
  base: PyTree

  @property
  def overlay(self) -> Overlay:
    """Returns the arrays alone, without the base and the methods that all trials share."""
    return Overlay(self.tuned, self.hyper)


def untuned(params: PyTree) -> Adapted:
  """Returns weights without any method laid over them."""
  return Adapted((), {"params": {}, "peft": {}}, {}, params)


def init(
  key: Key[Array, ""],
  methods: tuple[Method, ...],
  sites: dict[str, Site],
  params: PyTree,
  tokenize: Callable[[str], list[int]] | None = None,
) -> Adapted:
  """Draws the arrays that the methods train, and takes weights trained in place out of the base.

  Args:
    sites: the model's sites, from `find_sites`.
    params: the model's weights; kernels may be quantised.
    tokenize: (text) -> token ids, for prompts that start from a text.

  Returns:
    The adapted weights. Those of the base are not copied.

  Raises:
    UserError: for methods that cannot be combined, or that find nothing to train in this model.
  """
  _check_names(methods, sites)
  in_place, base = split(methods, params)
  flat, moved = tree.flatten(params), tree.flatten(in_place)
  frozen = Frozen(partial(quantize.weight, flat), tokenize, flat)
  deltas, hyper, taken = {}, {}, set()
  for method in methods:
    trained, fixed = method.init(site_key(key, method.name), sites, frozen)
    _check_in_place(method, flat)
    new = overwritten(method, trained)
    # Of weights trained in place, those below the layers that are overwritten have an effect.
    lost = {path for path, x in new.items() if path in moved and x.shape == flat[path].shape}
    if twice := lost | (new.keys() & taken):
      raise UserError(f"two methods train {min(twice)}, one without effect: leave one out")
    taken |= new.keys()
    deltas |= by_path(method, trained)
    hyper |= by_path(method, fixed)
  tuned = {
    "params": jax.tree.map(lambda x: jnp.array(x, jnp.float32), in_place),
    "peft": tree.unflatten(deltas),
  }
  return Adapted(methods, tuned, tree.unflatten(hyper), base)


def split(methods: tuple[Method, ...], params: PyTree) -> tuple[dict, dict]:
  """Splits the weights into (those that methods train in place, those that stay frozen)."""
  return tree.partition(
    params, lambda path: any(m.trains is not None and m.trains(path) for m in methods)
  )


def overwritten(method: Method, trained: Arrays) -> dict[str, Array]:
  """Returns {path of a weight: what a method reads in its place}; see `Method.overwrite`."""
  if method.overwrite is None:
    return {}
  return {f"{site}/{name}": x for site, arrays in trained.items() for name, x in arrays.items()}


def _check_names(methods: tuple[Method, ...], sites: dict[str, Site]) -> None:
  """Raises UserError for two prompts, or a method with the name of another one or of a module."""
  prompts = [method.name for method in methods if method.prepends]
  if len(prompts) > 1:
    raise UserError(f"two prompts: {' and '.join(prompts)}; expected at most one, of any length")
  names = [method.name for method in methods if method.intercept is not None]
  if twice := {name for name in names if names.count(name) > 1}:
    raise UserError(f"two methods are called {min(twice)!r}: give one another key in the stack")
  modules = {name for path in sites for name in path.split("/")}
  for name in names:
    if name in modules:
      raise UserError(f"method.{name} has the name of a module; expected any other name")


def _check_in_place(method: Method, flat: dict[str, Array]) -> None:
  """Raises UserError if a method trains weights in place and finds none, or quantised ones."""
  if method.trains is None:
    return
  in_place = {path: leaf for path, leaf in flat.items() if method.trains(path)}
  if not in_place:
    raise UserError(
      f"method {method.name!r} finds nothing to train: no leaf of this model is a "
      f"{' or '.join(method.patterns)}"
    )
  check_floating(method.name, in_place)


def check_floating(name: str, leaves: dict[str, Array]) -> None:
  """Raises UserError if one of {path: leaf} is quantised, as such leaves cannot be trained."""
  for path, leaf in leaves.items():
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
      raise UserError(
        f"method {name!r} trains {path}, which is quantised ({leaf.dtype}); expected a base in "
        "floating point, or a method that adds arrays, such as lora"
      )


def weights(adapted: Adapted) -> PyTree:
  """Returns the weights that the forward pass reads, including those that methods overwrite."""
  return _with_overwrites(adapted, tree.combine(adapted.base, adapted.tuned["params"]))


def in_parts(adapted: Adapted) -> dict[str, PyTree]:
  """Returns the weights without overwriting stacks of layers: {"params": ..., "last": ...}.

  "last" has what the last layers read in place of the layers of "params".
  """
  params = tree.combine(adapted.base, adapted.tuned["params"])
  methods = [m for m in adapted.methods if m.overwrite is not None]
  if not methods:
    return {"params": params}
  lowest = lambda depth: min(m.lowest(depth) for m in methods)
  old = {p: x[lowest(len(x)) :] if "/layers/" in p else x for p, x in tree.flatten(params).items()}
  new = tree.flatten(_with_overwrites(adapted, tree.unflatten(old)))
  changed = tree.unflatten({path: x for path, x in new.items() if x is not old[path]})
  last, others = tree.partition(changed, lambda path: "/layers/" in path)
  return {"params": tree.combine(params, others), "last": last}


def merge(adapted: Adapted) -> PyTree[Float[Array, ...]]:
  """Merges the methods' weight deltas into a full tree of weights, in fp32.

  Raises:
    UserError: for a method that is no weight delta (prefix, adapter), and for DoRA at a weight that
      a method before it has changed.
  """
  params = quantize.dequantised(tree.combine(adapted.base, adapted.tuned["params"]))
  params = jax.tree.map(lambda x: x.astype(jnp.float32), params)
  params = _with_overwrites(adapted, params)
  changed: set[str] = set()
  for method in adapted.methods:
    trained, fixed = adapted.overlay.arrays_of(method)
    for site in changed & {s for s, arrays in trained.items() if "magnitude" in arrays}:
      raise UserError(
        f"{method.name!r} scales {site} by the norm of the base's weights and its own delta, which "
        "another method has changed by then: give it a name that sorts before the other's, or "
        "stack its adapter first; two that scale one site cannot be merged"
      )
    if method.overwrite is None:  # what is overwritten is in `params` already
      changed |= trained.keys()
    if method.merge is not None:
      params = _map_sites(params, method.merge, trained, fixed)
    elif trained and method.overwrite is None and method.intercept is not None:
      raise UserError(
        f"method {method.name!r} is no weight delta and cannot be merged; export it as an adapter"
      )
  return params


def _with_overwrites(adapted: Adapted, params: PyTree) -> PyTree:
  """Replaces the weights of which methods train a part (see `Method.overwrite`)."""
  for m in adapted.methods:
    if m.overwrite is not None:
      params = _map_sites(params, m.overwrite, *adapted.overlay.arrays_of(m))
  return params


def _map_sites(params: PyTree, change: Callable, trained: Arrays, fixed: Arrays) -> PyTree:
  """Applies a method's change(leaves, arrays) to every module at which it trains arrays."""
  flat = tree.flatten(params)
  for site, arrays in trained.items():
    paths = [path for path in flat if path.rpartition("/")[0] == site]
    leaves = {path.removeprefix(f"{site}/"): flat[path] for path in paths}
    new = change(leaves, fixed.get(site, {}) | arrays)
    flat |= {f"{site}/{name}": leaf for name, leaf in new.items()}
  return tree.unflatten(flat)


def reparametrise(methods: tuple[Method, ...], deltas: PyTree) -> PyTree:
  """Applies every method's reparametrisation: returns the tree of arrays that `intercept` reads."""
  for method in methods:
    before = arrays_of(method, deltas)
    after = method.reparametrise(before)
    if after is not before:
      deltas = with_arrays(method, deltas, after)
  return deltas


def arrays_of(method: Method, deltas: PyTree) -> Arrays:
  """Returns one method's part of a tree, as {path of a site: {array name: array}}."""
  arrays: Arrays = {}
  for path, leaf in tree.flatten(deltas).items():
    site, owner, name = path.rsplit("/", 2)
    if owner == method.name:
      arrays.setdefault(site, {})[name] = leaf
  return arrays


def by_path(method: Method, arrays: Arrays) -> dict[str, Array]:
  """Returns {path in the tree: array} of a method's arrays; the inverse of `arrays_of`."""
  return {f"{site}/{method.name}/{n}": x for site, xs in arrays.items() for n, x in xs.items()}


def with_arrays(method: Method, deltas: PyTree, arrays: Arrays) -> dict:
  """Returns a copy of a tree in which one method's arrays are replaced by `arrays`."""
  flat = {p: x for p, x in tree.flatten(deltas).items() if p.split("/")[-2] != method.name}
  return tree.unflatten(flat | by_path(method, arrays))
