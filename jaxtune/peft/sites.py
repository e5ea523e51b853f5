"""Lists the module calls of a model that methods may wrap, and matches them with patterns."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxtune.errors import UserError, nearest
from jaxtune.models.transformer import Trunk
from jaxtune.peft import patterns


class Site(NamedTuple):
  """Describes a module call that a method may wrap.

  Attributes:
    path: the module's path, such as "trunk/layers/attn/q_proj".
    kind: the module's class name: "Linear", "Attend", "Residual", "Trunk", ...
    inputs: the shapes of its array arguments, for one layer.
    output: the size of its output's last axis; None where it has several outputs.
    layers: L where the module is scanned over layers, else None.
    config: the `Config` of a trunk, else None.
  """

  path: str
  kind: str
  inputs: tuple[tuple[int, ...], ...]
  output: int | None
  layers: int | None
  config: Any = None

  @property
  def lead(self) -> tuple[int, ...]:
    """Returns the leading axes of every array that lives at this site."""
    return () if self.layers is None else (self.layers,)

  @property
  def input(self) -> int:
    """Returns the size of the last axis of its first argument."""
    return self.inputs[0][-1]

  def constants(self, numbers: dict[str, float]) -> dict[str, Float[Array, "*L"]]:
    """Turns numbers into fp32 arrays with one entry for each layer."""
    return {name: jnp.full(self.lead, number, jnp.float32) for name, number in numbers.items()}


def find_sites(model: nn.Module) -> dict[str, Site]:
  """Lists every module call of a model's forward pass, by tracing it on shapes alone.

  The model has `trace_inputs`, as those in `jaxtune.models` do.
  """
  sites, depths = {}, {}

  def hook(next_fn, args, kwargs, context):
    names = context.module.path
    path = "/".join(names)
    if isinstance(context.module, Trunk):
      depths[path] = context.module.config.layers
    output = next_fn(*args, **kwargs)
    if context.method_name == "__call__" and path:
      trunk, scanned, _ = f"{path}/".partition("/layers/")
      sites[path] = Site(
        path,
        type(context.module).__name__,
        tuple(x.shape for x in args if hasattr(x, "shape")),
        output.shape[-1] if hasattr(output, "shape") else None,
        depths[trunk] if scanned else None,
        context.module.config if isinstance(context.module, Trunk) else None,
      )
    return output

  with nn.intercept_methods(hook):
    jax.eval_shape(lambda: model.init(jax.random.key(0), **model.trace_inputs()))
  return sites


def match(
  targets: tuple[str, ...], sites: dict[str, Site], kind: str | tuple[str, ...]
) -> dict[str, Site]:
  """Finds the sites of a kind, or of several, whose path ends in any of the regular expressions.

  Raises:
    UserError: for no targets, or one that hits nothing, with the names of the nearest sites.
  """
  kinds = (kind,) if isinstance(kind, str) else kind
  candidates = {path: site for path, site in sites.items() if site.kind in kinds}
  if not targets:
    raise UserError(f"no targets given; the sites are: {', '.join(sorted(candidates))}")
  for pattern in targets:
    problem = f"target {pattern!r} hits no {' or '.join(kinds)} site"
    check_hits(pattern, candidates, problem)
  return {
    path: site for pattern in targets for path, site in candidates.items() if hits(pattern, path)
  }


def check_hits(pattern: str, paths: Collection[str], problem: str) -> None:
  """Raises UserError, with the problem and the nearest names, for a pattern that hits no path."""
  if not any(hits(pattern, path) for path in paths):
    names = [*paths, *(path.rsplit("/", 1)[-1] for path in paths)]
    raise UserError(f"{problem}; {nearest(pattern, names)}")


def check_rank(name: str, rank: int, path: str, shape: tuple[int, int]) -> None:
  """Raises UserError for a rank above the smaller side of a weight."""
  if rank > min(shape):
    size = f"{shape[0]} x {shape[1]}"
    raise UserError(f"{name} is {rank}, but {path} is {size}: expected at most {min(shape)}")


def hits(pattern: str, path: str) -> bool:
  """Says whether a pattern matches the end of a path from the start of a name on.

  So "q_proj" and "attn/q_proj" hit "trunk/layers/attn/q_proj", but "proj" does not.
  """
  return patterns.fullmatch(pattern, path, before="(?:.*/)?") is not None
