"""The command line: `jaxtune COMMAND`. `api.commands` holds the commands themselves."""

from __future__ import annotations

import argparse
import os
import sys
from typing import NoReturn

from jaxtune import config, hosts, libraries
from jaxtune.api.commands import COMMANDS
from jaxtune.errors import UserError, nearest
from jaxtune.runs import locks


def main(arguments: list[str] | None = None) -> int:
  """Runs one command.

  Returns:
    The exit code: 2 for a user's mistake, or a file that cannot be read, which is printed in one
    line on stderr; 130 if the user interrupts the command; 1 if training diverged, although its
    result is written; else 0. A process that ends because another one of its run has ended has
    another code than 0.
  """
  libraries.quieten()
  given = sys.argv[1:] if arguments is None else arguments
  try:
    code = _run(given)
    sys.stdout.flush()
    return code
  except UserError as error:
    print(f"jaxtune: {' '.join(str(error).split())}", file=sys.stderr)
    return hosts.end(2)
  except BrokenPipeError:  # the program that reads the output, such as `head`, has ended
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0
  except Exception as error:  # any other error is a bug of jaxtune: its traceback is shown
    if hosts.lost(error):
      hosts.end(3, error)
    if isinstance(error, OSError) and error.filename is not None:  # a folder of somebody else, say
      print(f"jaxtune: {error.filename}: {error.strerror}", file=sys.stderr)
      return hosts.end(2)
    if not isinstance(error, MemoryError) and "RESOURCE_EXHAUSTED" not in str(error):
      raise
    reason = f" ({str(error).splitlines()[0]})" if str(error) else ""
    print(f"jaxtune: out of memory{reason}: try a smaller batch_size", file=sys.stderr)
    return hosts.end(2)
  except KeyboardInterrupt:
    goes_on = given[:1] in (["train"], ["sweep"])
    said = "; the same command goes on from the last checkpoint" if goes_on else ""
    print(f"jaxtune: interrupted{said}", file=sys.stderr)
    return hosts.end(130)


def parser() -> argparse.ArgumentParser:
  """Makes the parser of every command and its options."""
  top = _Parser(
    prog="jaxtune", description="Fine-tune language models in JAX, and compare how.",
    epilog="Any config key can be set with --config.section.key=value.",
  )  # fmt: skip
  commands = top.add_subparsers(required=True, metavar="COMMAND")
  for name, command in COMMANDS.items():
    says = {"help": command.help, "description": command.help}
    sub = commands.add_parser(name, allow_abbrev=False, **says)
    sub.set_defaults(command=command)
    for option, settings in command.options.items():
      sub.add_argument(option, **settings)
  return top


class _Parser(argparse.ArgumentParser):
  """Turns a mistake into a UserError."""

  def error(self, message: str) -> NoReturn:
    raise UserError(f"{message} (`{self.prog} --help` lists what there is)")


def _run(arguments: list[str]) -> int:
  for argument in arguments:
    if argument.encode(errors="replace").decode() != argument:
      raise UserError(f"the argument {argument!r} is not UTF-8 text")
  if arguments and not arguments[0].startswith("-") and arguments[0] not in COMMANDS:
    raise UserError(f"unknown command {arguments[0]!r}; {nearest(arguments[0], COMMANDS)}")
  options, rest = parser().parse_known_args(arguments)
  command = options.command
  unknown = [one for one in rest if not (command.configurable and one.startswith("--config."))]
  if unknown:
    overrides = ["--config.SECTION.KEY=VALUE"] * command.configurable
    choices = nearest(unknown[0].partition("=")[0], [*command.options, *overrides])
    raise UserError(f"unknown argument {unknown[0]!r}; {choices}")
  options.overrides = config.parse_overrides(rest)
  if "--coordinator" in command.options:
    hosts.join(options.coordinator, options.processes, options.process)
  folder = vars(options).get(command.writes or "")
  if folder is not None:
    locks.check_writable(folder)
  return command.run(options) or 0


if __name__ == "__main__":
  sys.exit(main())
