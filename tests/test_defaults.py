"""Defaults are numbers of published runs: they change on purpose, together with defaults.json.

  python tests/test_defaults.py

writes them anew.
"""

import json
import pkgutil
from pathlib import Path

from jaxtune import config
from jaxtune.peft import methods, unions

KEPT = Path(__file__).parent / "defaults.json"


def defaults() -> dict:
  """Every option that a config may leave out, as a run's folder would keep it."""
  full = config.complete({"data": {"train": "train.jsonl"}})
  kinds = [m.name for m in pkgutil.iter_modules(methods.__path__)]
  names = [*kinds, *unions.UNIONS]
  full["methods"] = {name: config.complete_method({"name": name}) for name in names}
  return json.loads(json.dumps(full, default=str))


def test_defaults_are_those_that_are_kept():
  kept, found = json.loads(KEPT.read_text()), defaults()
  assert found.keys() == kept.keys()
  for section in kept:
    assert found[section] == kept[section], section


if __name__ == "__main__":
  KEPT.write_text(json.dumps(defaults(), indent=1, sort_keys=True) + "\n")
