"""Defines a fine-tuning method: a few pure functions, made from its section of a config."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxtune import schema
from jaxtune.errors import UserError, nearest
from jaxtune.peft import methods as methods_
from jaxtune.peft import unions

# What is laid over a base beside the methods of a config: no other method has one of these names.
BESIDE = ("head", "objective", "regularize")
# A method's arrays: {path of a site: {array name: array}}.
Arrays = dict[str, dict[str, Any]]


class Frozen(NamedTuple):
  """Holds what a method may read of the frozen model when it draws its first arrays.

  Attributes:
    weight: (path of a leaf) -> its weights in fp32, of shape (L, ...) at a scanned site.
    tokenize: (text) -> token ids, without special tokens; None for a model without a tokenizer.
    leaves: {path: leaf as it is stored}, from which to read paths, shapes and types.
  """

  weight: Callable
  tokenize: Callable | None = None
  leaves: dict = {}


class Call(NamedTuple):
  """Holds the call of a module that a method wraps, and what the method needs to change it.

  Attributes:
    module: the linen module that is called.
    arrays: {array name: array}, the method's trained and fixed arrays at this module, of one layer.
    next_fn: (the module's arguments) -> its output without this method.
  """

  module: nn.Module
  arrays: dict[str, Array]
  next_fn: Callable

  def cast(self, dtype: Any) -> dict[str, Array]:
    """Returns the arrays in `dtype`, the type that the model computes in."""
    return {name: array.astype(dtype) for name, array in self.arrays.items()}

  def dropout(self, x: Float[Array, "*BTD"]) -> Float[Array, "*BTD"]:
    """Applies dropout to x at the rate `arrays["dropout"]` in training; else returns x."""
    if not self.module.has_rng("dropout"):
      return x
    rate = self.arrays["dropout"]
    keep = jax.random.bernoulli(self.module.make_rng("dropout"), 1.0 - rate, x.shape)
    kept = (x.astype(jnp.float32) / (1.0 - rate)).astype(x.dtype)  # 0.9 is 0.898 in bf16
    return jnp.where(keep, kept, 0)

  def gate(self, x_BTI: Float[Array, "*BT I"]) -> Float[Array, "*BT 1"]:
    """Returns sigmoid(w x + b) of each token, w and b the arrays "gate_kernel" and "gate_bias"."""
    kernel_I, bias = (
      self.arrays[name].astype(x_BTI.dtype) for name in ("gate_kernel", "gate_bias")
    )
    return jax.nn.sigmoid(x_BTI @ kernel_I + bias)[..., None]


class Method(NamedTuple):
  """Defines a way of fine-tuning by a few pure functions.

  Below, `trained` and `fixed` are the method's own arrays, {site path: {array name: array}}; every
  array of a scanned site has the leading axis L. Two names of fixed arrays have a special meaning:
  "rate:X" multiplies the learning rate of the trained array X, and "shared:X" has no layer axis, so
  that all layers read the same array.

  `overwrite` and `merge` change the weights of one module at a time. Their arguments are `leaves`,
  {"kernel": array, ...} of the module, and `arrays`, the trained and fixed arrays of the method
  there, both with all layers. They return the leaves that change.

  Attributes:
    name: the name under which its arrays are kept at each site, which no module may have; by
      default its kind, in a stack its key there.
    kind: the name of its module in `jaxtune.peft.methods`.
    init: (key, sites, frozen) -> (trained, fixed), the arrays at the start.
    intercept: (Call, *args) -> output; wraps a module's call, whose arguments are `args`.
    trains: (path) -> whether this leaf of the base is trained in place (full, BitFit).
    overwrite: (leaves, arrays) -> leaves that the forward pass reads instead, of the same shapes
      and types (last layers). Merging overwrites them too, in fp32. Leaves may lack the layers
      below `lowest`.
    lowest: (depth) -> the first of `depth` layers in which its arrays change anything. A training
      step runs the layers below without them, and without a backward pass if nothing else there is
      trained.
    reparametrise: (trained) -> the arrays that `intercept` reads, computed from those that are
      trained where a method has a reparametrisation (the MLP of a prefix).
    merge: (leaves, arrays) -> leaves with the delta added, in fp32; None where a method adds arrays
      that are no change of weights, or adds none.
    factors: (arrays) -> (a (L, I, M), b (L, M, O)), whose product is the delta that `merge` adds to
      a kernel or an embedding; None where the delta is not of low rank.
    penalty: (trained, fixed) -> scalar whose gradient is added to that of the mean loss (AdaLoRA).
    adjust: (step, steps, trained, gradients, fixed) -> (trained, fixed) after update `step` of
      `steps`, counted from 1; gradients are those before clipping (AdaLoRA).
    keep_from: (steps of a run) -> the first step whose weights may be kept as the best: before it
      they do not yet satisfy the options (AdaLoRA's budget).
    prepends: whether it puts virtual tokens before the text (prompts).
    count_unused: (trained, fixed) -> how many trained numbers have no effect, as they only pad a
      layer.
    groupable: options whose values are arrays or sizes that can be padded: trials that differ in
      these alone are grouped into one compiled program.
    padded_axes: {array name: its axes of rank, width or length}. Along these, zeros change nothing
      that is computed, so arrays of several trials or adapters are padded to one shape; along any
      other axis they must agree.
    patterns: the targets asked for, as the target plan and errors name them.
    positions: how many of the model's positions its virtual tokens take.
    start: folder of an adapter, or of a run, whose arrays training begins with; None to draw them.
    options: the options it was made with, as export and reports need them.
  """

  name: str
  kind: str = ""
  init: Callable = lambda key, sites, frozen: ({}, {})
  intercept: Callable | None = None
  trains: Callable[[str], bool] | None = None
  overwrite: Callable | None = None
  lowest: Callable[[int], int] = lambda depth: 0
  reparametrise: Callable = lambda trained: trained
  merge: Callable | None = None
  factors: Callable | None = None
  penalty: Callable | None = None
  adjust: Callable | None = None
  keep_from: Callable[[int], int] = lambda steps: 0
  prepends: bool = False
  count_unused: Callable = lambda trained, fixed: 0
  groupable: tuple[str, ...] = ()
  padded_axes: dict[str, tuple[int, ...]] = {}
  patterns: tuple[str, ...] = ()
  positions: int = 0
  start: str | None = None
  options: dict = {}


def build(section: dict) -> tuple[Method, ...]:
  """Makes the methods of a config section.

  Args:
    section: {"name": "lora", "rank": 8, ...} for one method, or {"name": "stack", KEY: section,
      ...} for several at once. The methods of a stack are called by their keys, and are laid over
      the model and merged in the order of these. A section without a name is of the method KEY. A
      union such as {"name": "mam"} stands for a stack (`peft.unions`).

  Raises:
    UserError: for an unknown method, an option out of its limits, an empty or nested stack, or a
      key in it that is taken.
  """
  options = unions.expand(section)
  kind = options.pop("name", None)
  if kind == "stack":
    if not options:
      raise UserError("method 'stack' is empty, expected sections such as lora and prefix in it")
    methods = []
    for key, part in options.items():
      if "/" in key or not hasattr(part, "keys"):
        raise UserError(f"method.{key} is {part!r}, expected a section, under a name without '/'")
      part = {"name": key, **part}
      if part["name"] in ("stack", *unions.UNIONS):
        raise UserError(
          f"method.{key} is a stack within a stack, expected one stack of all methods"
        )
      if key in BESIDE and part["name"] != key:
        raise UserError(f"method.{key} has a name that a run itself uses; expected any other name")
      methods.append(build(part)[0]._replace(name=key))
    return tuple(methods)
  start, make = options.pop("start", None), constructor(kind)
  schema.check_arguments(make, options, "method.")
  return (make(**options)._replace(kind=kind, start=start),)


def sections(section: dict) -> dict[str, dict]:
  """Returns {name: section} of a completed config's methods: the only one, or those of a stack."""
  if section["name"] != "stack":
    return {section["name"]: section}
  return {name: part for name, part in section.items() if name != "name"}


def constructor(kind: str | None) -> Callable[..., Method]:
  """Returns the function `method` of a method's module; raises UserError for an unknown name."""
  known = [m.name for m in pkgutil.iter_modules(methods_.__path__)]
  if kind not in known:
    names = [*known, "stack", *unions.UNIONS]
    raise UserError(f"unknown method {kind!r}; {nearest(str(kind), names)}")
  return importlib.import_module(f"jaxtune.peft.methods.{kind}").method
