"""Trains the groups of a sweep on a Ray cluster.

Workers are actors: each loads models and data once, and trains one group after another. The driver
gives out the groups, prints what the workers print and, where they do not share the sweep's folder,
writes their files. Nothing is kept by Ray alone: a group whose worker is lost, and a sweep whose
driver or cluster is lost, go on from the checkpoints in the folder.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from jaxtune import libraries
from jaxtune.api import launch, stages, trials, under_way
from jaxtune.api.launch import cluster, parcels
from jaxtune.api.launch.worker import Job, News, Worker
from jaxtune.errors import UserError
from jaxtune.runs import locks

ray = libraries.Lazy("ray")

PATIENCE = 30  # seconds for which a cluster may be without its head, or without a place to train
NEWS = 2  # seconds between two reports of a worker
HERE = 2  # workers on a machine that is no cluster and has no accelerators
LOSSES = 3  # workers that a group may lose before its trials count as failed


class Hand(NamedTuple):
  """A worker: its actor, and once it has loaded, its name and whether it shares the folder."""

  actor: Any
  name: str = ""
  shared: bool = True


class Call(NamedTuple):
  """What a worker has been asked for; the number is that of a group."""

  hand: Hand
  what: Literal["load", "train", "news"]
  number: int = -1


class Crew(NamedTuple):
  """The workers of a sweep.

  Attributes:
    job: what each is told.
    need: what each takes of the cluster.
    most: how many there may be; None for as many as there is room for.
    idle: those that wait for a group.
    calls: {reference: call} of the others.
  """

  job: Job
  need: cluster.Need
  most: int | None
  idle: list[Hand]
  calls: dict[Any, Call]

  def count(self, *what: str) -> int:
    return sum(call.what in what for call in self.calls.values())


def on_ray(
  address: str | None = None, workers: int | None = None, resources: Mapping[str, str] | None = None
) -> launch.Launcher:
  """Returns the launcher of a Ray cluster.

  Args:
    address: HOST:PORT of its head, or "auto" on one of its machines; None to start Ray here.
    workers: how many groups are trained at a time; by default as many as there is room for, and
      `HERE` on a Ray that is started here and has no accelerators.
    resources: what a group takes, {"cpu": "4", "gpu": "1", "memory": "16G"}; see `cluster.need`.
  """
  wanted = resources or {}
  if "time" in wanted:
    raise UserError("--resources: time is for --launcher slurm, Ray has no limit of time")
  least = (workers or HERE) * int(wanted.get("cpu", 1))  # cores that a local Ray must count

  @contextlib.contextmanager
  def launcher(plan: stages.Plan, workdir: Path) -> Iterator[Callable[[stages.Stage], None]]:
    with cluster.joined(address, max(least, os.cpu_count() or 1)):
      need = cluster.need(wanted, plan.configs, cluster.nodes())
      most = workers or (HERE if address is None and not {"GPU", "TPU"} & need.keys() else None)
      job = Job(plan, workdir.absolute(), locks.holder(workdir) or "", os.getcwd())
      crew, losses, since = Crew(job, need, most, [], {}), Counter(), None
      if trouble := _trouble(crew):
        raise UserError(trouble)
      began = time.monotonic()
      while not crew.idle:  # the first worker has checked all that can be wrong
        since = _watch(crew, since)
        if since is None:
          _hire(crew, max(len(stage.groups()) for stage in plan.stated()) or 1)
        _collect(crew, losses)
        if began and time.monotonic() - began > PATIENCE:
          free = cluster.write(ray.available_resources())
          print(f"no worker yet: one takes {cluster.write(need)}, and free is {free}", flush=True)
          began = None
      yield lambda stage: _train(crew, stage)

  return launcher


def _train(crew: Crew, stage: stages.Stage) -> None:
  """Trains all groups of a stage."""
  groups, losses, since = stage.groups(), Counter(), None
  waiting = deque(range(len(groups)))
  while waiting or crew.count("train"):
    since = _watch(crew, since)
    if since is None:
      _hire(crew, len(waiting) + crew.count("train"))
      while waiting and crew.idle:
        number = waiting.popleft()
        _give(crew, stage, number, groups[number])
    for number in _collect(crew, losses):
      if losses[number] < LOSSES:
        waiting.appendleft(number)
        continue
      for folder in (stage.folders(crew.job.workdir)[i] for i in groups[number]):
        if not (folder / "result.json").exists():
          trials.record_failure(folder, f"{LOSSES} workers were lost while they trained its group")


def _trouble(crew: Crew) -> str | None:
  """Says why the cluster can train nothing, or None."""
  if lost := cluster.trouble_of_head():
    return f"{lost}: start it again"
  machines = cluster.nodes()
  if cluster.places(crew.need, machines):
    return None
  largest = "; ".join(sorted({cluster.write(one) for one in machines})) or "none that lives"
  return (
    f"no machine of the Ray cluster has {cluster.write(crew.need)} for a group (there is {largest})"
    ": start more with `ray start`, or give other --resources"
  )


def _watch(crew: Crew, since: float | None) -> float | None:
  """Returns since when the cluster has been in trouble; None if it is not.

  Raises:
    UserError: where that is too long.
  """
  if (trouble := _trouble(crew)) is None:
    return None
  if since and time.monotonic() - since > PATIENCE:
    raise UserError(f"{trouble}; what is done is kept, and the same command goes on from there")
  return since or time.monotonic()


def _hire(crew: Crew, wanted: int) -> None:
  """Starts workers until there are as many as wanted, as far as there is room."""
  room = cluster.places(crew.need, cluster.nodes())
  there = len(crew.idle) + crew.count("load", "train")
  for _ in range(min(crew.most or room, room, wanted) - there):
    named = {"CPU": "num_cpus", "GPU": "num_gpus", "memory": "memory"}
    takes = {named[name]: count for name, count in crew.need.items() if name in named}
    takes["resources"] = {name: x for name, x in crew.need.items() if name not in named}
    actor = ray.remote(Worker).options(max_concurrency=2, **takes).remote(crew.job)
    crew.calls[actor.load.remote()] = Call(Hand(actor), "load")


def _give(crew: Crew, stage: stages.Stage, number: int, group: list[int]) -> None:
  """Lets a worker train a group."""
  hand, folders, files = crew.idle.pop(), stage.folders(crew.job.workdir), None
  if not hand.shared:
    saved = under_way.found([stage.configs[i] for i in group], crew.job.workdir)
    files, _ = parcels.pack(crew.job.workdir, [*(folders[i] for i in group), *saved], {})
  crew.calls[hand.actor.train.remote(stage, number, files)] = Call(hand, "train", number)
  crew.calls[hand.actor.news.remote(NEWS)] = Call(hand, "news")


def _collect(crew: Crew, losses: Counter) -> list[int]:
  """Waits a second for answers, takes them, and returns the groups whose workers were lost."""
  lost, answers = [], []
  if crew.calls:
    answers, _ = ray.wait(list(crew.calls), timeout=1)
  else:  # there is no room for a worker
    time.sleep(1)
  for reference in answers:
    if (call := crew.calls.pop(reference, None)) is None:
      continue
    try:
      _take(crew, call, ray.get(reference))
      if call.what != "news":
        losses.pop(call.number, None)
    except ray.exceptions.RayTaskError as error:
      if not isinstance(error.cause, UserError):
        raise
      raise error.cause from None
    except ray.exceptions.RayError as error:
      if call.what == "news":
        continue
      losses[call.number] += 1
      _dropped(crew, call.hand)
      with contextlib.suppress(Exception):  # it may live on where nothing reaches it
        ray.kill(call.hand.actor)
      _say_lost(call, losses[call.number], error)
      lost += [call.number] * (call.what == "train")
  return lost


def _say_lost(call: Call, times: int, error: Exception) -> None:
  """Says that a worker is lost; raises UserError if none can even load."""
  if call.what == "train":
    print(f"worker {call.hand.name} is lost: its group goes on elsewhere", file=sys.stderr)
  elif times == LOSSES:
    reason = " ".join(str(error).split())[-500:]
    raise UserError(
      f"{times} workers of the Ray cluster ended while they loaded the sweep: jaxtune must be "
      f"installed on each machine, and memory suffice ({reason})"
    )


def _take(crew: Crew, call: Call, answer: Any) -> None:
  """Takes a worker's answer."""
  if call.what == "load":
    name, shared = answer
    how = "shares the folder" if shared else "does not share the folder, and sends its files"
    print(f"worker {name} {how}", flush=True)
    crew.idle.append(Hand(call.hand.actor, name, shared))
  elif call.what == "news":
    _tell(crew, call.hand, answer)
    if any(c.what == "train" and c.hand == call.hand for c in crew.calls.values()):
      crew.calls[call.hand.actor.news.remote(NEWS)] = call
  else:
    for reference in _dropped(crew, call.hand):
      _tell(crew, call.hand, ray.get(reference))
    _tell(crew, call.hand, ray.get(call.hand.actor.news.remote(0)))
    crew.idle.append(call.hand)


def _dropped(crew: Crew, hand: Hand) -> list[Any]:
  """Takes all calls of a worker out of the crew's, and returns their references."""
  references = [reference for reference, call in crew.calls.items() if call.hand == hand]
  for reference in references:
    del crew.calls[reference]
  return references


def _tell(crew: Crew, hand: Hand, news: News) -> None:
  """Prints what a worker has printed, and writes what it has written elsewhere."""
  for line in news.said.splitlines():
    print(f"{hand.name} | {line}", flush=True)
  if news.files is not None:
    parcels.unpack(news.files, crew.job.workdir)
