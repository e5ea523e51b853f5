"""What a group of trials is made of, which a checkpoint must have in common with it."""

from __future__ import annotations

import json
from collections.abc import Sequence

from jaxtune import config, data, hosts
from jaxtune.runs import sources
from jaxtune.runs.trial import Trial

CONFIG = "config.json of its base"


def of(trials: Sequence[Trial]) -> dict:
  """Returns {what it is: value} of a group: its configs, base, data and what these name beside.

  With several shapes of batches, trials side by side are at one step: their number stays.
  """
  first, count = trials[0].config, len(trials)
  places = {"search.places": min(first["search"]["places"] or count, count)}
  return {
    "config": [config.unplaced(trial.config) for trial in trials],
    "base": trials[0].fingerprint,
    CONFIG: trials[0].pretrained.model.config.digest,
    "data set": [data.identity(trial.dataset.report) for trial in trials],
    "start or reward": [sources.digests(trial.config) for trial in trials],
    **(places if first["data"]["buckets"] > 1 else {}),
  }


def as_now(identity: dict) -> dict:
  """Returns what an earlier version wrote as this version would have written it."""
  return identity | {"config": [config.as_now(found) for found in identity["config"]]}


def check_configs(configs: Sequence[dict]) -> None:
  """Raises UserError unless all processes of a run have the same configs, but for their cache."""
  own = lambda config: config | {"train": config["train"] | {"compilation_cache": None}}
  hosts.check_same("config", json.dumps(list(map(own, configs)), default=str))


def check_same(trials: Sequence[Trial]) -> None:
  """Raises UserError unless all processes of a run have the same configs, bases and data."""
  digests = {trial.pretrained.model.config.digest for trial in trials}
  bases = {"base": sorted({t.fingerprint for t in trials}), CONFIG: sorted(digests)}
  for what, value in (of(trials) | bases).items():
    hosts.check_same(what, json.dumps(value, default=str))
