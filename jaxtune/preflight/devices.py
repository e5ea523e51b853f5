"""The accelerators whose compilers run without them, and what their makers say of them.

`describe` turns a name such as "v5e:4x4" or "h200" into devices that programs can be compiled for.
TPUs need the package `libtpu`, NVIDIA GPUs jax's CUDA plugin; neither needs a device.
"""

from __future__ import annotations

import importlib.util
import os
import re
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies

from jaxtune import hosts
from jaxtune.errors import UserError, nearest


class Device(NamedTuple):
  """What is known of an accelerator.

  Attributes:
    platform: "tpu", "cuda" or "cpu".
    memory: bytes.
    flops: dense products in bf16 with sums in fp32, FLOP a second; 0 where it is not known.
    bandwidth: of its memory, bytes a second; 0 where it is not known.
    clock: cycles a second in which a TPU's compiler counts; 0 where it does not.
    gpu: compute capability, multiprocessors, bytes of L2 cache, GHz; () for others.
  """

  platform: str
  memory: float
  flops: float = 0.0
  bandwidth: float = 0.0
  clock: float = 0.0
  gpu: tuple = ()


# TPUs: cloud.google.com/tpu/docs/v5e, v5p and v6e; the clock is the one at which the matrix units
# give `flops`. GPUs: NVIDIA's data sheets of the H200, H100 SXM, A100 80GB SXM and L4, and the Ada
# architecture's white paper (GeForce RTX 4090).
KNOWN = {
  "v5e": Device("tpu", 16e9, 197e12, 819e9, 1.5e9),
  "v5p": Device("tpu", 95e9, 459e12, 2765e9, 1.75e9),
  "v6e": Device("tpu", 32e9, 918e12, 1640e9, 1.75e9),
  "h200": Device("cuda", 141e9, 989e12, 4800e9, gpu=((9, 0), 132, 50 << 20, 1.98)),
  "h100": Device("cuda", 80e9, 989e12, 3350e9, gpu=((9, 0), 132, 50 << 20, 1.98)),
  "a100-80gb": Device("cuda", 80e9, 312e12, 2039e9, gpu=((8, 0), 108, 40 << 20, 1.41)),
  "l4": Device("cuda", 24e9, 121e12, 300e9, gpu=((8, 9), 58, 48 << 20, 2.04)),
  "rtx4090": Device("cuda", 24e9, 165e12, 1008e9, gpu=((8, 9), 128, 72 << 20, 2.52)),
}
# Slices that the compiler knows, the smallest first.
SLICES = {
  "v5e": ("2x2", "4x4", "8x8"),
  "v5p": ("2x2x1", "2x2x4", "4x4x4"),
  "v6e": ("2x2", "4x4", "8x8"),
}
# Without these the compiler looks for a TPU's host, and two processes exclude each other.
ALONE = {
  "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "TPU_WORKER_HOSTNAMES": "localhost",
  "TPU_ACCELERATOR_TYPE": "v5litepod-4",
}  # fmt: skip
GPU = """gpu_device_info {{
  cuda_compute_capability {{ major: {major} minor: {minor} }}
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: {threads}
  shared_memory_per_block: 49152 shared_memory_per_core: {shared}
  shared_memory_per_block_optin: {block} core_count: {cores} fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: {bandwidth:.0f} l2_cache_size: {cache} clock_rate_ghz: {clock}
  device_memory_size: {memory:.0f} registers_per_core_limit: 65536 registers_per_block_limit: 65536
}}
platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 8 }}
runtime_version {{ major: 12 minor: 9 }} device_description_str: "{name}"
"""
# By compute capability, of a multiprocessor: threads, bytes of shared memory, those of one block.
LIMITS = {
  (8, 0): (2048, 167936, 166912),
  (8, 9): (1536, 102400, 101376),
  (9, 0): (2048, 233472, 232448),
}


INSTALL = (
  "there is no compiler for {kind}: run pip install -e '.[{extra}]' in the folder of jaxtune's "
  "source, in an environment of its own"
)


def describe(name: str) -> tuple[Device, list[Any]]:
  """Returns what is known of a device and jax's devices to compile for, as many as the slice has.

  Args:
    name: "cpu" for those of this machine, or of KNOWN; of a TPU also with the size of its slice,
      such as "v5e:4x4", of a GPU with the number of them in one host, such as "h200:8".

  Raises:
    UserError: an unknown name, or a compiler that is not installed.
  """
  kind, _, size = name.partition(":")
  if name == "cpu":
    return Device("cpu", hosts.memory()), jax.devices("cpu")
  if kind not in KNOWN:
    raise UserError(f"unknown device {name!r}; {nearest(kind, ['cpu', *KNOWN])}")
  device = KNOWN[kind]
  if device.platform == "tpu":
    return device, _tpu(kind, size)
  if not re.fullmatch(r"([1-9]\d*)?", size):
    raise UserError(f"device {name!r}: a slice such as 4x4 is for TPUs, expected '{kind}:4', say")
  return device, _gpu(kind, device, size or "1")


def _tpu(kind: str, size: str) -> list[Any]:
  if importlib.util.find_spec("libtpu") is None:
    raise UserError(INSTALL.format(kind=kind, extra="plan-tpu"))
  for name, value in ALONE.items():
    os.environ.setdefault(name, value)
  slice_name = f"{kind}:{size or SLICES[kind][0]}"
  try:
    devices = topologies.get_topology_desc(platform="tpu", topology_name=slice_name).devices
  except Exception as error:  # the plugin's own class of errors
    said = str(error).splitlines()[0]
    known = f"{kind}:{SLICES[kind][0]}"
    raise UserError(
      f"device {slice_name}: the compiler has no such slice, expected one such as {known} ({said})"
    ) from error
  return list(devices) if size else list(devices)[:1]


def _gpu(kind: str, device: Device, count: str) -> list[Any]:
  if importlib.util.find_spec("jax_cuda12_plugin") is None:
    raise UserError(INSTALL.format(kind=kind, extra="plan-cuda"))
  capability, cores, cache, clock = device.gpu
  threads, shared, block = LIMITS[capability]
  text = GPU.format(
    major=capability[0], minor=capability[1], threads=threads, shared=shared, block=block,
    cores=cores, cache=cache, clock=clock, bandwidth=device.bandwidth, memory=device.memory,
    name=f"NVIDIA {kind.upper()}",
  )  # fmt: skip
  return list(
    topologies.get_topology_desc(
      platform="cuda", topology_name="", topology=f"1x1x{count}", target_config=text
    ).devices
  )
