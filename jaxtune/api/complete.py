"""Generates text with finished runs: with one adapter, or with several in one batch."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree

from jaxtune import data, peft, schema
from jaxtune.compose import mixed
from jaxtune.errors import UserError, nearest
from jaxtune.evaluation import generate, sampling, texts
from jaxtune.runs import results
from jaxtune.runs.finished import Run
from jaxtune.runs.trial import objective_of

ROWS = 64  # texts that are continued at a time


def complete(
  run: Run | Sequence[Run],
  prompts: list[str] | list[dict],
  *,
  which: Sequence[int] | None = None,
  task: str | None = None,
  max_new_tokens: int = 64,
  temperature: float = 0.0,
  top_k: int | None = None,
  top_p: float | None = None,
  seed: schema.Seed = 0,
) -> list[str]:
  """Continues texts with a finished run's model, up to its stop token.

  Args:
    run: a run, or several over one base, whose adapters answer in one batch.
    which: of several runs, the number of the one that answers each prompt, from 0.
    prompts: rows such as {"instruction": ..., "input": ...}, which become prompts by the template
      that the run was trained with; conversations, {"messages": [...]}, with "tools" or without,
      by the chat template; or texts to be continued as they stand.
    task: of a mixture, the task by whose template rows become prompts.
    max_new_tokens: the most tokens of a continuation.
    temperature: 0 is greedy; with more, `top_k` and `top_p` restrict the draw.
    top_k: how many of the likeliest tokens are drawn from; None for all.
    top_p: the likeliest tokens that have this probability together are drawn from; None for all.
    seed: of the draw.

  Returns:
    A continuation of each prompt, in their order, without the stop token.
  """
  if isinstance(prompts, (str, dict)):
    raise UserError(f"prompts are {schema.shown(prompts)}, expected a list of them")
  runs = [run] if isinstance(run, Run) else list(run)
  run = runs[0]
  c, tokenizer = run.pretrained.model.config, run.pretrained.tokenizer
  check_options(
    len(runs), len(prompts), which=which, max_new_tokens=max_new_tokens, temperature=temperature,
    top_k=top_k, top_p=top_p, seed=seed, vocabulary=c.vocabulary,
  )  # fmt: skip
  _check_together(runs)
  if len(runs) == 1:
    adapted, which_N, writers = run.adapted, None, runs * len(prompts)
    ids = encode(run, prompts, task)
  else:
    adapted, which_N = mixed.together(runs), jnp.asarray(which)
    writers = [runs[i] for i in which]
    ids = [encode(by, [one], task)[0] for by, one in zip(writers, prompts, strict=True)]
  if not ids or not all(ids):
    raise UserError("a prompt is empty, or there is none: expected at least one token to continue")
  data.ids.check(tokenizer, ids, c.vocabulary, [f"prompt {n + 1}" for n in range(len(ids))])
  _check_room(runs, max(map(len, ids)), max_new_tokens)
  rows = min(len(ids), ROWS)
  call = _program(
    run, adapted, which_N, rows=rows, max_new_tokens=max_new_tokens, temperature=temperature,
    top_k=top_k, top_p=top_p, key=jax.random.key(seed),
  )  # fmt: skip
  (made,) = texts.complete(call, [ids], rows, run.stop_tokens)
  return [by.pretrained.tokenizer.decode(one) for by, one in zip(writers, made, strict=True)]


def _program(
  run: Run, adapted: peft.Adapted, which_N: Int[Array, " N"] | None, **options: Any
) -> Callable:
  """Returns the compiled call that `texts.complete` makes, for a single trial."""

  @jax.jit
  def go(overlay: peft.Overlay, base: PyTree, batch: dict) -> Array:
    one = jax.tree.map(lambda x: x[0], batch)
    return generate.generate(
      run.pretrained.model, peft.Adapted(adapted.methods, *overlay, base), one["tokens"],
      one["mask"], count=one["count"], numbers_N=one["numbers"], stop_tokens=run.stop_tokens,
      which_N=None if which_N is None else which_N[one["numbers"]], **options,
    )[None]  # fmt: skip

  return partial(go, adapted.overlay, adapted.base)


def check_writes(run: Run) -> None:
  """Raises UserError for a run whose model writes no text."""
  if objective_of(run.config).HEAD != "lm":
    raise UserError(
      f"{run.folder} was trained for {run.config['objective']['name']}: it writes no text; "
      "`jaxtune evaluate` judges it"
    )


def room(runs: list[Run], max_new_tokens: int) -> int:
  """Returns how many tokens a prompt may have, so that the model has positions for a completion."""
  c = runs[0].pretrained.model.config
  prefix = max(sum(method.positions for method in run.adapted.methods) for run in runs)
  # The halves of an encoder-decoder place prompt and completion each for itself.
  if c.encoder is None:
    return c.positions - prefix - max_new_tokens
  return c.positions - prefix if max_new_tokens + prefix <= c.positions else 0


def _check_room(runs: list[Run], longest: int, max_new_tokens: int) -> None:
  """Raises UserError unless the model has positions for a prompt and its completion."""
  if longest > room(runs, max_new_tokens):
    prefix = max(sum(method.positions for method in run.adapted.methods) for run in runs)
    positions = runs[0].pretrained.model.config.positions
    raise UserError(
      f"a prompt of {longest} tokens, a completion of {max_new_tokens} and a prefix of {prefix} "
      f"exceed the model's {positions} positions"
    )


def check_options(
  runs: int,
  prompts: int,
  *,
  which: Sequence[int] | None,
  seed: int,
  vocabulary: int | None = None,
  **sampled: Any,
) -> None:
  """Raises UserError unless `complete` takes these options, whatever the runs and prompts are.

  Args:
    runs, prompts: how many there are.
    vocabulary: the size of the models'; None before they are loaded.
    sampled: further arguments of `sampling.check_options`.
  """
  schema.check_arguments(complete, {"seed": seed})
  sampling.check_options(vocabulary, **sampled)
  if which is None and runs == 1:
    return
  if which is None or len(which) != prompts or not all(0 <= i < runs for i in which):
    raise UserError(
      f"which is {which}: expected for each of the {prompts} prompts a number from 0 to "
      f"{runs - 1}, that of its run, such as --which 0"
    )


def _check_together(runs: list[Run]) -> None:
  """Raises UserError unless the runs write text by one architecture, and end it alike."""
  check_writes(runs[0])
  if any(run.stop_tokens != runs[0].stop_tokens for run in runs):
    raise UserError("the runs end their answers with different tokens: complete them one by one")
  if any(run.pretrained.hf_config != runs[0].pretrained.hf_config for run in runs):
    raise UserError("the runs' bases differ in config.json: complete them one by one")


def encode(run: Run, prompts: list, task: str | None = None) -> list[list[int]]:
  """Renders prompts as `complete` does, and tokenises them; the arguments are its own."""
  o, texts = _render(run, prompts, task)
  tokenizer = run.pretrained.tokenizer
  if texts is None:
    return data.chat.prompts(tokenizer, prompts, o["chat_template"])
  whole = run.pretrained.model.config.encoder is not None
  return data.encode_prompts(tokenizer, texts, whole, o.get("special_tokens", "error"))


def worded(run: Run, prompts: list, task: str | None = None) -> list[str] | None:
  """Returns the texts that prompts become; None for conversations."""
  return _render(run, prompts, task)[1]


def _render(run: Run, prompts: list, task: str | None) -> tuple[dict, list[str] | None]:
  """Returns the options of data that prompts are read by, and their texts by the run's template.

  The texts are None where all are conversations, which the chat template renders.
  """
  for prompt in prompts:
    if not isinstance(prompt, str | dict):
      raise UserError(f"the prompt {prompt!r} is neither a text nor an object of columns")
    written = json.dumps(prompt, ensure_ascii=False, default=str)
    data.cells.check_characters(f"the prompt {schema.shown(prompt)}", written)
  given = all(isinstance(prompt, str) for prompt in prompts)
  o = run.config["data"]
  o = o if given and task is None else _of_task(run, o, task)
  spoken = [isinstance(one, dict) and data.conversations.column(one) for one in prompts]
  if prompts and all(spoken) and o["template"] is None:
    return o, None
  rows = [{"prompt": prompt} if isinstance(prompt, str) else prompt for prompt in prompts]
  return o, data.render_prompts(rows, **({} if given else _form(run, o, rows, task)))


def _form(run: Run, o: dict, rows: list[dict], task: str | None) -> dict[str, Any]:
  """Returns how a run's own data were read, as the arguments of `render_prompts`.

  The result holds the template itself, which a file may have lost since. Where the columns of the
  data chose it, rows that lack them are read by their own columns.
  """
  form = {name: o[name] for name in ("template", "rename", "choices")}
  report = results.read(run.folder).get("data", {})
  report = report if task is None else report.get("tasks", {}).get(task, {})
  formats = report.get("format") or {}
  used = (next(iter(formats.values()), None) or {}).get("templates")  # train's, where it is there
  if not used:
    return form
  own = data.templates.Template(**used[0])
  if o["template"] is None:
    needed = own._replace(answer=data.templates.BLANK).columns
    if own.prompt is None or not all(needed <= row.keys() for row in rows):
      return form
  return form | {"template": own, "choices": None}


def has_task(run: Run, task: str | None) -> bool:
  """Says whether a run was trained on a mixture of files that has this task."""
  tasks = run.config["data"].get("tasks")
  return isinstance(tasks, dict) and task in tasks


def _of_task(run: Run, o: dict, task: str | None) -> dict:
  """Returns the options of data by which a row is read: in a mixture of files, those of a task."""
  tasks = o.get("tasks") if isinstance(o.get("tasks"), dict) else {}
  if task in tasks:
    return o | tasks[task]
  if task is None and not tasks:
    return o
  if not tasks:
    raise UserError(f"task is {task!r}, but {run.folder} was not trained on data.tasks of files")
  known = ", ".join(tasks)
  if task is None:
    raise UserError(
      f"{run.folder} reads each task's rows by options of its own: say by task which: {known}"
    )
  raise UserError(f"task is {task!r}, which {run.folder} does not have; {nearest(task, tasks)}")
