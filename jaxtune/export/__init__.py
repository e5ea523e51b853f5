"""Writes what was trained in the formats that PyTorch users load, and proves that it loads.

LoRA's kin, IA3, prefixes and prompts go to PEFT's format, bottleneck adapters to AdapterHub's, and
all weight deltas (LoRA, BitFit, full, ...) into a plain Hugging Face folder, if asked for or where
there is no other format. A head that was trained beside a method of PEFT's is in its files too; one
trained alone is merged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError

from jaxtune import folders, tree
from jaxtune import peft as methods_
from jaxtune.errors import UserError, check_known
from jaxtune.export import adapterhub, card, merged, places
from jaxtune.export import peft as peft_format
from jaxtune.export.certify import Rejected, adapters_interpreter
from jaxtune.export.certify import certify as make_certificate

FORMATS = ("auto", "peft", "adapterhub", "merged")
ADAPTERHUB = ("adapter", "compacter")


class Exported(NamedTuple):
  """What an export made.

  Attributes:
    folder: where it lies.
    format: "peft", "adapterhub" or "merged".
    rounding: what the cast of merged weights lost; None for an adapter.
    certificate: what reloading it in PyTorch showed; None where that was not asked for.
  """

  folder: Path
  format: str
  rounding: merged.Rounding | None
  certificate: dict | None


def export(
  pretrained,
  methods: tuple[methods_.Method, ...],
  tuned: Any,
  hyper: Any,
  base: Any,
  folder: str | Path,
  *,
  format: str = "auto",
  dtype: str = "float32",
  labels: tuple[str, ...] = (),
  base_name: str | None = None,
  extra_config: dict | None = None,
  certify: bool = False,
  prompts: list[list[int]] | None = None,
  reload: Callable | None = None,
  recipe: dict | None = None,
  stop_tokens: Sequence[int] = (),
) -> Exported:
  """Writes a trained method into `folder`, with a model card.

  Everything is written beside `folder` and moved there when complete, so that an earlier export
  survives a failure. An export that fails its certificate is kept as `<folder>.rejected`.

  Args:
    pretrained, methods, tuned, hyper, base: the model, and what `peft.init` made of it.
    folder: new, empty, or an earlier export, which is replaced; one to which anything was added,
      or in which anything was changed, is refused.
    format: "peft", "adapterhub", "merged", or "auto": the method's own.
    dtype: of merged weights, "float32" or "bfloat16"; adapters stay in float32, as trained.
    labels: names of a head's labels; by default those of the base's config.json.
    base_name: the base's folder or its name on the hub; by default the folder it was loaded from.
      Of a folder, the files hold the name alone.
    extra_config: entries added to adapter_config.json (not for merged).
    certify: reload the files in PyTorch and compare logits; see `export.certify`.
    prompts: token ids for the certificate; by default random ones.
    reload: a running `export.certify.reloader`, where many exports are certified.
    recipe: {"config": a run's, "result": its result.json}, for the model card.
    stop_tokens: ids that end an answer, for `model.generate` in PyTorch.

  Raises:
    UserError: for a method that the format cannot express, naming one that can; for a folder that
      holds something else.
  """
  folder = Path(folder)
  folder = folder if folder.name else folder.resolve()  # "." has no name
  rejected = folder.with_name(folder.name + ".rejected")
  _check_free(pretrained, folder, rejected if certify else folder)
  tree.check_finite(tree.flatten({**tuned, "hyper": hyper}), "what is to be exported")
  form = choose_format(methods, tuned, format)
  if form != "merged" and dtype != "float32":
    raise UserError(f"dtype {dtype!r} is for format='merged'; adapters are written in float32")
  base_name = places.base_reference(base_name or pretrained.folder)
  if form == "adapterhub":
    adapterhub.names.check_family(pretrained)
  if certify and form == "adapterhub" and reload is None:
    adapters_interpreter()  # or say at once that there is none
  laid_over = methods, tuned, hyper, base
  try:
    with folders.replacing(folder) as new:
      how = (dtype, labels, base_name, extra_config, stop_tokens)
      rounding = _write(pretrained, *laid_over, new, form, *how)
      taken = sum(m.positions for m in methods if m.kind == "prefix" and form == "peft")
      seen = peft_format.seen_for(pretrained.model.config, taken)
      made = (labels, base_name, dtype, rounding, seen, recipe, stop_tokens)
      card.write(new, form, pretrained, methods, *made)
      certificate = None
      if certify:
        how = dict(reload=reload, prompts=prompts, base_name=base_name, rounding=rounding)
        certificate = _certified(new, rejected, pretrained, laid_over, **how)
  except (OSError, SafetensorError) as error:
    raise UserError(f"the export to {folder} cannot be written: {error}") from error
  return Exported(folder, form, rounding, certificate)


def own_format(method: methods_.Method) -> str:
  """Returns the format that a method is exported in if nothing else is asked for.

  Raises:
    UserError: for a method that no format of PyTorch's libraries holds.
  """
  unshifted = method.kind == "prefix" and not method.options.get("shift", True)
  if method.kind in ADAPTERHUB or unshifted:
    return "adapterhub"
  if method.kind in peft_format.KINDS and method.kind != "norms":
    return "peft"
  if _is_delta(method):
    return "merged"
  raise UserError(
    f"no PyTorch format holds method {method.name!r} ({method.kind}): train LoRA or an adapter to "
    "use it in PyTorch; jaxtune evaluates and generates with it"
  )


def _is_delta(method: methods_.Method) -> bool:
  """Says whether a method does no more than change weights."""
  return any(f is not None for f in (method.moves, method.place, method.merge))


def choose_format(methods: tuple[methods_.Method, ...], tuned: Any, format: str = "auto") -> str:
  """Returns the format that `methods` are exported in.

  Raises:
    UserError: where there is none, or the one asked for cannot express them.
  """
  check_known("export format", format, FORMATS)
  parts = laid(methods, tuned)
  if len(parts) > 1:
    return _stack_format(parts, format)
  if not parts and not tree.flatten(tuned["params"]):
    raise UserError("there is no method to export")
  # What is left without a part is a head alone.
  name, own, norms = "head", "merged", False
  if parts:
    name, own, norms = parts[0].name, own_format(parts[0]), parts[0].kind == "norms"
  if format == "merged" and parts and not _is_delta(parts[0]):
    raise UserError(f"method {name!r} is no weight delta and cannot be merged: use format={own!r}")
  if format not in ("auto", "merged", own) and not (norms and format == "peft"):
    raise UserError(f"{format!r} cannot express method {name!r}: use format={own!r}")
  form = own if format == "auto" else format
  beyond = not all(map(peft_format.of_head, tree.flatten(tuned["params"])))
  if form != "merged" and beyond and not norms:
    raise UserError(
      f"weights of the base were trained too, and {form!r} cannot hold them: export the methods "
      "that trained them with format='merged', and give that folder as this one's base"
    )
  return form


def laid(methods: tuple[methods_.Method, ...], tuned: Any) -> tuple[methods_.Method, ...]:
  """Lists the methods without those that train a head alone, or nothing (regularisation)."""
  moved = tree.flatten(tuned["params"])
  beyond = lambda m: (
    m.moves is not None and any(m.moves(path) and not peft_format.of_head(path) for path in moved)
  )
  return tuple(m for m in methods if beyond(m) or methods_.own(m, tuned["peft"]))


def _stack_format(methods, format: str) -> str:
  mam = sorted(m.kind for m in methods) == ["adapter", "prefix"]
  if mam and format in ("auto", "adapterhub") and {*map(own_format, methods)} == {"adapterhub"}:
    return "adapterhub"
  deltas = [m.name for m in methods if _is_delta(m)]
  if format in ("auto", "merged") and len(deltas) == len(methods):
    return "merged"
  names = " + ".join(m.name for m in methods)
  if len(deltas) == len(methods):
    raise UserError(f"{format!r} cannot express the stack {names}: use format='merged'")
  way = "export each part alone (methods=(part,))"
  if deltas:
    way = (
      f"merge {' + '.join(deltas)} first (format='merged', methods=these), then export each other "
      "part alone (methods=(part,)), with the merged folder as its base"
    )
  raise UserError(f"no PyTorch format holds the stack {names}: {way}")


def _check_free(pretrained, *chosen: Path) -> None:
  """Refuses to write over what is no export, and over the base itself."""
  for folder in chosen:
    if pretrained.folder is not None and folder.resolve() == Path(pretrained.folder).resolve():
      raise UserError(f"{folder} is the base's own folder; expected another for the export")
    folders.check_free(folder)


def _write(
  pretrained, methods, tuned, hyper, base, new, form, dtype, labels, base_name, extra, stops
) -> merged.Rounding | None:
  """Writes the files of a format into an empty folder."""
  if form == "merged":
    named = tuple(map(str, labels)) or None
    return merged.write(pretrained, methods, tuned, hyper, base, new, dtype, named, stops)
  parts, end = laid(methods, tuned), (new, base_name, extra or {})
  if form == "peft":
    peft_format.write(pretrained, *parts, tuned, hyper, base, *end)
  else:
    adapterhub.write(pretrained, parts, tuned, hyper, base, *end, labels)
  return None


def _certified(new: Path, rejected: Path, pretrained, laid_over: tuple, **how) -> dict:
  """Certifies the files in `new`; moves them to `rejected` where they are not as trained."""
  try:
    return make_certificate(new, pretrained, *laid_over, **how)
  except Rejected as error:
    with folders.replacing(rejected) as kept:
      for path in list(new.iterdir()):
        path.rename(kept / path.name)
    raise Rejected(f"{error}. Its files and certificate are kept in {rejected}") from error
