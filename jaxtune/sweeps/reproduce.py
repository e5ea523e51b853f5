"""What the page of a sweep says so that it can be run again, and compared."""

from __future__ import annotations

import itertools
import json
import pprint
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from jaxtune import config as configs


def describe(
  results: Sequence[dict],
  given: Mapping[str, Mapping[str, Any]],
  facts: Mapping[str, str],
  metric: str | None = None,
  reference: str | None = None,
) -> dict:
  """Gathers what is needed to run the sweep again, and to know that it gave the same.

  Args:
    given: {name of a sweep: its config as it was given, which is what differs from the defaults}.
    metric, reference: what the report was asked to sort by and to compare with, if anything.
  """
  files = {f"{name.strip('/').replace('/', '-')}.py": config for name, config in given.items()}
  places = {file: f"runs/again/{file.removesuffix('.py')}" for file in files}
  commands = [["sweep", "--config", file, "--workdir", place] for file, place in places.items()]
  out = "runs/again/report" if len(files) > 1 else None
  options = {"--out": out, "--metric": metric, "--reference": reference}
  stated = [[name, value] for name, value in options.items() if value is not None]
  if stated:
    commands.append(["report", *places.values(), *itertools.chain(*stated)])
  again = "; ".join(shlex.join(["jaxtune", *command]) for command in commands)
  return {
    "facts": {"command": again, **facts} if again else dict(facts),
    "config": {file: config_file(config) for file, config in files.items()},
    "hashes": hashes(results),
  }


def config_file(given: Mapping[str, Any]) -> str:
  """Writes a config as a config file, by which the sweep can be run again."""
  plain = json.loads(configs.to_json(dict(given)))  # as config.json has it: a tuple is a list
  lines = []
  for key, value in plain.items():
    text = pprint.pformat(value, width=92 - len(key), sort_dicts=False)
    lines.append(f"    {key!r}: " + text.replace("\n", "\n" + " " * (8 + len(key))) + ",\n")
  return f"def get_config():\n  return {{\n{''.join(lines)}  }}\n"


def hashes(results: Sequence[Mapping[str, Any]]) -> dict[str, str]:
  """Returns {what: SHA-256} of the bases, the data files and the trials' results."""
  found: dict[str, str] = {}
  for result in results:
    if base := result.get("base_fingerprint"):
      found[f"base {base[:8]}"] = base
    found |= {f"data {path}": sha for path, sha in (result["data"].get("files") or {}).items()}
  found |= {f"result of {r['trial']}": r["sha256"] for r in results if "sha256" in r}
  return found
