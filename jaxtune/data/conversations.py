"""Reads conversations as data sets write them, and checks the order of their roles."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtune.data import labels
from jaxtune.data.templates import Example
from jaxtune.errors import UserError, nearest

COLUMNS = ("messages", "conversations")
_ROLES = {
  "system": "system", "developer": "system", "human": "user", "user": "user", "gpt": "assistant",
  "chatgpt": "assistant", "assistant": "assistant", "model": "assistant",
  "function_call": "assistant", "tool": "tool", "observation": "tool", "function_response": "tool",
}  # fmt: skip
_FOLLOWS = {
  None: ("system", "user"), "system": ("user",), "user": ("assistant",),
  "assistant": ("user", "tool"), "tool": ("assistant", "tool"),
}  # fmt: skip


def column(columns: Sequence[str]) -> str | None:
  """Returns the name of the column that holds conversations; None if there is none."""
  return next((name for name in COLUMNS if name in columns), None)


def read(
  rows: Sequence[dict], where: Sequence[str], malformed: str = "error", asked: bool = False
) -> tuple[list[Example], dict[str, int]]:
  """Reads conversations in the form of OpenAI (`messages`) or of ShareGPT (`conversations`).

  Args:
    asked: whether the last turn may also be a user's or a tool's, for a policy that answers itself.

  Returns:
    (examples, how many rows were skipped by reason). The prompt of an example is the text of all
    turns but the last, and its answer is the text of the last; if that is none of the assistant's,
    the prompt is the text of all, and the answer "". Splits are compared by these; `encode.chat`
    makes what is trained.

  Raises:
    UserError: a conversation that is malformed or whose roles are out of order, with file, line and
      turn, unless `malformed` is "skip".
  """
  unread = [
    Example(None, [], row, place, conversation=True) for row, place in zip(rows, where, strict=True)
  ]
  answered = None if asked else True
  pairs, bad = labels.checked(unread, lambda example: turns(example.row, answered), malformed)
  examples = []
  for example, said in pairs:
    before, answer = parted(said)
    examples.append(example._replace(prompt=written(before), answers=[answer]))
  return examples, {"malformed": bad} if bad else {}


def turns(row: dict, answered: bool | None = True) -> list[dict]:
  """Returns a row's turns with the roles system, user, assistant and tool, and checks them.

  The order is: one system turn or none, then user and assistant in turn. The results of tools stand
  between, and the assistant answers each. An assistant's turn may have `tool_calls` in place of a
  text; with `weight` 0 it is not trained. Other keys are kept, as chat templates may read them. The
  last turn is the assistant's, or, if it is not `answered` yet, a user's or a tool's; None: either.
  """
  name = column(tuple(row))
  if name is None:
    raise UserError(f"no conversation in the columns {', '.join(row)}: expected {COLUMNS[0]!r}")
  given = row[name]
  if not isinstance(given, (list, tuple)):
    raise UserError(f"{name} holds {type(given).__name__}, expected a list of turns")
  if not given:
    raise UserError(f"{name} has no turns, expected a user's and an assistant's at least")
  checked, role = [], None
  for number, turn in enumerate(given, 1):
    try:
      checked.append(_turn(turn))
    except UserError as error:
      raise UserError(f"turn {number}: {error}") from error
    before, role = role, checked[-1]["role"]
    if role not in _FOLLOWS[before]:
      raise UserError(
        f"turn {number}: {role!r} is out of order {f'after {before!r}' if before else 'here'}, "
        f"expected {' or '.join(map(repr, _FOLLOWS[before]))}"
      )
  last = ("assistant",) * (answered is not False) + ("user", "tool") * (not answered)
  if role not in last:
    expected = " or ".join(map(repr, last))
    raise UserError(f"turn {number}: the last turn is {role!r}, expected {expected}")
  return checked


def _turn(turn: object) -> dict:
  if not isinstance(turn, dict):
    raise UserError(f"is {type(turn).__name__}, expected an object with a role and a text")
  who, what = ("from", "value") if "from" in turn else ("role", "content")
  if who not in turn:
    raise UserError(f"has no role, only {', '.join(map(str, turn))}; expected 'role' or 'from'")
  role = _ROLES.get(str(turn[who]))
  if role is None:
    raise UserError(f"the role {turn[who]!r} is unknown; {nearest(turn[who], _ROLES)}")
  calls = role == "assistant" and turn.get("tool_calls")
  text = turn.get(what)
  if what not in turn and not calls:
    raise UserError(f"has no text, only {', '.join(map(str, turn))}; expected {what!r}")
  if not isinstance(text, str) and not (text is None and calls):
    raise UserError(f"{what} holds {type(text).__name__}, expected text")
  if role in ("user", "assistant") and not calls and not text.strip():
    raise UserError(f"the {role}'s text is empty")
  if turn.get("weight") not in (None, 0, 1):
    raise UserError(f"weight is {turn['weight']!r}, expected 0 or 1")
  others = {key: value for key, value in turn.items() if key not in (who, what, "weight")}
  weight = {} if turn.get("weight") is None else {"weight": turn["weight"]}
  return {"role": role, "content": text or ""} | others | weight


def parted(said: list[dict]) -> tuple[list[dict], str]:
  """Returns the turns before the assistant's last one, and its text; "" if none is the last."""
  if said[-1]["role"] != "assistant":
    return said, ""
  return said[:-1], text_of(said[-1])


def written(turns: Sequence[dict]) -> str:
  """Returns the text of turns, a line each, by which conversations are compared."""
  return "\n".join(f"{turn['role']}: {text_of(turn)}" for turn in turns)


def text_of(turn: dict) -> str:
  """Returns the text of a turn with its calls of tools, to compare and to show it."""
  return turn["content"] + (str(turn["tool_calls"]) if turn.get("tool_calls") else "")
