"""The commands: each calls what `import jaxtune` offers and prints what it returns.

`jaxtune` imports a function when it is first used, so that no command loads what it does not need.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jaxtune
from jaxtune import libraries, schema
from jaxtune.api import judging, methods, printing, status_text, sweeping
from jaxtune.data import templates
from jaxtune.errors import UserError
from jaxtune.runs import locks, loggers, results

follows = libraries.Lazy("jaxtune.api.follow")
completes = libraries.Lazy("jaxtune.api.complete")
composes = libraries.Lazy("jaxtune.api.compose")
evaluates = libraries.Lazy("jaxtune.api.evaluate")
exports = libraries.Lazy("jaxtune.api.export")


class Command(NamedTuple):
  """A command of the command line.

  Attributes:
    run: (options) -> exit code, or None for 0. The options hold the config keys that were given,
      {"section.key": value}, as `overrides`.
    options: {name: keyword arguments of `add_argument`}.
    writes: the option that names the folder which the command writes, if any.
    configurable: whether it takes --config.section.key=value.
  """

  run: Callable[[Namespace], int | None]
  help: str
  options: dict[str, dict[str, Any]] = {}
  writes: str | None = None
  configurable: bool = True


def _train(options: Namespace) -> int:
  chosen = loggers.chosen(vars(options))
  during = follows.follow(options.workdir, screen=False, loggers=chosen)
  result = jaxtune.fit(_config(options), options.workdir, during)
  printing.print_change(result)
  print(f"result: {options.workdir}/result.json")
  if not results.diverged(result):
    return 0
  step = result["diverged_at"]
  when = "its final metrics are not finite" if step is None else f"not finite at step {step}"
  print(
    f"jaxtune: training diverged: {when}. A lower optim.learning_rate or optim.clip, or more "
    "optim.warmup, may help",
    file=sys.stderr,
  )
  return 1


def _status(options: Namespace) -> None:
  found, workdir = jaxtune.status(options.workdir), Path(options.workdir)
  if not options.watch or not locks.works(workdir):
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    print(status_text.text(found, width))
    return
  with follows.shown(workdir, seconds=options.watch):
    while locks.works(workdir):
      time.sleep(0.2)


def _report(options: Namespace) -> None:
  path = jaxtune.report(options.sweeps, options.out, options.metric, options.reference)
  print(f"report: {path}")


def _analyse(options: Namespace) -> None:
  found = jaxtune.analyse(options.workdir, options.examples)
  for title, table in found.tables.items():
    print(title)
    printing.print_cells([table.header, *table.rows])
    print()
  print(f"analysis: {options.workdir}/analysis.json")
  if len(found.measures["trials"]) > 1:
    print(f"`jaxtune report {options.workdir}` shows it in pictures")


def _evaluate(options: Namespace) -> None:
  evaluates.check_overrides(options.overrides)  # before a model is loaded
  run = jaxtune.load_run(options.workdir)
  printing.print_change(jaxtune.evaluate(run, options.overrides))


def _generate(options: Namespace) -> None:
  rows = [schema.parse_json(text, "--row") for text in options.row]
  for row in rows:
    schema.check("--row", row, dict)
  if bool(rows) == bool(options.prompt):
    raise UserError("give either --prompt TEXT or --row JSON")
  prompts = options.prompt or rows
  names = ("which", "max_new_tokens", "temperature", "top_k", "top_p", "seed")
  given = {name: getattr(options, name) for name in names}
  completes.check_options(len(options.workdir), len(prompts), **given)  # before a model is loaded
  runs = jaxtune.load_runs(options.workdir)
  texts = jaxtune.complete(runs, prompts, task=options.task, **given)
  for prompt, text in zip(prompts, texts, strict=True):
    print(json.dumps({"prompt": prompt, "completion": text}, ensure_ascii=False))


def _export(options: Namespace) -> None:
  exports.check_options(options.format, options.dtype)  # before a model is loaded
  exports.check_free(options.out, options.certify)
  run = jaxtune.load_run(options.workdir)
  done = jaxtune.export_run(
    run, options.out, format=options.format, dtype=options.dtype, certify=options.certify
  )
  print(f"exported {run.folder} to {done.folder} ({done.format})")
  if done.rounding is not None and done.rounding.overall.error:
    error = done.rounding.overall.error
    print(f"relative error of the rounding to {done.rounding.dtype}: {error:.2e}")
  if done.certificate is not None:
    print(f"certified: largest logit difference {done.certificate['largest_logit_difference']:.1e}")
  else:
    print("add --certify to reload it in PyTorch and compare the logits")


def _import(options: Namespace) -> None:
  run = jaxtune.import_adapter(_config(options), options.adapter, options.out)
  print(f"imported {run.config['method']['name']} to {options.out}")


def _compose(options: Namespace) -> None:
  given = {name: getattr(options, name) for name in ("how", "rank", "density", "seed")}
  given["weights"] = options.weight
  composes.check_options(count=len(options.run), **given)  # before a model is loaded
  composes.check_free(options.out)
  shares = jaxtune.compose_runs(jaxtune.load_runs(options.run), options.out, **given)
  printing.print_shares(shares)
  print(f"composed {len(options.run)} adapters in {options.out}")


def _extract(options: Namespace) -> None:
  config = _config(options)
  printing.print_shares(jaxtune.extract(config, options.checkpoint, options.rank, options.out))
  print(f"extracted a LoRA to {options.out}")


def _ranks(options: Namespace) -> None:
  evaluates.check_overrides(options.overrides)  # before a model is loaded
  evaluates.check_ranks(options.rank, options.out)
  run = jaxtune.load_run(options.workdir)
  metrics = jaxtune.judge_ranks(run, options.rank, options.overrides, options.out)
  printing.print_table(metrics, "rank")


def _knockout(options: Namespace) -> None:
  evaluates.check_overrides(options.overrides)  # before a model is loaded
  run = jaxtune.load_run(options.workdir)
  printing.print_table(jaxtune.knock_out(run, options.overrides), "methods")


def _methods(options: Namespace) -> None:
  print(methods.text())


def _data(options: Namespace) -> None:
  print(jaxtune.show(_config(options), options.count))


def _templates(options: Namespace) -> None:
  for template in templates.bundled():
    columns = ", ".join(sorted(template.columns))
    print(f"{template.name:28} {template.clarity or '-':10} {columns}")


def _plan(options: Namespace) -> None:
  print(jaxtune.plan(_config(options), options.most_trials, options.device, options.text))


def _config(options: Namespace) -> Any:
  return jaxtune.load_config(options.config, options.overrides)


_CONFIG = {"--config": dict(required=True, metavar="FILE[:ARG]", help="a config file")}
_WORKDIR = {"--workdir": dict(required=True, metavar="DIR", help="the run's folder")}
_NEW_RUN = {"--out": dict(required=True, metavar="DIR", help="the new run's folder")}
_HOSTS = {
  "--coordinator": dict(
    metavar="HOST:PORT",
    help="trains together with other processes, of which "
    "the first listens there; auto finds them on TPU pods, SLURM, Kubernetes",
  ),
  "--processes": dict(type=int, metavar="N", help="the total number of processes"),
  "--process": dict(type=int, metavar="I", help="which of them this one is, from 0"),
}
_MOST_TRIALS = {
  "--most-trials": dict(
    type=int, default=1000, metavar="N", help="confirms a sweep of up to N trials (default: 1000)"
  )
}

# fmt: off
COMMANDS = {
  "train": Command(_train, "train one configuration",
                   _CONFIG | _WORKDIR | loggers.OPTIONS | _HOSTS, "workdir"),
  "sweep": Command(sweeping.run, "train every trial of a sweep and compare them",
                   sweeping.OPTIONS | _MOST_TRIALS | loggers.OPTIONS | _HOSTS, "workdir"),
  "status": Command(_status, "say how far the trials of a sweep, or a run, are", {
    "workdir": dict(metavar="DIR", help="the folder of the sweep or the run"),
    "--watch": dict(type=float, nargs="?", const=1.0, metavar="SECONDS",
                    help="shows it anew every so many seconds, while a process works there"),
  }, configurable=False),
  "report": Command(_report, "write the report of sweeps anew, joined and while they run", {
    "sweeps": dict(nargs="+", metavar="DIR", help="the folder of a sweep"),
    "--out": dict(metavar="DIR", help="the report's folder (default: that of a single sweep)"),
    "--metric": dict(help="what the report is sorted by (default: test loss, or validation loss)"),
    "--reference": dict(metavar="LABEL", help="the configuration that others are compared with, as"
                        " in the report, or one of its trials (default: the best)"),
  }, configurable=False),
  "analyse": Command(_analyse, "measure what the finished trials of a sweep change in the model", {
    "workdir": dict(metavar="DIR", help="the folder of the sweep or the run"),
    "--examples": dict(type=int, default=128, metavar="N",
                       help="of the validation split, that the model is run on (default: 128)"),
  }, writes="workdir", configurable=False),
  "evaluate": Command(_evaluate, "judge a finished run and its untuned base", _WORKDIR),
  "generate": Command(_generate, "continue prompts with a finished run, or with several", {
    "--workdir": dict(required=True, action="append", metavar="DIR",
                      help="the run's folder; may be repeated for runs over one base"),
    "--which": dict(type=int, action="append", metavar="N",
                    help="of several runs, the one (from 0) that each prompt is for"),
    "--prompt": dict(action="append", default=[], help="a text; may be repeated"),
    "--row": dict(action="append", default=[], metavar="JSON",
                  help="columns for the run's own template; may be repeated"),
    "--task": dict(help="of a mixture, the task by whose template rows are read"),
    "--max-new-tokens": dict(type=int, default=64),
    "--temperature": dict(type=float, default=0.0, help="0 is greedy"),
    "--top-k": dict(type=int),
    "--top-p": dict(type=float),
    "--seed": dict(type=int, default=0),
  }, configurable=False),
  "feedback": Command(judging.run, "let people choose between two answers on a local page",
                      judging.OPTIONS, configurable=False),
  "export": Command(_export, "write a finished run for PyTorch", _WORKDIR | {
    "--out": dict(required=True, metavar="DIR", help="where the export goes"),
    "--format": dict(default="auto", help="auto, peft, adapterhub or merged"),
    "--dtype": dict(default="float32", help="of merged weights: float32 or bfloat16"),
    "--certify": dict(action="store_true", help="reload in PyTorch, compare the logits"),
  }, "out", configurable=False),
  "import": Command(_import, "turn PEFT's or AdapterHub's adapter into a run", _CONFIG | {
    "--adapter": dict(required=True, metavar="DIR", help="the adapter's folder"),
  } | _NEW_RUN, "out"),
  "compose": Command(_compose, "make one adapter of several", {
    "--run": dict(required=True, action="append", metavar="DIR", help="repeat for each"),
    "--how": dict(required=True, help="stack, average, cat, linear, ties, dare or dare_ties"),
    "--weight": dict(type=float, action="append",
                     help="of each run (default: 1 for cat, else 1 / n)"),
    "--rank": dict(type=int, help="of the LoRA that holds the result"),
    "--density": dict(type=float, help="share of entries that ties and dare keep (default: 0.5)"),
    "--seed": dict(type=int, help="of the entries that dare drops (default: 0)"),
  } | _NEW_RUN, "out", configurable=False),
  "extract": Command(_extract, "make a LoRA of a fine-tuned checkpoint and its base", _CONFIG | {
    "--checkpoint": dict(required=True, metavar="DIR", help="the fine-tuned model"),
    "--rank": dict(type=int, required=True, help="rank of the LoRA"),
  } | _NEW_RUN, "out"),
  "ranks": Command(_ranks, "judge a trained LoRA cut to lower ranks", _WORKDIR | {
    "--rank": dict(type=int, action="append", required=True, help="may be repeated"),
    "--out": dict(metavar="DIR", help="where the cut runs are kept, as DIR/rank=N"),
  }, "out"),
  "knockout": Command(_knockout, "judge a stack without each of its methods", _WORKDIR),
  "methods": Command(_methods, "list the methods, their options and what they combine with",
                     configurable=False),
  "data": Command(_data, "show a config's data as the model sees it", _CONFIG | {
    "action": dict(choices=["show"]),
    "--count": dict(type=int, default=3, help="examples of each split"),
  }),
  "templates": Command(_templates, "list the library of prompt templates", configurable=False),
  "plan": Command(_plan, "print groups, targets, memory and FLOPs; trains nothing",
                  _CONFIG | _MOST_TRIALS | {
    "--device": dict(help="a device that need not be here, such as v5e, v5e:4x4 or h200:8"),
    "--text": dict(metavar="FILE", help="keeps the modules compiled for --device"),
  }),
}
# fmt: on
