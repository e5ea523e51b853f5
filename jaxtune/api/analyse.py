"""What the trained adapters of a sweep do to the model, from their weights and the frozen base."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from jaxtune import config as configs_
from jaxtune import data, hosts, peft, schema, sharding, tree
from jaxtune.api import report
from jaxtune.errors import UserError
from jaxtune.evaluation.analysis import changes, probes, spectra, subspaces, truncation
from jaxtune.runs import programs, reference, results, sources
from jaxtune.runs.finished import Run, load_run
from jaxtune.runs.trial import Trial, load_data, make
from jaxtune.sweeps import analysed, groups, stats, table


class Analysed(NamedTuple):
  """What `analyse` returns.

  Attributes:
    measures: {"examples", "split", "trials": {trial: see `_measure`, and "result", the hash of its
      result.json}, "similarity": see `subspaces.compare`}, as analysis.json holds them.
    tables: {title: table} of their means by configuration.
  """

  measures: analysed.Analysis
  tables: dict[str, table.Table]


class Loaded(NamedTuple):
  """A finished trial with what it is judged on.

  Attributes:
    shared: a key that is equal for trials whose programs are the same.
    split: the examples, some of the validation split, or of test where there is none.
  """

  run: Run
  trial: Trial
  shared: str
  split: data.Split


def analyse(folder: str | Path, examples: int = 128) -> Analysed:
  """Measures what each finished trial of a sweep, or a run, changes in the model.

  Writes the measures as analysis.json into the folder, from where `report` shows them. Changes
  with factors (LoRA, VeRA, AdaLoRA) are decomposed quickly; those without (full fine-tuning,
  DoRA, LoHa, LoKr, IA3) by a singular value decomposition of each whole matrix.

  Args:
    examples: how many examples of the validation split (of test, where there is none) the model is
      run on.

  Raises:
    UserError: where no trial is finished, or one's files are not those that it wrote.
  """
  schema.check("examples", examples, schema.Count)
  rows, seeds = _finished(Path(folder))
  every = {one["trial"]: one for row in rows for one in row.results}
  cache: dict[Any, Any] = {}  # models, data sets and compiled programs that trials share
  entries, directions, split = {}, {}, ""
  for name, result in tqdm(every.items(), "analysing", leave=False, disable=hosts.bars()):
    loaded, own = _load(Path(result["folder"]), examples, cache)
    if split not in ("", own):
      raise UserError(
        f"{result['folder']} has {own} to run the model on, and trials before it {split}: expected "
        "one split in all trials"
      )
    split = own
    entry, directions[name] = _measure(loaded, cache)
    entries[name] = entry | {"result": result.get("sha256")}
  trials = [[one["trial"] for one in row.results] for row in rows]
  found = {
    "examples": examples,
    "split": split,
    "trials": entries,
    "similarity": subspaces.compare(trials, seeds, directions),
  }
  measures = _plain(found)
  analysed.write(Path(folder), measures)
  return Analysed(measures, analysed.tables(analysed.configurations(rows, measures), measures))


def _finished(folder: Path) -> tuple[list[stats.Row], dict[str, int]]:
  """Returns the finished trials, best configurations first, and {trial: its seed}."""
  if result := results.read(folder):
    name = folder.absolute().name
    found = [result | {"trial": name, "folder": str(folder), "settings": {}}]
    configs = {name: schema.read_json(folder / "config.json")}
  else:
    sweep = report.read(folder)
    found, configs = sweep.finished, sweep.configs
  found = [one for one in found if not results.diverged(one)]
  if not found:
    raise UserError(f"{folder} has no finished trial to analyse: wait for one, or train it again")
  rows = stats.best_first(stats.group(found), table.choose_metric(found, None))
  return rows, {one["trial"]: configs[one["trial"]]["seed"] for one in found}


def _load(place: Path, examples: int, cache: dict) -> tuple[Loaded, str]:
  """Loads a trial, with data and base that others share; returns it and its split's name."""
  config = configs_.complete(schema.read_json(place / "config.json"))
  data_key = groups.data_key(config)
  dataset = _once(cache, data_key, lambda: load_data(config))
  model_key = groups.model_key(config), len(dataset.labels)
  run = load_run(place, cache.get(model_key))
  sources.check_foreign(run.config, place)  # config.json may say otherwise
  sources.check_start(run.config, place)
  model = _once(cache, model_key, lambda: run.pretrained)
  fingerprint = _once(cache, ("fingerprint", model_key), lambda: tree.fingerprint(model.params))
  made = make(run.config, model, dataset, fingerprint)
  (trial,) = reference.added([made], sharding.ALONE)
  name = "test" if dataset.validation is None else "validation"
  if (split := getattr(trial.dataset, name)) is None:
    raise UserError(f"{place} has no validation or test split to run the model on: give data.test")
  sections = {part: run.config[part] for part in ("objective", "evaluate", "regularize")}
  shared = json.dumps([data_key, str(model_key), sections], default=str)
  return Loaded(run, trial, shared, data.sample(split, examples)), name


def _measure(loaded: Loaded, cache: dict) -> tuple[dict[str, Any], subspaces.Directions]:
  """Measures one trial.

  Returns:
    {"weights": {path of a matrix: `spectra.of_matrix`}, "vectors": {path: `spectra.of_vector`},
    "truncated": see `truncation.curve`, "states" and "attention": see `probes.means`, "prompt":
    see `_nearest_tokens`}, and the largest directions of the change of every
    matrix, by the base's fingerprint and path, as those of different bases are not comparable.
  """
  adapted, params = loaded.run.adapted, loaded.run.pretrained.params
  changed = changes.of(adapted, params, loaded.run.pretrained.fresh)
  decomposed = {path: x.spectrum() for path, x in changed.items() if x.is_matrix}
  weights, directions = {}, {}
  for path, spectrum in decomposed.items():
    base, key = changed[path].base, (loaded.trial.fingerprint, path)
    squares = _once(cache, key, lambda base=base: spectra.largest_squares(base))
    weights[path] = spectra.of_matrix(changed[path], spectrum, squares)
    directions[key] = spectrum.directions
  return {
    "weights": weights,
    "vectors": {p: spectra.of_vector(x) for p, x in changed.items() if not x.is_matrix},
    "truncated": _truncated(loaded, changed, decomposed, cache),
    **_probed(loaded, cache),
    "prompt": _nearest_tokens(loaded.run),
  }, directions


def _truncated(
  loaded: Loaded,
  changed: Mapping[str, changes.Change],
  decomposed: Mapping[str, changes.Spectrum],
  cache: dict,
) -> dict[str, list]:
  """Returns scores with the changes cut to lower ranks; {} where that cannot be judged."""
  run = loaded.run
  adapted, embedding = run.adapted, "embed/embedding"
  in_place = tree.flatten(adapted.tuned["params"])
  lookup_alone = embedding in decomposed and embedding not in in_place
  if not decomposed or lookup_alone and run.pretrained.model.config.tied:
    return {}
  rest = truncation.rest(adapted)
  key = "evaluator", loaded.shared, _method_key(run) if rest else ""
  parallel = sharding.ALONE
  make = lambda: programs.make_evaluator(loaded.trial, parallel, methods=rest)
  evaluator, params = _once(cache, key, make), run.pretrained.params
  return truncation.curve(evaluator, adapted, params, changed, decomposed, loaded.split)


def _probed(loaded: Loaded, cache: dict) -> dict[str, Any]:
  """Runs the examples with and without the trial's methods; see `probes.means`."""
  run, arrays = loaded.run, loaded.split.arrays
  prompt = sum(m.positions for m in run.adapted.methods if m.prepends)
  key = "probes", loaded.shared, _method_key(run)
  program = programs.make_program(loaded.trial)
  if programs.rolls_out(loaded.trial):  # its examples are prompts: there is nothing to score
    program = program._replace(objective=lambda forward, batch, **_: forward(batch))
  compare = _once(cache, key, lambda: jax.jit(partial(probes.compare, program, prompt)))
  # Batches have one shape: of the last examples, those that fill none are left out.
  size = min(loaded.trial.config["evaluate"]["batch_size"], loaded.split.examples)
  weights = run.adapted.overlay, run.adapted.base, run.pretrained.params
  total = None
  for start in range(0, loaded.split.examples - size + 1, size):
    batch = {name: x[start : start + size] for name, x in arrays.items()}
    total = probes.add(total, compare(*weights, batch))
  return probes.means(total, _decoder(run))


def _nearest_tokens(run: Run) -> dict[str, list]:
  """Returns {"nearest", "cosine"}: the token whose embedding is nearest to each of a prompt's."""
  adapted = run.adapted
  arrays = peft.reparametrise(adapted.methods, adapted.tuned["peft"])
  prompts = [x for path, x in tree.flatten(arrays).items() if path.endswith("/prompt")]
  if not prompts:
    return {}
  unit = lambda x: x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
  table_VD = np.asarray(tree.flatten(run.pretrained.params)["embed/embedding"], np.float32)
  cosine_PV = unit(np.asarray(prompts[0], np.float32)) @ unit(table_VD).T
  nearest = [_decoder(run)(token) for token in cosine_PV.argmax(-1).tolist()]
  return {"nearest": nearest, "cosine": cosine_PV.max(-1)}


def _decoder(run: Run) -> Callable[[int], str]:
  tokenizer = run.pretrained.tokenizer
  return lambda token: tokenizer.decode([token]) if tokenizer else str(token)


def _method_key(run: Run) -> str:
  return json.dumps(run.config["method"], default=str)


def _once(cache: dict, key: Any, make: Callable[[], Any]) -> Any:
  """Returns what the cache has under a key; makes it if it has nothing."""
  if key not in cache:
    cache[key] = make()
  return cache[key]


def _plain(value: Any) -> Any:
  """Writes arrays as lists of numbers of five digits, and numbers that JSON lacks as None."""
  if isinstance(value, Mapping):
    return {str(key): _plain(item) for key, item in value.items()}
  if isinstance(value, np.ndarray):
    return _plain(value.tolist())
  if isinstance(value, (list, tuple)):
    return [_plain(item) for item in value]
  if isinstance(value, (float, np.floating)):
    return float(f"{value:.5g}") if math.isfinite(value) else None
  return value
