"""Checks the shapes that functions state, which the library itself never does."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from beartype import beartype
from jaxtyping import jaxtyped


def checked(function: Callable) -> Callable:
  """Returns a function, or a partial one, that checks arguments and result at every call."""
  if isinstance(function, partial):
    return partial(checked(function.func), *function.args, **function.keywords)
  stated = function.__annotations__  # a lambda has none
  return jaxtyped(typechecker=beartype)(function) if stated else function
