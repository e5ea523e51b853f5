"""The command line: `jaxtune COMMAND`; each command is a thin shell over a function of `api`."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from pathlib import Path

import jaxtune
from jaxtune.api import printing
from jaxtune.errors import UserError
from jaxtune.runs import locks


def main(arguments: list[str] | None = None) -> int:
  """Runs one command.

  Returns:
    The exit code: 2 for a user's mistake, which ends in one line on stderr; 130 where the user
    interrupts it; 1 for a training that diverged, whose result is written all the same; else 0.
  """
  logging.getLogger("absl").setLevel(logging.CRITICAL)  # what it logs is also raised
  os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
  os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # that there is no PyTorch is no news
  try:
    code = _run(sys.argv[1:] if arguments is None else arguments)
    sys.stdout.flush()
    return code
  except UserError as error:
    print(f"jaxtune: {' '.join(str(error).split())}", file=sys.stderr)
    return 2
  except Exception as error:  # other mistakes are jaxtune's own, and keep their trace
    if not isinstance(error, MemoryError) and "RESOURCE_EXHAUSTED" not in str(error):
      raise
    said = f" ({str(error).splitlines()[0]})" if str(error) else ""
    print(f"jaxtune: out of memory{said}: try a smaller batch_size", file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    print("jaxtune: interrupted", file=sys.stderr)
    return 130
  except BrokenPipeError:  # the reader, such as `head`, has read enough
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _run(arguments: list[str]) -> int:
  for argument in arguments:
    if argument.encode(errors="replace").decode() != argument:
      raise UserError(f"the argument {argument!r} is not UTF-8 text")
  options, rest = parser().parse_known_args(arguments)
  written = options.workdir if options.command in (_train, _sweep) else vars(options).get("out")
  if written is not None:
    locks.check_writable(written)
  return options.command(options, rest) or 0


class _Parser(argparse.ArgumentParser):
  """Ends a mistake in one line, as every other."""

  def error(self, message):
    raise UserError(f"{message} (`{self.prog} --help` lists what there is)")


def parser() -> argparse.ArgumentParser:
  """Declares every command and its options."""
  top = _Parser(
    prog="jaxtune", description="Fine-tune language models in JAX, and compare how.",
    epilog="Any config key can be set with --config.section.key=value.",
  )  # fmt: skip
  commands = top.add_subparsers(required=True, metavar="COMMAND")

  def command(name, function, text, config=False, workdir=False):
    sub = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
    sub.set_defaults(command=function)
    if config:
      sub.add_argument("--config", required=True, metavar="FILE[:ARG]", help="a config file")
    if workdir:
      sub.add_argument("--workdir", required=True, metavar="DIR", help="the run's folder")
    return sub

  command("train", _train, "train one configuration", True, True)
  sub = command("sweep", _sweep, "train every trial of config.sweep and compare", True, True)
  sub.add_argument("--metric", help="what the report is sorted by (default: test loss)")
  _add_most_trials(sub)
  command("evaluate", _evaluate, "judge a finished run and its untuned base", workdir=True)
  sub = command("generate", _generate, "continue prompts with a finished run, or with several")
  sub.add_argument("--workdir", required=True, action="append", metavar="DIR",
                   help="the run's folder; may be repeated for runs over one base")  # fmt: skip
  sub.add_argument("--which", type=int, action="append", metavar="N",
                   help="of several runs, the one (from 0) that each prompt is for")  # fmt: skip
  sub.add_argument("--prompt", action="append", default=[], help="a text; may be repeated")
  sub.add_argument("--row", action="append", default=[], metavar="JSON",
                   help="columns for the run's own template; may be repeated")  # fmt: skip
  sub.add_argument("--task", help="of a mixture, the task by whose template rows are read")
  sub.add_argument("--max-new-tokens", type=int, default=64)
  sub.add_argument("--temperature", type=float, default=0.0, help="0 is greedy")
  sub.add_argument("--top-k", type=int)
  sub.add_argument("--top-p", type=float)
  sub.add_argument("--seed", type=int, default=0)
  sub = command("export", _export, "write a finished run for PyTorch", workdir=True)
  sub.add_argument("--out", required=True, metavar="DIR", help="where the export goes")
  sub.add_argument("--format", default="auto", help="auto, peft, adapterhub or merged")
  sub.add_argument("--dtype", default="float32", help="of merged weights: float32 or bfloat16")
  sub.add_argument("--certify", action="store_true", help="reload in PyTorch, compare the logits")
  sub = command("import", _import, "turn PEFT's or AdapterHub's adapter into a run", True)
  sub.add_argument("--adapter", required=True, metavar="DIR", help="the adapter's folder")
  sub.add_argument("--out", required=True, metavar="DIR", help="the new run's folder")
  sub = command("compose", _compose, "make one adapter of several")
  sub.add_argument("--run", required=True, action="append", metavar="DIR", help="repeat for each")
  sub.add_argument("--how", required=True,
                   help="stack, average, cat, linear, ties, dare or dare_ties")  # fmt: skip
  sub.add_argument("--weight", type=float, action="append",
                   help="of each run (default: 1 for cat, else 1 / n)")  # fmt: skip
  sub.add_argument("--rank", type=int, help="of the LoRA that holds the result")
  sub.add_argument("--density", type=float, default=0.5, help="share of entries that is kept")
  sub.add_argument("--seed", type=int, default=0, help="of the entries that dare drops")
  sub.add_argument("--out", required=True, metavar="DIR", help="the new run's folder")
  sub = command("extract", _extract, "make a LoRA of a fine-tuned checkpoint and its base", True)
  sub.add_argument("--checkpoint", required=True, metavar="DIR", help="the fine-tuned model")
  sub.add_argument("--rank", type=int, required=True)
  sub.add_argument("--out", required=True, metavar="DIR", help="the new run's folder")
  sub = command("ranks", _ranks, "judge a trained LoRA cut to lower ranks", workdir=True)
  sub.add_argument("--rank", type=int, action="append", required=True, help="may be repeated")
  sub.add_argument("--out", metavar="DIR", help="where the cut runs are kept, as DIR/rank=N")
  command("knockout", _knockout, "judge a stack without each of its methods", workdir=True)
  command("methods", _methods, "list the methods, their options and what they combine with")
  sub = command("data", _data, "show a config's data as the model sees it", True)
  sub.add_argument("action", choices=["show"])
  sub.add_argument("--count", type=int, default=3, help="examples of each split")
  command("templates", _templates, "list the library of prompt templates")
  _add_most_trials(
    command("plan", _plan, "print groups, targets, memory and FLOPs; trains nothing", True)
  )
  return top


def _add_most_trials(sub: argparse.ArgumentParser) -> None:
  help = "confirms a sweep of up to N trials (default: 1000)"
  sub.add_argument("--most-trials", type=int, default=1000, metavar="N", help=help)


def _config(options, rest):
  from jaxtune import config

  return config.load_config(options.config, config.parse_overrides(rest))


def _train(options, rest):
  from jaxtune.runs import results

  result = jaxtune.fit(_config(options, rest), options.workdir)
  printing.change(result)
  print(f"result: {options.workdir}/result.json")
  if results.diverged(result):
    at = result["diverged_at"]
    when = "its final metrics are not finite" if at is None else f"not finite at step {at}"
    print(
      f"jaxtune: training diverged: {when}. A lower optim.learning_rate or optim.clip, or more "
      "optim.warmup, may help",
      file=sys.stderr,
    )
    return 1


def _sweep(options, rest):

  jaxtune.sweep(_config(options, rest), options.workdir, options.metric, options.most_trials)
  report = Path(options.workdir, "report.md").read_text()
  print("\n".join(line for line in report.splitlines() if line.startswith("|")))
  print(f"report: {options.workdir}/report.html")


def _evaluate(options, rest):
  from jaxtune import config

  printing.change(jaxtune.evaluate(jaxtune.load_run(options.workdir), config.parse_overrides(rest)))


def _generate(options, rest):

  _none(rest)
  prompts = options.prompt or [_row(text) for text in options.row]
  if not prompts or (options.prompt and options.row):
    raise UserError("give either --prompt TEXT or --row JSON")
  texts = jaxtune.complete(
    jaxtune.load_runs(options.workdir), prompts, which=options.which, task=options.task,
    max_new_tokens=options.max_new_tokens, temperature=options.temperature, top_k=options.top_k,
    top_p=options.top_p, seed=options.seed,
  )  # fmt: skip
  for prompt, text in zip(prompts, texts, strict=True):
    print(json.dumps({"prompt": prompt, "completion": text}, ensure_ascii=False))


def _row(text: str) -> dict:
  from jaxtune import schema

  row = schema.parse_json(text, "--row")
  schema.check("--row", row, dict)
  return row


def _export(options, rest):

  _none(rest)
  run = jaxtune.load_run(options.workdir)
  done = jaxtune.export_run(
    run, options.out, format=options.format, dtype=options.dtype, certify=options.certify
  )
  print(f"exported {run.folder} to {done.folder} ({done.format})")
  if done.rounding is not None and done.rounding.overall.error:
    print(
      f"relative error of the rounding to {done.rounding.dtype}: {done.rounding.overall.error:.2e}"
    )
  if done.certificate is not None:
    print(f"certified: largest logit difference {done.certificate['largest_logit_difference']:.1e}")
  else:
    print("add --certify to reload it in PyTorch and compare the logits")


def _import(options, rest):

  run = jaxtune.import_adapter(_config(options, rest), options.adapter, options.out)
  print(f"imported {run.config['method']['name']} to {options.out}")


def _compose(options, rest):

  _none(rest)
  kept = jaxtune.compose_runs(
    jaxtune.load_runs(options.run), options.out, options.how, weights=options.weight,
    rank=options.rank, density=options.density, seed=options.seed,
  )  # fmt: skip
  printing.kept(kept)
  print(f"composed {len(options.run)} adapters in {options.out}")


def _extract(options, rest):

  printing.kept(
    jaxtune.extract(_config(options, rest), options.checkpoint, options.rank, options.out)
  )
  print(f"extracted a LoRA to {options.out}")


def _ranks(options, rest):
  from jaxtune import config

  run = jaxtune.load_run(options.workdir)
  printing.table(
    jaxtune.judge_ranks(run, options.rank, config.parse_overrides(rest), options.out), "rank"
  )


def _knockout(options, rest):
  from jaxtune import config

  run = jaxtune.load_run(options.workdir)
  printing.table(jaxtune.knock_out(run, config.parse_overrides(rest)), "methods")


def _methods(options, rest):
  from jaxtune.api import methods

  _none(rest)
  print(methods.text())


def _plan(options, rest):

  print(jaxtune.plan(_config(options, rest), options.most_trials))


def _data(options, rest):

  print(jaxtune.show(_config(options, rest), options.count))


def _templates(options, rest):
  from jaxtune.data import templates

  _none(rest)
  for row in templates.rows():
    columns = ", ".join(row["columns"])
    print(f"{row['name']:28} {row['clarity'] or '-':10} {columns}")


def _none(rest: list[str]) -> None:
  if rest:
    raise UserError(f"unknown argument {rest[0]!r}")


if __name__ == "__main__":
  sys.exit(main())
