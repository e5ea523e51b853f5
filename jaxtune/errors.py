"""The error for a mistake of the user, which names the nearest valid choices."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

LONGEST = 2000  # characters of a message


class UserError(ValueError):
  """Says what was wrong, what was expected and how to correct it, in one line.

  The command line prints the message without a traceback and exits with code 2. The middle of a
  very long message is left out.
  """

  def __init__(self, message: str):
    message = " ".join(message.splitlines())
    if len(message) > LONGEST:
      message = f"{message[: LONGEST // 2]} ... {message[-LONGEST // 2 :]}"
    super().__init__(message)


def check_known(what: str, name: str, choices: Iterable[str]) -> None:
  """Raises UserError for a name that is not among the choices."""
  if name not in choices:
    raise UserError(f"unknown {what} {name!r}; {nearest(name, choices)}")


def nearest(word: str, choices: Iterable[str]) -> str:
  """Names the `choices` that are closest to `word`, for the end of an error message.

  Returns:
    "did you mean 'rank'?" if any is close, else "valid choices: ...".
  """
  choices = sorted(set(map(str, choices)))
  close = difflib.get_close_matches(str(word), choices, n=3, cutoff=0.6)
  if close:
    return "did you mean " + " or ".join(map(repr, close)) + "?"
  return "valid choices: " + (", ".join(choices) or "none")
