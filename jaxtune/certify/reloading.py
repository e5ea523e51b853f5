"""Runs an export in real PyTorch, in another interpreter."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from jaxtune.errors import UserError
from jaxtune.formats import loading
from jaxtune.models import hf, quantize

VARIABLE = "JAXTUNE_ADAPTERS_PYTHON"
# {our argument: that of PyTorch's forward}, for a decoder or encoder, and for an encoder-decoder.
THEIR_NAMES = (
  {"tokens": "input_ids", "mask": "attention_mask"},
  {
    "tokens": "decoder_input_ids",
    "mask": "decoder_attention_mask",
    "inputs": "input_ids",
    "inputs_mask": "attention_mask",
  },
)


def adapters_interpreter() -> str:
  """Returns the interpreter with `adapters`, which JAXTUNE_ADAPTERS_PYTHON names.

  Raises:
    UserError: if it names none.
  """
  python = os.environ.get(VARIABLE)
  if not python:
    raise UserError(
      "certifying AdapterHub's format needs an environment of its own, as adapters 1.3 does not "
      "work with transformers 5: python -m venv E && E/bin/pip install adapters==1.3.0 torch, then "
      f"{VARIABLE}=E/bin/python"
    )
  return python


def check_libraries(form: str) -> None:
  """Raises UserError where a library that certifies a format is missing."""
  if form == "adapterhub":
    adapters_interpreter()
    return
  for name in ("torch", "transformers", *["peft"] * (form == "peft")):
    if importlib.util.find_spec(name) is None:
      raise UserError(f"certifying needs {name}: pip install 'jaxtune[torch]'")


def their_logits(
  form: str,
  pretrained: hf.Pretrained,
  folder: Path,
  batches: list[dict[str, np.ndarray]],
  reload: Callable | None,
) -> tuple[list[np.ndarray], dict[str, str]]:
  """Runs the export in PyTorch: returns (logits of each batch, versions of the libraries).

  Args:
    form: the format of the export, as `check_folder` returns it.
    batches: the model's arguments, as `arrange` returns them.
    reload: a running `reloader`; None starts one.
  """
  with tempfile.TemporaryDirectory() as scratch:
    scratch = Path(scratch)
    base = pretrained.folder
    c = pretrained.model.config
    # PyTorch gets the weights used here, but for a merged model, which is whole.
    if form != "merged" and (base is None or c.quantize or c.dtype != np.float32):
      base = hf.save(pretrained, quantize.dequantised(pretrained.params), scratch / "base")
    names = THEIR_NAMES[pretrained.model.config.encoder is not None]
    arrays = {f"{i}/{names[n]}": x for i, batch in enumerate(batches) for n, x in batch.items()}
    np.savez(scratch / "in.npz", **arrays)
    files = map(str, (base, folder, scratch / "in.npz", scratch / "out.npz"))
    model = loading.auto_class(pretrained.model.config), loading.options(pretrained, form)
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
def reloader(python: str = sys.executable) -> Iterator[Callable[[list], None]]:
  """Starts `reload.py` in an interpreter, and yields a function that runs one of its jobs.

  Raises:
    UserError: if the interpreter cannot be started; from the function, if the libraries refuse the
      export.
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
      with suppress(OSError):  # a process that has ended gives no answer below
        process.stdin.write(json.dumps(job) + "\n")
        process.stdin.flush()
      answer = process.stdout.readline().strip()
      if not answer:
        process.wait()
        errors.seek(0)
        answer = (errors.read().strip().splitlines() or ["it ended without a message"])[-1]
      if answer != "done":
        hint = f"; install it for {python} (pip install 'jaxtune[torch]')"
        hint = hint if "ModuleNotFoundError" in answer else ""
        raise UserError(f"PyTorch cannot load the export: {answer}{hint}")

    try:
      yield reload
    finally:
      process.communicate()
