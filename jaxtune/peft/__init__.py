"""Fine-tuning methods: small pytrees laid over a frozen model, and the one place they meet it.

A method never touches a model's code. It says which arrays it trains at which sites of the module
tree, and how it wraps a module's call. Everything trained lives in one tree,
`tuned = {"params": leaves moved out of the base, "peft": deltas}`, and every number that a trial
fixes (scale, prefix mask, dropout rate) in `hyper`, so that trials can be stacked and vmapped.
"""

from __future__ import annotations

import importlib
import pkgutil
import zlib
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxtune import schema, tree
from jaxtune.errors import UserError, nearest
from jaxtune.models import quantize
from jaxtune.peft import methods as methods_
from jaxtune.peft import unions
from jaxtune.peft.sites import Site
from jaxtune.peft.sites import check_rank as check_rank
from jaxtune.peft.sites import find_sites as find_sites
from jaxtune.peft.sites import hits as hits
from jaxtune.peft.sites import match as match


class Frozen(NamedTuple):
  """What a method may read of the frozen model when it draws its first arrays.

  Attributes:
    weight: (path of a leaf) -> its weights in fp32, (L, ...) where it is scanned over layers.
    tokenize: (text) -> token ids, without special tokens; None for a model without a tokenizer.
    leaves: {path: leaf as it is stored}, for its path, shape and type.
  """

  weight: Callable
  tokenize: Callable | None = None
  leaves: dict = {}


class Method(NamedTuple):
  """One way of fine-tuning, as a few pure functions.

  Below, `trained` and `fixed` are the method's own arrays, {site path: {array name: array}}; every
  array of a scanned site has the leading axis L. Two names of fixed arrays have a meaning of their
  own: "rate:X" multiplies the learning rate of the trained array X, and "shared:X" has no layer
  axis, so that all layers read the one array.

  Attributes:
    name: the key it owns at each of its sites.
    kind: the name of its module in `jaxtune.peft`; a stack may have renamed the method.
    init: (key, sites, frozen) -> (trained, fixed).
    intercept: (module, trained, fixed, next_fn, *args) -> output, with one site's arrays of one
      layer; wraps the module's call.
    moves: says whether the base leaf at a path is trained in place (full, BitFit).
    place: (params, trained, fixed) -> params that the forward pass reads, of the same shapes
      and types (last layers). Merging places them too, in fp32.
    realise: (trained) -> the trained arrays that `intercept` reads; drops a reparametrisation.
    merge: (params, trained, fixed) -> params with the delta added in fp32; None if it is no delta.
    penalty: (trained, fixed) -> what is added to the mean loss (AdaLoRA).
    adjust: (step, steps, trained, gradients, fixed) -> (trained, fixed) after each update, where
      `steps` is the run's length (AdaLoRA).
    settled: (steps) -> the step of a run from which on its weights are what its options say, so
      that those of an earlier one are not kept as the best (AdaLoRA's budget).
    slots: (fixed) -> mask (P,) of the tokens that stand before a decoder's text, or None (prompts).
    unused: (trained, fixed) -> how many trained numbers are padding, the same in every trial.
    numbers: options that are arrays, so that one program trains trials that differ in them.
    padded: {array name: its axes of rank, width or length}. Along these, zeros change nothing that
      is computed, so arrays of several trials or adapters are padded to one shape; along any other
      axis they must agree.
    patterns: the targets asked for, each of which must hit a site.
    positions: how many of the model's positions it takes (prefix length).
    start: folder of an adapter, or of a run, to train on from; None for a fresh start.
    options: the options it was made with, as export and reports need them.
  """

  name: str
  kind: str = ""
  init: Callable = lambda key, sites, frozen: ({}, {})
  intercept: Callable | None = None
  moves: Callable[[str], bool] | None = None
  place: Callable | None = None
  realise: Callable = lambda trained: trained
  merge: Callable | None = None
  penalty: Callable | None = None
  adjust: Callable | None = None
  settled: Callable[[int], int] | None = None
  slots: Callable | None = None
  unused: Callable = lambda trained, fixed: 0
  numbers: tuple[str, ...] = ()
  padded: dict[str, tuple[int, ...]] = {}
  patterns: tuple[str, ...] = ()
  positions: int = 0
  start: str | None = None
  options: dict = {}


class Overlay(NamedTuple):
  """The arrays that one trial lays over the base; a pytree, so that trials can be stacked.

  Attributes:
    tuned: what is trained, {"params": leaves moved out of the base, "peft": deltas}, in fp32.
    hyper: the methods' fixed numbers.
  """

  tuned: Any
  hyper: Any


class Adapted(NamedTuple):
  """A model's weights with methods laid over them: all that a forward pass reads.

  Attributes:
    methods: from `build`.
    tuned, hyper: see `Overlay`.
    base: the weights that stay frozen.
  """

  methods: tuple[Method, ...]
  tuned: Any
  hyper: Any
  base: Any

  @property
  def overlay(self) -> Overlay:
    """The arrays alone, without what all trials share."""
    return Overlay(self.tuned, self.hyper)


def build(section: dict) -> tuple[Method, ...]:
  """Makes the methods of a config section.

  Args:
    section: {"name": "lora", "rank": 8, ...}, or {"name": "stack", KEY: section, ...} for several
      at once, each of which owns its KEY at its sites (and is called KEY unless it has a name); a
      completed config has them in the order of their keys, in which they are laid and merged. A
      union such as {"name": "mam"} stands for a stack (`peft.unions`).
  """
  options = unions.expand(section)
  kind = options.pop("name", None)
  if kind == "stack":
    for key, part in options.items():
      if "/" in key or not hasattr(part, "keys"):
        raise UserError(f"method.{key} is {part!r}; expected a section, under a name without '/'")
    if not options:
      raise UserError("method 'stack' is empty; expected sections such as lora and prefix in it")
    sections = {key: {"name": key, **part} for key, part in options.items()}
    for key, part in sections.items():
      if part["name"] == "stack" or part["name"] in unions.UNIONS:
        raise UserError(
          f"method.{key} is a stack within a stack; expected one stack of all methods"
        )
    return tuple(build(part)[0]._replace(name=key) for key, part in sections.items())
  start, make = options.pop("start", None), constructor(kind)
  schema.check_arguments(make, options, "method.")
  return (make(**options)._replace(kind=kind, start=start),)


def parts(section: dict) -> dict[str, dict]:
  """Returns the sections of a completed config's methods by name: one, or those of a stack."""
  if section["name"] != "stack":
    return {section["name"]: section}
  return {name: part for name, part in section.items() if name != "name"}


def constructor(kind: str) -> Callable:
  """Finds a method's `method` function by name, or says which methods there are."""
  known = [m.name for m in pkgutil.iter_modules(methods_.__path__)]
  if kind not in known:
    names = [*known, "stack", *unions.UNIONS]
    raise UserError(f"unknown method {kind!r}. {nearest(str(kind), names)}")
  return importlib.import_module(f"jaxtune.peft.methods.{kind}").method


def site_key(key, *names: str):
  """Derives the random key of a named place, the same whatever else is trained."""
  for name in names:
    key = jax.random.fold_in(key, zlib.crc32(name.encode()))
  return key


def draw_columns(sample: Callable, key, count: int):
  """Stacks sample(key_i) for i < count as a new last axis.

  Each column has a key of its own, so that the draw of rank 4 is the start of that of rank 8.
  """
  keys = jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(count))
  return jnp.moveaxis(jax.vmap(sample)(keys), 0, -1)


def split(methods: tuple[Method, ...], params: Any) -> tuple[dict, dict]:
  """Splits the weights into (those that methods train in place, those that stay frozen)."""
  return tree.partition(
    params, lambda path: any(m.moves is not None and m.moves(path) for m in methods)
  )


def init(
  key,
  methods: tuple[Method, ...],
  sites: dict[str, Site],
  params: Any,
  tokenize: Callable | None = None,
) -> Adapted:
  """Draws what the methods train, and splits the weights that they train in place off the base.

  Args:
    tokenize: (text) -> token ids, for prompts that start from a text.

  Returns:
    The adapted weights; those of the base are not copied.
  """
  moved, base = split(methods, params)
  flat = tree.flatten(params)
  frozen = Frozen(partial(quantize.weight, flat), tokenize, flat)
  prompts = [method.name for method in methods if method.slots is not None]
  if len(prompts) > 1:
    raise UserError(f"two prompts: {' and '.join(prompts)}; expected at most one, of any length")
  names = [method.name for method in methods if method.intercept is not None]
  if twice := {name for name in names if names.count(name) > 1}:
    raise UserError(f"two methods are called {min(twice)!r}: give one another key in the stack")
  deltas, hyper = {}, {}
  modules = {name for path in sites for name in path.split("/")}
  for method in methods:
    # Its arrays could not be told from those of the module's own sites.
    if method.intercept is not None and method.name in modules:
      raise UserError(f"method.{method.name} has the name of a module; expected any other name")
    trained, fixed = method.init(site_key(key, method.name), sites, frozen)
    if method.moves is not None and not any(map(method.moves, flat)):
      raise UserError(
        f"method {method.name!r} finds nothing to train: no leaf of this model is a "
        f"{' or '.join(method.patterns)}"
      )
    if method.moves is not None:
      check_floating(method.name, {path: flat[path] for path in filter(method.moves, flat)})
    deltas |= placed(method, trained)
    hyper |= placed(method, fixed)
  tuned = {
    "params": jax.tree.map(lambda x: jnp.array(x, jnp.float32), moved),
    "peft": tree.unflatten(deltas),
  }
  return Adapted(methods, tuned, tree.unflatten(hyper), base)


def untuned(params: Any) -> Adapted:
  """Returns weights with nothing laid over them."""
  return Adapted((), {"params": {}, "peft": {}}, {}, params)


def check_floating(name: str, leaves: dict[str, Any]) -> None:
  """Refuses to train quantised leaves."""
  for path, leaf in leaves.items():
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
      raise UserError(
        f"method {name!r} trains {path}, which is quantised ({leaf.dtype}); expected a base in "
        "floating point, or a method that adds arrays, such as lora"
      )


def placed(method: Method, arrays: dict[str, dict]) -> dict[str, Any]:
  """Returns {path in the tree: array} of a method's {site: {array name: array}}; undoes `own`."""
  return {f"{site}/{method.name}/{n}": x for site, xs in arrays.items() for n, x in xs.items()}


def own(method: Method, deltas: Any) -> dict[str, dict]:
  """Returns {site path: {array name: array}} of one method's part of a tree."""
  found = {}
  for path, leaf in tree.flatten(deltas).items():
    site, owner, name = path.rsplit("/", 2)
    if owner == method.name:
      found.setdefault(site, {})[name] = leaf
  return found


def realise(methods: tuple[Method, ...], deltas: Any) -> Any:
  """Applies every reparametrisation: returns the tree that the forward pass reads."""
  for method in methods:
    before = own(method, deltas)
    after = method.realise(before)
    if after is not before:
      deltas = replace(method, deltas, after)
  return deltas


def replace(method: Method, deltas: Any, arrays: dict[str, dict]) -> dict:
  """Returns a tree in which a method's part is `arrays`."""
  flat = {p: x for p, x in tree.flatten(deltas).items() if p.split("/")[-2] != method.name}
  return tree.unflatten(flat | placed(method, arrays))


def apply(model, adapted: Adapted, *args, rng=None, method=None, **inputs):
  """Runs the model with the methods laid over it; the only place where interceptors are opened.

  Must be called inside the function that is jitted, never around one: jax's cache does not see
  interceptors.

  Args:
    adapted: as `init` returns it; its arrays may be traced.
    *args, **inputs: the model's own, for example tokens (B, T) and mask (B, T).
    rng: a key turns dropout on; None is evaluation.
    method: the model's method to run, by default `__call__`.
  """
  methods, tuned, hyper, _ = adapted
  called = [m for m in methods if m.intercept is not None]
  names = {m.name for m in called}
  # What is placed need not have one slice for each layer, and no call reads it.
  read = lambda arrays: tree.partition(arrays, lambda path: f"/{path}".split("/")[-2] in names)[0]
  shared, scanned = tree.partition(read(hyper), lambda path: "/shared:" in path)
  variables = {
    "params": weights(adapted),
    "peft": read(realise(methods, tuned["peft"])),
    "hyper": scanned,
    "shared": shared,
  }
  if (
    inputs.get("mask") is not None and "inputs" not in inputs
  ):  # the one text that the table is asked for
    variables["batch"] = {"embed": {"mask": inputs["mask"]}}

  def hook(next_fn, args, kwargs, context):
    module, call = context.module, next_fn
    if context.method_name != "__call__":
      return next_fn(*args, **kwargs)
    for m in called:
      if module.has_variable("peft", m.name) or module.has_variable("hyper", m.name):
        trained = module.get_variable("peft", m.name, {})
        fixed = {**module.get_variable("hyper", m.name, {})}
        fixed |= module.get_variable("shared", m.name, {})
        call = partial(m.intercept, module, trained, fixed, call)
    return call(*args, **kwargs)

  with nn.intercept_methods(hook):
    return model.apply(
      variables, *args, method=method, rngs=None if rng is None else {"dropout": rng}, **inputs
    )


def weights(adapted: Adapted) -> Any:
  """Returns the weights that the forward pass reads, with those that methods place."""
  return _place(adapted, tree.combine(adapted.base, adapted.tuned["params"]))


def _place(adapted: Adapted, params: Any) -> Any:
  for m in adapted.methods:
    if m.place is not None:
      params = m.place(params, own(m, adapted.tuned["peft"]), own(m, adapted.hyper))
  return params


def merge(adapted: Adapted) -> Any:
  """Folds weight deltas into a full tree of weights, in fp32.

  Raises:
    UserError: for a method that is no weight delta (prefix, adapter).
  """
  methods, tuned, hyper, base = adapted
  params = quantize.dequantised(tree.combine(base, tuned["params"]))
  params = jax.tree.map(lambda x: x.astype(jnp.float32), params)
  params = _place(adapted, params)
  changed: set[str] = set()
  for method in methods:
    trained, fixed = own(method, tuned["peft"]), own(method, hyper)
    for site in changed & {s for s, arrays in trained.items() if "magnitude" in arrays}:
      raise UserError(
        f"{method.name!r} scales {site} by the norm of the base's weights and its own delta, which "
        "another method has changed by then: give it a name that sorts before the other's"
      )
    changed |= trained.keys()
    if method.merge is None and method.place is None and trained:
      raise UserError(
        f"method {method.name!r} is no weight delta and cannot be merged; export it as an adapter"
      )
    if method.merge is not None:
      params = method.merge(params, trained, fixed)
  return params


def dropout(module, x, rate):
  """Drops elements of x at a traced rate where the call has a dropout key, else returns x."""
  if not module.has_rng("dropout"):
    return x
  keep = jax.random.bernoulli(module.make_rng("dropout"), 1.0 - rate, x.shape)
  return jnp.where(keep, x / (1.0 - rate).astype(x.dtype), 0)
