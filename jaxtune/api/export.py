"""Writes what was trained in the formats that PyTorch users load, and proves that it loads.

LoRA and its relatives, IA3, prefixes and prompts are written in PEFT's format, bottleneck adapters
in AdapterHub's. All weight deltas (LoRA, BitFit, full, ...) can be merged into a plain Hugging Face
folder, and are merged where there is no other format. A head that was trained beside a method is in
the files of that method; a head that was trained alone is merged.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError

from jaxtune import files, peft, tree
from jaxtune.certify import Rejected, check_libraries
from jaxtune.certify import certify as make_certificate
from jaxtune.data import Split, wording
from jaxtune.errors import UserError, check_known
from jaxtune.formats import card, merged, references
from jaxtune.formats.adapterhub import layout
from jaxtune.formats.adapterhub import write as adapterhub_writer
from jaxtune.formats.choose import FORMATS, choose_format, trained_methods
from jaxtune.formats.facts import NO_FACTS, Facts
from jaxtune.formats.peft import write as peft_writer
from jaxtune.formats.peft.prompts import seen_for
from jaxtune.models import hf
from jaxtune.runs import results, trial
from jaxtune.runs.finished import Run


class Exported(NamedTuple):
  """What an export made.

  Attributes:
    folder: of the files.
    format: "peft", "adapterhub" or "merged".
    rounding: what the cast of merged weights lost; None for an adapter.
    certificate: what reloading it in PyTorch showed; None where that was not asked for.
  """

  folder: Path
  format: str
  rounding: merged.Rounding | None
  certificate: dict | None


def export(
  pretrained: hf.Pretrained,
  adapted: peft.Adapted,
  folder: str | Path,
  *,
  format: str = "auto",
  dtype: str = "float32",
  facts: Facts = NO_FACTS,
  certify: bool = False,
  prompts: list[list[int]] | None = None,
  reload: Callable | None = None,
) -> Exported:
  """Writes a trained method into `folder`, with a model card.

  Everything is written beside `folder` and moved there when complete, so that an earlier export
  survives a failure. An export that fails its certificate is kept as `<folder>.rejected`.

  Args:
    adapted: the weights of `pretrained` with what was trained laid over them. Of a stack, one part
      alone is exported by `adapted._replace(methods=(part,))`.
    folder: new, empty, or an earlier export, which is replaced; one to which anything was added,
      or in which anything was changed, is refused.
    format: "peft", "adapterhub", "merged", or "auto": the method's own.
    dtype: of merged weights, "float32" or "bfloat16"; adapters stay in float32, as trained.
    facts: what the files state beside the weights. Its base_name may be a folder, by default the
      one the base was loaded from; the files hold the name of the folder alone.
    certify: reload the files in PyTorch and compare logits; see `certify.certify`.
    prompts: token ids for the certificate; by default random ones.
    reload: a running `certify.reloader`, where many exports are certified.

  Raises:
    UserError: for a method that the format cannot express, naming one that can; for a folder that
      holds something else.
  """
  folder, rejected = check_free(folder, certify, pretrained.folder)
  trained = tree.flatten({**adapted.tuned, "hyper": adapted.hyper})
  tree.check_finite(trained, "what is to be exported")
  form = choose_format(adapted, format)
  if form != "merged" and dtype != "float32":
    raise UserError(f"dtype {dtype!r} is for format='merged'; adapters are written in float32")
  base_name = references.base_reference(facts.base_name or pretrained.folder)
  facts = facts._replace(base_name=base_name)
  if form == "adapterhub":
    layout.check_family(pretrained)
  if certify and reload is None:
    check_libraries(form)
  try:
    with files.replacing(folder) as new:
      rounding = _write(new, form, pretrained, adapted, facts, dtype)
      certificate = None
      if certify:
        options = dict(reload=reload, prompts=prompts, base_name=base_name, rounding=rounding)
        certificate = _certified(new, rejected, pretrained, adapted, **options)
  except (OSError, SafetensorError) as error:
    raise UserError(f"the export to {folder} cannot be written: {error}") from error
  return Exported(folder, form, rounding, certificate)


def check_free(folder: str | Path, certify: bool, base: Path | None = None) -> tuple[Path, Path]:
  """Returns where an export goes, and where one that fails its certificate goes.

  Args:
    base: the base's own folder, if it has one and is loaded.

  Raises:
    UserError: where they hold something else than an export.
  """
  folder = Path(folder)
  folder = folder if folder.name else folder.resolve()  # "." has no name
  rejected = folder.with_name(folder.name + ".rejected")
  for place in (folder, rejected) if certify else (folder,):
    if base is not None and place.resolve() == Path(base).resolve():
      raise UserError(f"{place} is the base's own folder; expected another for the export")
    files.check_free(place)
  return folder, rejected


def check_options(format: str, dtype: str) -> None:
  """Raises UserError for a format, or a type of merged weights, that there is not."""
  check_known("export format", format, FORMATS)
  check_known("dtype", dtype, hf.DTYPES)


def _write(
  folder: Path,
  form: str,
  pretrained: hf.Pretrained,
  adapted: peft.Adapted,
  facts: Facts,
  dtype: str,
) -> merged.Rounding | None:
  """Writes the files of a format and the model card into an empty folder."""
  rounding, written = None, adapted._replace(methods=trained_methods(adapted))
  if form == "merged":
    rounding = merged.write(pretrained, adapted, folder, dtype, facts)
  elif form == "peft":
    peft_writer.write(pretrained, written, folder, facts)
  else:
    adapterhub_writer.write(pretrained, written, folder, facts)
  prefixes = sum(m.positions for m in adapted.methods if m.kind == "prefix" and form == "peft")
  seen = seen_for(pretrained.model.config, prefixes)
  named = written.methods or tuple(m for m in adapted.methods if m.trains is not None)  # a head
  card.write(folder, form, pretrained, named, facts, rounding=rounding, seen=seen)
  return rounding


def _certified(
  new: Path, rejected: Path, pretrained: hf.Pretrained, adapted: peft.Adapted, **options: Any
) -> dict:
  """Certifies the files in `new`; moves them to `rejected` where they are not as trained."""
  try:
    return make_certificate(new, pretrained, adapted, **options)
  except Rejected as error:
    with files.replacing(rejected) as kept:
      for path in list(new.iterdir()):
        path.rename(kept / path.name)
    raise Rejected(f"{error}; its files and certificate are kept in {rejected}") from error


def export_run(
  run: Run, folder: str | Path, *, format: str = "auto", dtype: str = "float32",
  certify: bool = False,
) -> Exported:  # fmt: skip
  """Writes a finished run in a format that PyTorch loads.

  Args:
    format: "peft", "adapterhub", "merged" (a folder of the whole model, for whatever is a delta of
      its weights) or "auto", by the method.
    dtype: of merged weights.
    certify: reload the files in PyTorch, compare logits on the run's test prompts and write
      certificate.json. Where they differ by more than `certify.certify` allows, the files go to
      <folder>.rejected, and what was in `folder` before stays.
  """
  check_options(format, dtype)
  check_free(folder, certify, run.pretrained.folder)  # before the data are loaded
  prompts = _prompts(run) if certify else None
  pretrained = run.pretrained
  if choose_format(run.adapted, format) == "merged":  # alone has a tokenizer
    pretrained = pretrained._replace(tokenizer=_with_template(run))
  result = {} if run.composed else results.read(run.folder)
  recipe = {"config": run.config, "result": result}
  facts = Facts(run.config["model"]["path"], run.labels, run.stop_tokens, recipe)
  return export(
    pretrained, run.adapted, folder, format=format, dtype=dtype, facts=facts, certify=certify,
    prompts=prompts,
  )  # fmt: skip


def _with_template(run: Run) -> Any:
  """Returns the tokenizer with the chat template that the run was trained with, if it named one."""
  name, tokenizer = run.config["data"]["chat_template"], run.pretrained.tokenizer
  if name is None or tokenizer is None:
    return tokenizer
  try:
    template = wording.template(tokenizer, name)
  except UserError as error:  # its file is gone
    print(f"warning: the export has the base's chat template: {error}", file=sys.stderr)
    return tokenizer
  tokenizer = copy.deepcopy(tokenizer)
  tokenizer.chat_template = template
  return tokenizer


def _prompts(run: Run) -> list[list[int]] | None:
  """Returns the first test prompts of a run; None where all are empty, and for a stream alone."""
  dataset = trial.load_data(run.config)
  split = dataset.test or dataset.validation or dataset.train
  if not isinstance(split, Split):
    return None
  prompts = split.prompts[:8]
  if run.pretrained.model.config.head is not None:  # its tokens are the text, without an answer
    texts = zip(split.arrays["tokens"][:8], split.arrays["mask"][:8], strict=True)
    prompts = [tokens[mask].tolist() for tokens, mask in texts]
  return [prompt for prompt in prompts if prompt] or None
