"""The command `feedback`: the page on which people judge, what they said, and its export."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Mapping
from typing import Any

import jaxtune
from jaxtune.api import printing
from jaxtune.errors import UserError

_SAMPLING = ("task", "max_new_tokens", "temperature", "top_k", "top_p")


def run(options: Namespace) -> None:
  """Serves the page; with --results or --export reads the votes, also while a page is served."""
  if options.all and not options.export:
    raise UserError("--all goes with --export FILE")
  if options.results:
    _print_results(jaxtune.vote_results(options.out))
  if options.export:
    counts = jaxtune.export_votes(options.export, options.out, options.all)
    left_out = ", ".join(f"{n} {what}" for what, n in counts.items() if what != "written" and n)
    print(f"{counts['written']} votes written to {options.export}; left out: {left_out or 'none'}")
    if not options.all:
      said = "prompts of generated answers are whole"
      print(f"{said}: train on them with --config.data.template=None")
  if options.results or options.export:
    return
  sampling = {name: getattr(options, name) for name in _SAMPLING}
  jaxtune.feedback(
    options.workdir, options.prompts, options.out, host=options.host, port=options.port,
    seed=options.seed, ready=lambda *known: _announce(options, *known), **sampling,
  )  # fmt: skip
  print(f"stopped; `jaxtune feedback --out {options.out}` goes on, --results shows the votes")


def _announce(options: Namespace, address: str, project: Any) -> None:
  from jaxtune.evaluation.votes import server

  if not server.is_loopback(options.host):
    print(
      f"warning: whoever reaches {options.host} and knows the address below can read the answers "
      "and vote; it is not encrypted",
      file=sys.stderr,
    )
  lost = "".join(f", {count} left out ({reason})" for reason, count in project.skipped.items())
  print(f"{len(project.pairs)} pairs to judge{lost}; votes are kept in {options.out}")
  print(f"judge at {address}", flush=True)
  print("Ctrl-C stops the page", flush=True)


def _print_results(found: Mapping[str, Any]) -> None:
  a, b = found["names"]
  print(f"a is {a}, b is {b}; {found['judged']} of {found['pairs']} pairs judged")
  for reason, count in found["skipped"].items():
    print(f"{count} prompts were not judged: {reason}")
  heads = ("rater", "votes", "a better", "ties", "b better", "skips", "win rate of a", "left side")
  total = sum(rater["votes"] for rater in found["raters"])
  rows = [*found["raters"], dict(found) | {"name": "all", "votes": total}]
  printing.print_cells([heads, *map(_cells, rows)])
  print("a tie counts half; intervals are Wilson's at 95 %, that of the win rate over pairs")
  agreed = found["agreement"]
  if agreed and agreed["pairs"]:
    kappa = "not defined" if agreed["kappa"] is None else f"{agreed['kappa']:.3f}"
    print(
      f"{agreed['kind']} {kappa} over {agreed['pairs']} pairs that several judged; two "
      f"votes on one pair are equal in {100 * agreed['agreed']:.1f} %"
    )


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
  counts = (row[name] for name in ("votes", "wins", "ties", "losses", "skips"))
  shares = (row["win_rate"], row["interval"]), (row["left"], row["left_interval"])
  return (row["name"], *map(str, counts), *(_share(*share) for share in shares))


def _share(value: float | None, interval: tuple[float, float] | None) -> str:
  if value is None or interval is None:
    return "-"
  low, high = (100 * bound for bound in interval)
  return f"{100 * value:.1f} % [{low:.1f}, {high:.1f}]"


OPTIONS: Mapping[str, dict[str, Any]] = {
  "--workdir": dict(
    action="append", default=[], metavar="DIR",
    help="a finished run; two are compared, one alone with its untuned base, the same one given "
    "twice with another sample of itself; without one the file holds the answers",
  ),
  "--prompts": dict(
    metavar="FILE",
    help="JSON lines or CSV with the column prompt, or those of the runs' data; a .txt of lines; "
    "or prompt, answer_a and answer_b",
  ),
  "--out": dict(default="feedback", metavar="DIR", help="the votes' folder (default: feedback)"),
  "--results": dict(action="store_true", help="prints what the votes in --out say"),
  "--export": dict(metavar="FILE", help="writes votes as JSON lines of prompt, chosen, rejected"),
  "--all": dict(action="store_true", help="exports every vote, with both answers and its choice"),
  "--host": dict(default="127.0.0.1", help="the address to listen on (default: 127.0.0.1, which "
                 "other machines cannot reach)"),
  "--port": dict(type=int, default=8765, help="0 is any that is free (default: 8765)"),
  "--seed": dict(type=int, default=0, help="of the order, the sides and the answers"),
  "--task": dict(help="of a mixture, the task by whose template rows are read"),
  "--max-new-tokens": dict(type=int, default=64),
  "--temperature": dict(type=float, default=0.0, help="0 is greedy"),
  "--top-k": dict(type=int),
  "--top-p": dict(type=float),
}  # fmt: skip
