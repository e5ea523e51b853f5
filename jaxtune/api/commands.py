"""The commands: every one calls a function of `api` and prints what it returns.

What takes long to import is imported by the commands that need it.
"""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from jaxtune.api import printing
from jaxtune.errors import UserError

Option = tuple[str, dict[str, Any]]  # a name, and keyword arguments of `add_argument`


class Command(NamedTuple):
  """A command of the command line.

  Attributes:
    run: (options, arguments that are not options) -> exit code, or None for 0.
    writes: the option that names the folder which the command writes, if any.
  """

  run: Callable[[Namespace, list[str]], int | None]
  help: str
  options: tuple[Option, ...] = ()
  writes: str | None = None


def option(name: str, **settings: Any) -> Option:
  return name, settings


def _train(options: Namespace, rest: list[str]) -> int:
  from jaxtune.api.fit import fit
  from jaxtune.runs.results import diverged

  result = fit(_config(options, rest), options.workdir)
  printing.print_change(result)
  print(f"result: {options.workdir}/result.json")
  if not diverged(result):
    return 0
  step = result["diverged_at"]
  when = "its final metrics are not finite" if step is None else f"not finite at step {step}"
  print(
    f"jaxtune: training diverged: {when}. A lower optim.learning_rate or optim.clip, or more "
    "optim.warmup, may help",
    file=sys.stderr,
  )
  return 1


def _sweep(options: Namespace, rest: list[str]) -> None:
  from jaxtune.api.sweep import sweep

  sweep(_config(options, rest), options.workdir, options.metric, options.most_trials)
  report = Path(options.workdir, "report.md").read_text()
  print("\n".join(line for line in report.splitlines() if line.startswith("|")))
  print(f"report: {options.workdir}/report.html")


def _evaluate(options: Namespace, rest: list[str]) -> None:
  from jaxtune.api.evaluate import evaluate
  from jaxtune.runs.finished import load_run

  printing.print_change(evaluate(load_run(options.workdir), _overrides(rest)))


def _generate(options: Namespace, rest: list[str]) -> None:
  from jaxtune.api.complete import complete
  from jaxtune.runs.finished import load_runs

  _refuse(rest)
  prompts = options.prompt or [_row(text) for text in options.row]
  if not prompts or (options.prompt and options.row):
    raise UserError("give either --prompt TEXT or --row JSON")
  texts = complete(
    load_runs(options.workdir), prompts, which=options.which, task=options.task,
    max_new_tokens=options.max_new_tokens, temperature=options.temperature, top_k=options.top_k,
    top_p=options.top_p, seed=options.seed,
  )  # fmt: skip
  for prompt, text in zip(prompts, texts, strict=True):
    print(json.dumps({"prompt": prompt, "completion": text}, ensure_ascii=False))


def _export(options: Namespace, rest: list[str]) -> None:
  from jaxtune.api.export import export_run
  from jaxtune.runs.finished import load_run

  _refuse(rest)
  run = load_run(options.workdir)
  done = export_run(
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


def _import(options: Namespace, rest: list[str]) -> None:
  from jaxtune.api.import_adapter import import_adapter

  run = import_adapter(_config(options, rest), options.adapter, options.out)
  print(f"imported {run.config['method']['name']} to {options.out}")


def _compose(options: Namespace, rest: list[str]) -> None:
  from jaxtune.api.compose import compose_runs
  from jaxtune.runs.finished import load_runs

  _refuse(rest)
  shares = compose_runs(
    load_runs(options.run), options.out, options.how, weights=options.weight,
    rank=options.rank, density=options.density, seed=options.seed,
  )  # fmt: skip
  printing.print_shares(shares)
  print(f"composed {len(options.run)} adapters in {options.out}")


def _extract(options: Namespace, rest: list[str]) -> None:
  from jaxtune.api.extract import extract

  config = _config(options, rest)
  printing.print_shares(extract(config, options.checkpoint, options.rank, options.out))
  print(f"extracted a LoRA to {options.out}")


def _ranks(options: Namespace, rest: list[str]) -> None:
  from jaxtune.api.evaluate import judge_ranks
  from jaxtune.runs.finished import load_run

  run = load_run(options.workdir)
  metrics = judge_ranks(run, options.rank, _overrides(rest), options.out)
  printing.print_table(metrics, "rank")


def _knockout(options: Namespace, rest: list[str]) -> None:
  from jaxtune.api.evaluate import knock_out
  from jaxtune.runs.finished import load_run

  run = load_run(options.workdir)
  printing.print_table(knock_out(run, _overrides(rest)), "methods")


def _methods(options: Namespace, rest: list[str]) -> None:
  from jaxtune.api import methods as listing

  _refuse(rest)
  print(listing.text())


def _data(options: Namespace, rest: list[str]) -> None:
  from jaxtune.api.show import show

  print(show(_config(options, rest), options.count))


def _templates(options: Namespace, rest: list[str]) -> None:
  from jaxtune.data.templates import bundled

  _refuse(rest)
  for template in bundled():
    columns = ", ".join(sorted(template.columns))
    print(f"{template.name:28} {template.clarity or '-':10} {columns}")


def _plan(options: Namespace, rest: list[str]) -> None:
  from jaxtune.api.plan import plan

  print(plan(_config(options, rest), options.most_trials))


def _config(options: Namespace, rest: list[str]) -> Any:
  from jaxtune import config

  return config.load_config(options.config, _overrides(rest))


def _overrides(rest: list[str]) -> dict[str, Any]:
  from jaxtune import config

  return config.parse_overrides(rest)


def _row(text: str) -> dict:
  from jaxtune import schema

  row = schema.parse_json(text, "--row")
  schema.check("--row", row, dict)
  return row


def _refuse(rest: list[str]) -> None:
  """Raises UserError for arguments that are left, in a command without config keys."""
  if rest:
    raise UserError(f"unknown argument {rest[0]!r}")


_CONFIG = option("--config", required=True, metavar="FILE[:ARG]", help="a config file")
_WORKDIR = option("--workdir", required=True, metavar="DIR", help="the run's folder")
_NEW_RUN = option("--out", required=True, metavar="DIR", help="the new run's folder")
_MOST_TRIALS = option("--most-trials", type=int, default=1000, metavar="N",
                       help="confirms a sweep of up to N trials (default: 1000)")  # fmt: skip

# fmt: off
COMMANDS = {
  "train": Command(_train, "train one configuration", (_CONFIG, _WORKDIR), "workdir"),
  "sweep": Command(_sweep, "train every trial of config.sweep and compare", (
    _CONFIG, _WORKDIR,
    option("--metric", help="what the report is sorted by (default: test loss)"),
    _MOST_TRIALS,
  ), "workdir"),
  "evaluate": Command(_evaluate, "judge a finished run and its untuned base", (_WORKDIR,)),
  "generate": Command(_generate, "continue prompts with a finished run, or with several", (
    option("--workdir", required=True, action="append", metavar="DIR",
           help="the run's folder; may be repeated for runs over one base"),
    option("--which", type=int, action="append", metavar="N",
           help="of several runs, the one (from 0) that each prompt is for"),
    option("--prompt", action="append", default=[], help="a text; may be repeated"),
    option("--row", action="append", default=[], metavar="JSON",
           help="columns for the run's own template; may be repeated"),
    option("--task", help="of a mixture, the task by whose template rows are read"),
    option("--max-new-tokens", type=int, default=64),
    option("--temperature", type=float, default=0.0, help="0 is greedy"),
    option("--top-k", type=int),
    option("--top-p", type=float),
    option("--seed", type=int, default=0),
  )),
  "export": Command(_export, "write a finished run for PyTorch", (
    _WORKDIR,
    option("--out", required=True, metavar="DIR", help="where the export goes"),
    option("--format", default="auto", help="auto, peft, adapterhub or merged"),
    option("--dtype", default="float32", help="of merged weights: float32 or bfloat16"),
    option("--certify", action="store_true", help="reload in PyTorch, compare the logits"),
  ), "out"),
  "import": Command(_import, "turn PEFT's or AdapterHub's adapter into a run", (
    _CONFIG,
    option("--adapter", required=True, metavar="DIR", help="the adapter's folder"),
    _NEW_RUN,
  ), "out"),
  "compose": Command(_compose, "make one adapter of several", (
    option("--run", required=True, action="append", metavar="DIR", help="repeat for each"),
    option("--how", required=True, help="stack, average, cat, linear, ties, dare or dare_ties"),
    option("--weight", type=float, action="append",
           help="of each run (default: 1 for cat, else 1 / n)"),
    option("--rank", type=int, help="of the LoRA that holds the result"),
    option("--density", type=float, default=0.5, help="share of entries that is kept"),
    option("--seed", type=int, default=0, help="of the entries that dare drops"),
    _NEW_RUN,
  ), "out"),
  "extract": Command(_extract, "make a LoRA of a fine-tuned checkpoint and its base", (
    _CONFIG,
    option("--checkpoint", required=True, metavar="DIR", help="the fine-tuned model"),
    option("--rank", type=int, required=True),
    _NEW_RUN,
  ), "out"),
  "ranks": Command(_ranks, "judge a trained LoRA cut to lower ranks", (
    _WORKDIR,
    option("--rank", type=int, action="append", required=True, help="may be repeated"),
    option("--out", metavar="DIR", help="where the cut runs are kept, as DIR/rank=N"),
  ), "out"),
  "knockout": Command(_knockout, "judge a stack without each of its methods", (_WORKDIR,)),
  "methods": Command(_methods, "list the methods, their options and what they combine with"),
  "data": Command(_data, "show a config's data as the model sees it", (
    _CONFIG,
    option("action", choices=["show"]),
    option("--count", type=int, default=3, help="examples of each split"),
  )),
  "templates": Command(_templates, "list the library of prompt templates"),
  "plan": Command(_plan, "print groups, targets, memory and FLOPs; trains nothing", (
    _CONFIG, _MOST_TRIALS,
  )),
}
# fmt: on
