"""Reloads an export in real PyTorch and compares its logits with those of the model we trained.

The answer is a file, `certificate.json`, beside the weights it speaks of.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from jaxtune import peft, tree
from jaxtune.errors import UserError
from jaxtune.export import loading
from jaxtune.export.merged import fold
from jaxtune.models import hf, quantize

TOLERANCE = 1e-4
PROMPTS, TOKENS = 8, 64  # the most that are compared: logits are (prompts, tokens, vocabulary)
VARIABLE = "JAXTUNE_ADAPTERS_PYTHON"
# Arguments of PyTorch's forward, of a model alone and of an encoder-decoder.
THEIR_NAMES = (
  {"tokens": "input_ids", "mask": "attention_mask"},
  {
    "tokens": "decoder_input_ids",
    "mask": "decoder_attention_mask",
    "inputs": "input_ids",
    "inputs_mask": "attention_mask",
  },
)
WEIGHTS = {"peft": "adapter_model.safetensors", "adapterhub": "adapter.safetensors"}


class Rejected(UserError):
  """The files give other logits than the model that was trained."""


def certify(
  folder: str | Path,
  pretrained,
  methods: tuple[peft.Method, ...],
  tuned: Any,
  hyper: Any,
  base: Any,
  *,
  prompts: list[list[int]] | None = None,
  reload: Callable | None = None,
  base_name: str | None = None,
  rounding=None,
) -> dict:
  """Compares the logits of an export, in PyTorch on the CPU in fp32, with ours.

  A batch of prompts padded on the right is run, and one of equal lengths without padding.
  Weights merged in a narrower type are compared with our own, rounded to that type: what the
  rounding costs is `rounding`.

  Args:
    folder: of the export.
    prompts: token ids; the first 8 prompts and 64 tokens of each are used. By default random.
    reload: a running `reloader`, for many certificates; by default one is started in this
      interpreter, and for AdapterHub's format in the one of JAXTUNE_ADAPTERS_PYTHON.
    base_name, rounding: to be stated in the certificate.

  Returns:
    What `certificate.json` holds.

  Raises:
    Rejected: the largest difference exceeds 1e-4; the certificate says so.
    UserError: `folder` is not an export, or the libraries cannot load it.
  """
  folder = Path(folder)
  form = check_folder(folder)
  taken, pad = sum(m.positions for m in methods), loading.pad_token(pretrained)
  batches = make_batches(prompts, pretrained.model.config, taken, pad)
  batches = [arrange(pretrained.model.config, *batch) for batch in batches]
  if form == "merged" and _stored(folder) != "float32":
    dtype = hf.DTYPES[_stored(folder)]
    folded, params = fold(pretrained, methods, tuned, hyper, base)
    ours = our_logits(folded, jax.tree.map(lambda x: x.astype(dtype), params), batches)
  else:
    ours = our_logits(pretrained, base, batches, (methods, tuned, hyper))
  untuned = our_logits(pretrained, pretrained.params, batches)
  theirs, versions = their_logits(form, pretrained, folder, batches, reload)
  apart = [largest_difference(*row) for row in zip(ours, theirs, batches, strict=True)]
  change = max(largest_difference(*row) for row in zip(ours, untuned, batches, strict=True))
  worst = max(apart, key=lambda x: np.inf if np.isnan(x) else x)
  certificate = {
    "passed": bool(worst <= TOLERANCE),
    "largest_logit_difference": _number(worst),
    "tolerance": TOLERANCE,
    "padded": _number(apart[0]),
    "unpadded": _number(apart[1]),
    "change_from_base": _number(change),
    "prompts": len(batches[0]["tokens"]),
    "prompts_from": "random tokens" if prompts is None else "the caller",
    "format": form,
    "method": " + ".join(m.name for m in methods),
    "base": {
      "name": base_name,
      "fingerprint": tree.fingerprint(pretrained.params),
      "quantize": pretrained.model.config.quantize,
    },
    "rounding": rounding and {"dtype": rounding.dtype, **rounding.overall._asdict()},
    "versions": {**_our_versions(), "reloaded_in": versions},
    "files": hashes(folder),
  }
  write_json(folder / "certificate.json", certificate)
  if not certificate["passed"]:
    raise Rejected(
      f"the export does not equal the trained model: its logits in PyTorch differ by {worst:.3g}, "
      f"expected at most {TOLERANCE:g}"
    )
  return certificate


def check_folder(folder: Path) -> str:
  """Returns the format of an export: "peft", "adapterhub" or "merged".

  Raises:
    UserError: for a folder that is none, or whose weights are damaged.
  """
  expected = "expected adapter_config.json with its weights, or a model's config.json"
  if not folder.is_dir():
    raise UserError(f"{folder} is not a folder; {expected}")
  adapter, model = folder / "adapter_config.json", folder / "config.json"
  path = adapter if adapter.exists() else model
  try:
    config = json.loads(path.read_text())
  except OSError as error:
    raise UserError(f"{folder} is not an exported adapter or model: {expected}") from error
  except ValueError as error:
    raise UserError(f"{path} is no JSON ({error}): export again") from error
  form = "merged" if path == model else "adapterhub" if "config" in config else "peft"
  if form == "peft" and "peft_type" not in config:
    raise UserError(
      f"{path} is neither PEFT's (it has no peft_type) nor AdapterHub's (it has no config)"
    )
  weights = folder / WEIGHTS.get(form, "model.safetensors")
  if not weights.exists():
    raise UserError(f"{folder} lacks {weights.name}: export again")
  try:
    with safe_open(weights, "numpy"):
      pass
  except SafetensorError as error:
    raise UserError(f"{weights} is damaged or truncated ({error}): export again") from error
  return form


def adapters_interpreter(python: str | None = None) -> str:
  """Returns the interpreter that AdapterHub's format is certified with."""
  python = python or os.environ.get(VARIABLE)
  if not python:
    raise UserError(
      "certifying AdapterHub's format needs an environment of its own, as adapters 1.3 does not "
      "work with transformers 5: python -m venv E && E/bin/pip install adapters==1.3.0 torch, then "
      f"{VARIABLE}=E/bin/python"
    )
  return python


def make_batches(prompts, config, taken: int, pad: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
  """Makes (tokens, mask) of a right-padded batch, and of one whose prompts repeat to its length.

  Args:
    taken: how many of the model's positions the method takes.
    pad: fills short rows; random tokens are others, as some models know their padding by it.
  """
  room = min(TOKENS, config.positions - taken)
  if taken and config.window is not None:  # beyond, PyTorch's window hides the prefix: see the card
    room = min(room, config.window - taken)
  if room < 1:
    raise UserError(f"the method takes {taken} of the model's {config.positions} positions")
  if prompts is None:
    random = np.random.default_rng(0)
    draw = lambda size: (pad + random.integers(1, config.vocabulary, size)) % config.vocabulary
    prompts = [draw(size).tolist() for size in range(24, 8, -2)]
  prompts = [list(p)[:room] for p in prompts if len(p)][:PROMPTS]
  if not prompts:
    raise UserError("the certificate's prompts are all empty; pass some token ids, or none at all")
  if len({len(p) for p in prompts}) == 1:  # then nothing would be padded
    prompts.append(prompts[0][: max(1, len(prompts[0]) // 2)])
  longest = max(map(len, prompts))
  tokens = np.full((len(prompts), longest), pad, np.int64)
  mask = np.zeros_like(tokens)
  for i, p in enumerate(prompts):
    tokens[i, : len(p)], mask[i, : len(p)] = p, 1
  equal = np.array([np.resize(p, longest) for p in prompts], np.int64)
  return [(tokens, mask), (equal, np.ones_like(equal))]


def arrange(config, tokens, mask) -> dict[str, np.ndarray]:
  """Names a batch as the model takes it; an encoder-decoder reads it, and writes it after start."""
  if config.encoder is None:
    return dict(tokens=tokens, mask=mask)
  start = np.tile(np.array(config.start), (len(tokens), 1))
  behind = lambda first, rest: np.concatenate([first, rest], 1)[:, : rest.shape[1]]
  outputs, real = behind(start, tokens), behind(np.ones_like(start), mask)
  return dict(tokens=outputs, mask=real, inputs=tokens, inputs_mask=mask)


def our_logits(pretrained, base, batches, laid=None) -> list[np.ndarray]:
  """Runs our model in fp32, whatever type it was trained in.

  Args:
    laid: (methods, tuned, hyper) to lay over the base; None for the base alone.
  """
  model = pretrained.model
  config = dataclasses.replace(model.config, dtype=jnp.float32, attention=None)
  model = model.clone(config=config)
  base = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), quantize.dequantised(base))
  run, trees = partial(_plain_logits, model), (base,)
  if laid:
    methods, *trees = laid
    run, trees = jax.jit(partial(peft.apply, model, methods)), (base, *trees)
  with jax.default_matmul_precision("highest"):
    return [
      np.asarray(
        run(
          *trees,
          **{name: x.astype(bool if "mask" in name else np.int32) for name, x in batch.items()},
        )
      )
      for batch in batches
    ]


@partial(jax.jit, static_argnums=0)
def _plain_logits(model, params, **batch):
  return model.apply({"params": params}, **batch)


def their_logits(form, pretrained, folder: Path, batches, reload: Callable | None):
  """Runs the export in PyTorch: returns (logits of each batch, versions of the libraries)."""
  with tempfile.TemporaryDirectory() as scratch:
    scratch = Path(scratch)
    base = pretrained.folder
    if base is None or pretrained.model.config.quantize:  # a quantised base is compared as it is
      base = hf.save(pretrained, quantize.dequantised(pretrained.params), scratch / "base")
    names = THEIR_NAMES[pretrained.model.config.encoder is not None]
    arrays = {f"{i}/{names[n]}": x for i, batch in enumerate(batches) for n, x in batch.items()}
    np.savez(scratch / "in.npz", **arrays)
    files = map(str, (base, folder, scratch / "in.npz", scratch / "out.npz"))
    model = loading.auto_class(pretrained.model.config), loading.options(pretrained)
    job = [form, *model, *files]
    if reload is None:
      with reloader(adapters_interpreter() if form == "adapterhub" else sys.executable) as reload:
        reload(job)
    else:
      reload(job)
    with np.load(scratch / "out.npz") as out:
      logits = [out[f"logits_{i}"] for i in range(len(batches))]
      return logits, json.loads(str(out["versions"]))


@contextmanager
def reloader(python: str = sys.executable):
  """Starts `reload.py` in an interpreter: yields a function that runs one of its jobs.

  Raises:
    UserError: where the interpreter cannot be started, or the libraries refuse the export.
  """
  offline = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "CUDA_VISIBLE_DEVICES": ""}
  command = [python, str(Path(__file__).with_name("reload.py"))]
  with tempfile.TemporaryFile("w+") as errors:
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors)
    try:
      process = subprocess.Popen(command, text=True, env=os.environ | offline, **pipes)
    except OSError as error:
      raise UserError(f"the interpreter {python} cannot be started: {error}") from error

    def reload(job: list) -> None:
      with suppress(OSError):  # where it has ended, it gives no answer
        process.stdin.write(json.dumps(job) + "\n")
        process.stdin.flush()
      said = process.stdout.readline().strip()
      if not said:
        process.wait()
        errors.seek(0)
        said = (errors.read().strip().splitlines() or ["it ended without a message"])[-1]
      if said != "done":
        hint = f"; install it for {python} (pip install 'jaxtune[torch]')"
        hint = hint if "ModuleNotFoundError" in said else ""
        raise UserError(f"PyTorch cannot load the export: {said}{hint}")

    try:
      yield reload
    finally:
      process.communicate()


def largest_difference(ours, theirs, batch) -> float:
  """Returns the largest absolute difference at real tokens; infinite where shapes differ."""
  theirs = theirs[..., 0] if theirs.shape == (*ours.shape, 1) else theirs  # a single score
  if ours.shape != theirs.shape:
    return float("inf")
  apart = np.abs(ours - theirs)
  return float((apart[batch["mask"].astype(bool)] if apart.ndim == 3 else apart).max())


def hashes(folder: Path) -> dict[str, str]:
  """Returns the SHA-256 of every file of an export but its certificate."""
  return {
    str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
    for path in sorted(folder.rglob("*"))
    if path.is_file() and path.name != "certificate.json"
  }


def write_json(path: Path, value: dict) -> None:
  """Writes a file that is either whole or not there."""
  new = path.with_name(f".{path.name}.new")
  new.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n")
  new.replace(path)


def _stored(folder: Path) -> str:
  """Returns the type that a merged folder's config.json says its weights are stored in."""
  return json.loads((folder / "config.json").read_text()).get("dtype", "float32")


def _our_versions() -> dict[str, str]:
  return {name: importlib.metadata.version(name) for name in ("jax", "flax", "numpy")}


def _number(x: float) -> float | None:
  return x if np.isfinite(x) else None
