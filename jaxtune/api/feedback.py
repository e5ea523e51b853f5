"""Lets people choose between two answers on a local page, and hands out what they chose."""

from __future__ import annotations

import importlib.util
import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, Le

from jaxtune import libraries, schema
from jaxtune.api import answers
from jaxtune.errors import UserError
from jaxtune.evaluation.votes import agreement, store, voting
from jaxtune.files import write_atomically
from jaxtune.runs import locks

server = libraries.Lazy("jaxtune.evaluation.votes.server")
FOLDER = "feedback"
Port = Annotated[int, Ge(0), Le(65535)]


def feedback(
  workdirs: Sequence[str | Path] = (),
  prompts: str | Path | None = None,
  out: str | Path = FOLDER,
  *,
  host: str = "127.0.0.1",
  port: Port = 8765,
  seed: schema.Seed = 0,
  ready: Callable[[str, store.Project], None] = lambda address, project: None,
  **sampling: Any,
) -> None:
  """Serves the page on which people judge pairs of answers, until it is interrupted.

  The answers are generated before the first start and kept in `out`; a later start, also with the
  folder alone, goes on with them and their votes.

  Args:
    workdirs: two finished runs; one, which is compared with its untuned base; the same one twice
      for two samples of it; or none, if the file has the answers.
    prompts: rows with a column `prompt`, or with the columns that the runs' own templates read, or
      with `messages`, as JSON lines, CSV, TSV or Parquet; a .txt whose lines are continued as they
      stand; or rows of `prompt`, `answer_a` and `answer_b`.
    out: the folder of the votes.
    host, port: where the page is; port 0 is any that is free. Other machines reach it only if the
      host is an address of the network.
    seed: of the order of pairs, of the sides, and of the answers.
    ready: is called with the page's address before the first request is answered.
    **sampling: `answers.Sampling`.

  Raises:
    UserError: where a package is missing, the folder belongs to other answers or is in use, no pair
      is left to judge, or the port is in use.
  """
  check_installed()
  schema.check_arguments(feedback, {"seed": seed, "port": port})
  path, drawn = Path(out) / store.NAME, answers.Sampling(**sampling)
  answers.check_sampling(drawn, seed)
  with locks.held(out):
    if prompts is None:
      if workdirs or not store.exists(path):
        raise UserError("give the prompts by --prompts FILE, or by --out a folder that has votes")
    else:
      _keep_answers(path, workdirs, prompts, drawn, seed)
    with store.opened(path) as opened:
      listening = server.listen(opened, host, port)
      ready(server.address(opened, host, listening.effective_port), opened.project)
      listening.run()


def vote_results(out: str | Path = FOLDER) -> dict[str, Any]:
  """Returns what the votes in a folder say; see `votes.agreement.summarise`."""
  with store.opened(Path(out) / store.NAME) as opened:
    project = opened.project
    found = agreement.summarise(voting.votes(opened), project.names, len(project.pairs))
  return found | {"skipped": project.skipped}


def export_votes(
  file: str | Path, out: str | Path = FOLDER, everything: bool = False
) -> dict[str, int]:
  """Writes votes as JSON lines of prompt, chosen, rejected, pair, rater and reason.

  This is the form that preference objectives and `reward` train on. Prompts of generated answers
  are texts as the models read them, for data.template=None, or turns, with their `tools`. Ties,
  skips, and choices beside an empty answer are left out.

  Args:
    everything: writes every vote, with the columns prompt, answer_a, answer_b, choice ("a", "b",
      "tie" or "skip"), left (the source on the left), at (seconds since 1970), pair, rater, reason.

  Returns:
    Counts: {"written", "ties", "skips", "beside an empty answer"}, the last three of what was left
    out.

  Raises:
    UserError: where no row is left to write.
  """
  with store.opened(Path(out) / store.NAME) as opened:
    pairs, given = opened.project.pairs, voting.votes(opened)
  rows, counts = [], Counter(dict.fromkeys(("written", "ties", "skips"), 0))
  for vote in given:
    pair = pairs[vote.pair - 1]
    if everything:
      row: dict[str, Any] = dict(zip(answers.COLUMNS, (pair.prompt, *pair.answers), strict=True))
      row |= {"choice": vote.choice, "left": vote.left, "at": vote.at}
    elif vote.choice in ("tie", "skip"):
      counts[f"{vote.choice}s"] += 1
      continue
    elif not all(answer.strip() for answer in pair.answers):
      counts["beside an empty answer"] += 1
      continue
    else:
      row = _chosen(pair, vote.choice)
    row |= {"pair": vote.pair, "rater": vote.rater, "reason": vote.reason}
    rows.append(json.dumps(row, ensure_ascii=False) + "\n")
  if not rows:
    raise UserError(f"{out} has no vote to export: of {len(given)} votes none is a choice")
  write_atomically(Path(file), "".join(rows))
  return dict(counts) | {"written": len(rows)}


def check_installed() -> None:
  """Raises UserError where a package of the server is missing."""
  missing = [name for name in ("flask", "waitress") if importlib.util.find_spec(name) is None]
  if missing:
    raise UserError(
      f"the page of `jaxtune feedback` needs {' and '.join(missing)}: "
      "pip install 'jaxtune[feedback]'"
    )


def _keep_answers(
  path: Path,
  workdirs: Sequence[str | Path],
  prompts: str | Path,
  sampling: answers.Sampling,
  seed: int,
) -> None:
  """Makes the database if there is none; raises UserError for one of other answers."""
  table = answers.read(prompts)
  stated = answers.identity(workdirs, table, sampling, seed)
  if not store.exists(path):
    store.create(path, answers.make(workdirs, table, sampling, seed, stated))
    return
  with store.opened(path) as opened:
    store.check_same(opened, stated, path)


def _chosen(pair: store.Pair, choice: str) -> dict[str, Any]:
  """Returns a pair as the reader of pairs takes it: of texts, or of turns."""
  chosen, rejected = pair.answers if choice == "a" else pair.answers[::-1]
  if pair.row is None:
    return {"prompt": pair.prompt, "chosen": chosen, "rejected": rejected}
  spoken = lambda text: [{"role": "assistant", "content": text}]
  tools = {key: value for key, value in pair.row.items() if key != "messages"}
  said = {"prompt": pair.row["messages"], "chosen": spoken(chosen), "rejected": spoken(rejected)}
  return said | tools
