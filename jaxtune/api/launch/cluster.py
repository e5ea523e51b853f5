"""A Ray cluster: joins one or starts one here, and says what is wrong with it."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import re
import socket
from collections.abc import Iterator, Mapping, Sequence

from jaxtune import libraries
from jaxtune.errors import UserError, check_known

ray = libraries.Lazy("ray")

RESOURCES = ("cpu", "gpu", "tpu", "memory", "time")
UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
Need = Mapping[str, float]  # what a group takes, by Ray's names of resources


def resources(text: str) -> dict[str, str]:
  """Reads what a group takes: "cpu=4,gpu=1,memory=16G", for SLURM also "time=12:00:00"."""
  found = {}
  for part in text.split(","):
    name, _, value = part.partition("=")
    check_known("resource of --resources", name, RESOURCES)
    pattern = {"memory": r"\d+[KMGT]?", "time": r"(\d+-)?\d+(:\d\d){0,2}"}.get(name, r"\d+")
    if not re.fullmatch(pattern, value):
      raise UserError(
        f"--resources has {part!r}, expected such as cpu=4,gpu=1,memory=16G,time=12:00:00"
      )
    found[name] = value
  if int(found.get("cpu", 1)) == 0:
    raise UserError("--resources has cpu=0, expected a core for each group at least")
  return found


@contextlib.contextmanager
def joined(address: str | None, cores: int) -> Iterator[None]:
  """Joins the cluster at an address, or starts a local one of so many cores; leaves it at the end.

  Raises:
    UserError: where Ray is not installed, or the cluster cannot be reached.
  """
  os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
  os.environ.setdefault("RAY_worker_niceness", "0")  # of a local one, whose workers do all the work
  try:
    ray.init  # noqa: B018
  except ImportError as error:
    raise UserError("--launcher ray needs Ray: pip install 'jaxtune[ray]'") from error
  if address not in (None, "auto"):
    _check_reached(address)
  local = {"num_cpus": cores, "include_dashboard": False} if address is None else {}
  try:
    with _quiet():
      ray.init(address or "local", logging_level=logging.ERROR, log_to_driver=False, **local)
  except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
    said = " ".join(str(error).split())[:300]
    raise _unreached(address, said) from error
  try:
    yield
  finally:
    if trouble_of_head() is None:  # else it would wait for it, and abort
      ray.shutdown()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Hides what libraries in C++ print on stderr: what is wrong is raised too."""
  kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
  os.dup2(nowhere, 2)
  try:
    yield
  finally:
    os.dup2(kept, 2)
    os.close(kept)
    os.close(nowhere)


def _check_reached(address: str) -> None:
  """Raises UserError unless something listens at HOST:PORT."""
  host, _, port = address.rpartition(":")
  if not re.fullmatch(r"[^/:]+|\[.*\]", host) or not port.isdecimal():
    raise UserError(f"--address is {address!r}, expected HOST:PORT of the cluster's head, or auto")
  try:
    socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
  except (OSError, OverflowError) as error:
    raise _unreached(address, getattr(error, "strerror", None) or str(error)) from error


def _unreached(address: str | None, said: str) -> UserError:
  where = "no local Ray could be started" if address is None else f"no Ray cluster at {address}"
  return UserError(
    f"{where} ({said}): start one with `ray start --head`, and give its HOST:PORT, or `--address "
    "auto` on one of its machines (with RAY_AUTH_MODE=token where it asks for one); without "
    "--address Ray is started here"
  )


def trouble_of_head() -> str | None:
  """Says that the cluster's head cannot be reached, or None."""
  address = ray.get_runtime_context().gcs_address
  host, _, port = address.rpartition(":")
  try:
    socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
  except OSError:
    return f"the head of the Ray cluster, {address}, is lost"
  return None


def nodes() -> list[Need]:
  """Returns what each living machine of the cluster has."""
  return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def places(need: Need, machines: Sequence[Need]) -> int:
  """Returns how many groups the machines can train at a time, if nothing else runs there."""
  fits = lambda one: min(int(one.get(name, 0) // count) for name, count in need.items())
  return sum(map(fits, machines))


def need(wanted: Mapping[str, str], configs: Sequence[dict], machines: Sequence[Need]) -> Need:
  """Returns what a group takes.

  Args:
    wanted: from `resources`. By default a group takes the devices of its `train.mesh`: without one,
      a GPU, or all the TPU chips of a machine, where any machine has them, else a core.
  """
  found = {"CPU": float(wanted.get("cpu", 1))}
  sizes = [config["train"]["mesh"] or {} for config in configs]
  devices = max(math.prod(max(size, 1) for size in mesh.values()) for mesh in sizes)
  most = {kind: max((one.get(kind, 0) for one in machines), default=0) for kind in ("GPU", "TPU")}
  for kind, count in most.items():
    if kind.lower() in wanted:
      found[kind] = float(wanted[kind.lower()])
    elif count and not {"gpu", "tpu"} & wanted.keys():
      found[kind] = count if kind == "TPU" and not any(sizes) else devices
  if "memory" in wanted:
    number, unit = re.fullmatch(r"(\d+)(\D?)", wanted["memory"]).groups()
    found["memory"] = float(int(number) * UNITS[unit])
  return {name: count for name, count in found.items() if count}


def write(resources: Need) -> str:
  """Writes cores, devices and memory as text."""
  shown = {name: f"{resources[name]:.0f}" for name in ("CPU", "GPU", "TPU") if name in resources}
  if "memory" in resources:
    shown["memory"] = f"{resources['memory'] / 2**30:.1f}G"
  return ", ".join(f"{name} {count}" for name, count in shown.items())
