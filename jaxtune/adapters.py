"""Finished adapters: loaded together, composed, imported from other libraries and exported."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from jaxtune import compose, export, imports, locks, results, schema, tree
from jaxtune import config as configs
from jaxtune import runs as runs_
from jaxtune import setup as setups
from jaxtune.compose import deltas, low_rank
from jaxtune.errors import UserError
from jaxtune.runs import Run
from jaxtune.schema import Count, Finite, Seed, Share


def load_runs(folders: Sequence[str | Path]) -> list[Run]:
  """Loads several finished runs over one base, which is in memory once.

  Raises:
    UserError: where one of them was trained over another base.
  """
  found: list[Run] = []
  for folder in folders:
    found.append(runs_.load(folder, found[0].pretrained if found else None))
  return found


WAYS = ("stack", "average", "cat", *deltas.WAYS)


def compose_runs(
  runs: Sequence[Run],
  folder: str | Path,
  how: Literal[*WAYS],
  *,
  weights: Sequence[Finite] | None = None,
  rank: Count | None = None,
  density: Share = 0.5,
  seed: Seed = 0,
) -> dict[str, float]:
  """Makes one adapter of several and writes it as a run's folder.

  Args:
    how: "stack" lays them over each other; "average" takes the mean of their arrays; "cat" adds
      LoRAs exactly, by concatenation; "linear", "ties", "dare" and "dare_ties" combine what they
      change of the weights into a LoRA of `rank`; see `compose.deltas`.
    weights: of each, by default 1 for "cat", which so is the sum, and 1 / n for the others; "stack"
      takes none.
    rank, density, seed: see `compose.deltas`.

  Returns:
    {site: share of the combined delta's squared norm that the rank keeps}; {} where nothing is cut.
  """
  given = dict(how=how, rank=rank, density=density, seed=seed)
  schema.check_arguments(compose_runs, given)
  if (how in deltas.WAYS) != (rank is not None):
    needs = "needs a rank" if rank is None else "takes no rank"
    raise UserError(f"{how!r} {needs}; a rank is of the LoRA that holds a result of weight deltas")
  if how == "stack" and weights is not None:
    raise UserError("'stack' takes no weights: it lays adapters over each other as they are")
  check_free(folder)
  kept: dict[str, float] = {}
  if how == "stack":
    made = compose.stack(runs)
  elif how == "average":
    made = compose.average(runs, weights)
  elif how == "cat":
    made = low_rank.concatenate(runs, weights)
  else:
    made, kept = deltas.merge(runs, rank, weights, how, density=density, seed=seed)
  stops = tuple(dict.fromkeys(stop for run in runs for stop in run.stop_tokens))
  keep(made._replace(stop_tokens=stops), folder)
  return kept


def extract(config: Any, checkpoint: str, rank: Count, folder: str | Path) -> dict[str, float]:
  """Writes the difference of a fine-tuned checkpoint and its base as a LoRA, in a run's folder.

  Args:
    config: an experiment's, whose model is the base; its method is replaced.
    checkpoint: folder of the fine-tuned model.

  Returns:
    {site: share of the difference's squared norm that the rank keeps}.
  """
  schema.check_arguments(extract, {"rank": rank})
  check_free(folder)
  made, kept = low_rank.extract(over(config, folder), checkpoint, rank)
  keep(made, folder)
  return kept


def import_adapter(config: Any, adapter: str | Path, folder: str | Path) -> Run:
  """Reads an adapter in PEFT's or AdapterHub's format and writes it as a run's folder.

  The run can be evaluated, generated from, composed and exported, and trained on with
  `method.start`.

  Args:
    config: an experiment's, whose model is the adapter's base; its method is replaced.
    adapter: folder of the adapter.
  """
  check_free(folder)
  run = over(config, folder)
  found = imports.read(adapter, run.pretrained)
  _, tuned, hyper, _ = imports.lay(found, run.pretrained)
  run = compose.remade(run, found.section, tuned, hyper)
  run = run._replace(labels=tuple(found.labels) or run.labels)
  keep(run, folder)
  return run


def over(config: Any, folder: str | Path) -> Run:
  """Returns a run over a config's base in which nothing is trained."""
  section = {k: v for k, v in configs.to_dict(config).items() if k not in ("sweep", "method")}
  full = configs.complete(section)
  dataset = setups.load_data(full)
  pretrained = setups.load_model(full, len(dataset.labels))
  empty = {"params": {}, "peft": {}}
  base, labels = pretrained.params, tuple(dataset.labels)
  return Run(Path(folder), full, pretrained, (), base, empty, {}, labels, dataset.stop_tokens)


def check_free(folder: str | Path) -> None:
  """Raises UserError for a folder in which there is a run, finished or under way, or other files.

  A config.json alone is what a kill left of `keep`, which then writes both files anew.
  """
  folder = Path(folder)
  if any((folder / name).exists() for name in locks.RUN):
    raise UserError(f"{folder} holds a run already; give another folder")
  locks.check_place(folder)


def keep(run: Run, folder: str | Path) -> None:
  """Writes a run that was composed or imported as a folder that `load_run` reads.

  Raises:
    UserError: where the folder holds a run, or the arrays are none that the run's methods train.
  """
  folder = Path(folder)
  flat = tree.flatten(run.tuned | {"hyper": run.hyper})
  runs_.check_fits(run.methods, run.pretrained, flat, f"what was made for {folder}")
  fingerprint = tree.fingerprint(run.pretrained.params)
  with locks.held(folder):
    check_free(folder)
    runs_.begin([folder], [run.config])
    runs_.write(folder, run.config, fingerprint, run.tuned, run.hyper, run.labels, run.stop_tokens)


def export_run(
  run: Run, folder: str | Path, *, format: str = "auto", dtype: str = "float32",
  certify: bool = False,
) -> export.Exported:  # fmt: skip
  """Writes a finished run in a format that PyTorch loads.

  Args:
    format: "peft", "adapterhub", "merged" (a folder of the whole model, for whatever is a delta of
      its weights) or "auto", by the method.
    dtype: of merged weights.
    certify: reload the files in PyTorch, compare logits on the run's test prompts and write
      certificate.json. Where they differ by more than `export.certify` allows, the files go to
      <folder>.rejected, and what was in `folder` before stays.
  """
  prompts = None
  if certify:
    dataset = setups.load_data(run.config)
    split = dataset.test or dataset.validation or dataset.train
    prompts = split.prompts[:8]
    if run.pretrained.model.config.head is not None:  # its tokens are the text, and no answer
      texts = zip(split.arrays["tokens"][:8], split.arrays["mask"][:8], strict=True)
      prompts = [tokens[mask].tolist() for tokens, mask in texts]
    prompts = [prompt for prompt in prompts if prompt] or None
  return export.export(
    run.pretrained, run.methods, run.tuned, run.hyper, run.base, folder, format=format,
    dtype=dtype, labels=run.labels, base_name=run.config["model"]["path"], certify=certify,
    prompts=prompts, recipe={"config": run.config, "result": results.read(run.folder)},
    stop_tokens=run.stop_tokens,
  )  # fmt: skip
