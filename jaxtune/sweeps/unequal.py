"""What configurations were not given alike: learning rates, training data, trained parameters.

Each function looks for one and returns what it found, as a list of warnings.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxtune.sweeps import stats
from jaxtune.sweeps.evidence import Caution, Evidence, chained, listed, of_rows
from jaxtune.sweeps.tuning import PATH as RATE

_TOKENS = 1.05  # how much more data count as more
_PARAMETERS = 2  # how many times as many count as another budget


def find(evidence: Evidence) -> list[Caution]:
  """Returns what all functions here find."""
  return chained((one_rate, parameters, tokens), evidence)


def one_rate(evidence: Evidence) -> list[Caution]:
  """Finds several methods, or several sizes of one, that were trained with a single rate."""
  candidates: dict[str, list[stats.Row]] = {}  # those that differ in the rate alone
  for row in evidence.rows:
    if row.results[0].get("own_rate"):
      continue
    key = str(sorted((k, str(v)) for k, v in row.settings.items() if k != RATE))
    candidates.setdefault(key, []).append(row)
  at: dict[float, list[stats.Row]] = {}
  for rows in candidates.values():
    rates = {evidence.config(row.results[0]).get(RATE) for row in rows}
    if len(rates) == 1 and None not in rates:
      at.setdefault(rates.pop(), []).extend(rows)
  return [warning for rate, rows in at.items() for warning in _one_rate(rate, rows)]


def _one_rate(rate: float, rows: list[stats.Row]) -> list[Caution]:
  sizes: dict[str, set[str]] = {}
  for row in rows:
    own = {k: str(v) for k, v in row.settings.items() if k.startswith("method.")}
    sizes.setdefault(row.settings["method.name"], set()).add(str(sorted(own.items())))
  several = [method for method, found in sizes.items() if len(found) > 1]
  if len(sizes) == 1 and not several:
    return []
  whose = listed(sizes) if len(sizes) > 1 else f"all settings of {listed(several)}"
  text = (
    f"One learning rate, {stats.show(rate)}, for {whose}: the best rate differs between methods "
    "and sizes, so that one of them may look worse for its rate alone. Sweep optim.learning_rate, "
    "or let the sweep tune each one's own."
  )
  return of_rows("one_rate", text, rows)


def parameters(evidence: Evidence) -> list[Caution]:
  """Finds methods of one size each, of which one trains more than twice as much as another.

  A method that was trained with several sizes shows what its size does; of the others, that is not
  known. Methods over different bases are not compared.
  """
  sizes: dict[tuple[int, str], dict[int, stats.Row]] = {}
  for row in evidence.rows:
    first = row.results[0]
    key = first["base_parameters"], row.settings["method.name"]
    sizes.setdefault(key, {}).setdefault(first["trained_parameters"], row)
  found = []
  for base in dict.fromkeys(base for base, _ in sizes):
    only = {}
    for (own, _), known in sizes.items():
      if own == base and len(known) == 1:
        only |= known
    least, most = (end(only, default=0) for end in (min, max))
    if least and most > _PARAMETERS * least:
      text = (
        f"Different budgets: {only[least].label} trains {least:,} parameters and "
        f"{only[most].label} {most:,}, {most / least:.3g} times as many, each in one size. The "
        "better one may be so by its size. Match them by declare.match, or sweep their sizes."
      )
      found += of_rows("parameters", text, only.values())
  return found


def tokens(evidence: Evidence) -> list[Caution]:
  """Finds configurations that have seen different amounts of training data."""
  amounts = {}
  for i, row in enumerate(evidence.rows):
    seen = [tokens_seen(result, evidence.config(result)) for result in row.results]
    if None not in seen:
      amounts[i] = sum(seen) / len(seen)
  if not amounts or max(amounts.values()) <= _TOKENS * min(amounts.values()):
    return []
  least, most = min(amounts, key=amounts.get), max(amounts, key=amounts.get)
  text = (
    "Different amounts of training data: from about "
    f"{amounts[least]:,.0f} tokens ({evidence.rows[least].label}) to {amounts[most]:,.0f} "
    f"({evidence.rows[most].label}), without padding. Steps, patience, batch sizes, lengths or "
    "mixtures differ, and a difference may be theirs."
  )
  return of_rows("tokens", text, [evidence.rows[i] for i in amounts])


def tokens_seen(result: dict, config: Mapping[str, Any]) -> float | None:
  """Returns the tokens that a trial was trained on, as its result counts them.

  Of a result without this count they are estimated, as draws times the mean length of an example;
  None where that is not known, as of the answers that a policy draws, or where a row of the batch
  holds several examples.
  """
  if "tokens" in result:
    return result["tokens"]

  def length(report: Mapping) -> float:
    counts = report["splits"]["train"]
    return counts["tokens"] / counts["kept"]

  try:
    if config.get("data.pack") or config.get("rollout.rewards"):
      return None
    if result.get("mixture"):
      tasks = result["data"]["tasks"]
      return sum(one["drawn"] * length(tasks[task]) for task, one in result["mixture"].items())
    return result["stopped_at"] * config["train.batch_size"] * length(result["data"])
  except (KeyError, TypeError, ZeroDivisionError):
    return None
