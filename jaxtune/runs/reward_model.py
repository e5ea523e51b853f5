"""A finished reward model as the reward of a policy's answers, "model:FOLDER" in a config.

It reads them as it was trained: after their prompt as a text, or, if it was trained on
conversations, as the last turn of one, in its own chat template. A prompt that is no conversation
is then the turn of a user.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping, Sequence

import jax
import numpy as np

from jaxtune import peft
from jaxtune.data import Split, conversations, wording
from jaxtune.data.encode import pairs
from jaxtune.data.options import EncodeOptions
from jaxtune.data.padding import pad
from jaxtune.data.templates import Example
from jaxtune.errors import UserError
from jaxtune.evaluation import rewards
from jaxtune.files import expanded
from jaxtune.runs import finished, results
from jaxtune.training import step

PAD_TO = 32  # tokens; every width is a program of its own
STANDS_IN = "a"  # for an empty answer, which no conversation can have, until its tokens are there


def find(names: Sequence[str]) -> dict[str, rewards.Function]:
  """Returns the functions of those names that are reward models.

  Raises:
    UserError: a folder without a finished run, or with one that is no reward model.
  """
  found = {}
  for name in (name for name in names if name.startswith(rewards.MODEL)):
    given = expanded(name.removeprefix(rewards.MODEL))
    folder = results.best_trial(given.resolve())
    results.check_files(folder, results.read(folder), ("tuned.safetensors",))
    found[name] = _loaded(str(folder), (folder / "tuned.safetensors").stat().st_mtime_ns)
  return found


@functools.lru_cache(maxsize=4)  # training and judging read the same model
def _loaded(folder: str, written: int) -> rewards.Function:
  """Loads a reward model as it was `written` last; returns (answers) -> the reward of each."""
  del written
  run = finished.load_run(folder)
  name, c = run.config["objective"]["name"], run.pretrained.model.config
  if name != "reward":
    raise UserError(f"{folder} was trained by objective {name!r}, expected a reward model")
  tokenizer = run.pretrained.tokenizer
  most = c.positions - sum(m.positions for m in run.adapted.methods)
  spoken, template = _wording(run)
  options = EncodeOptions(
    most, too_long="truncate", no_target="keep", special_tokens="allow", chat_template=template
  )
  example, rows = _turn if spoken else _text, run.config["evaluate"]["batch_size"]
  marks = {*wording.special(tokenizer).values()}

  @jax.jit
  def score(overlay, base, inputs):
    adapted = peft.Adapted(run.adapted.methods, *overlay, base)
    return peft.apply(run.pretrained.model, adapted, **inputs)

  def reward(answers: rewards.Answers) -> np.ndarray:
    texts = list(zip(answers.prompts, answers.completions, strict=True))
    if spoken:
      texts = [(prompt, _unmarked(text, marks)) for prompt, text in texts]
    said = zip(texts if spoken else answers.exact or texts, answers.rows, strict=True)
    examples = [example(*two, row, f"answer {n}") for n, (two, row) in enumerate(said)]
    split, _ = pairs.encode_answers(tokenizer, examples, options, two_texts=True)
    arrays = split.arrays
    if spoken:
      arrays = arrays | _emptied(split, np.array([not text.strip() for _, text in texts]))
    width = min(-(-split.width // PAD_TO) * PAD_TO, most)
    inputs = {key: pad(x, width, dtype=x.dtype) for key, x in arrays.items() if key in step.INPUTS}
    found, count = [], len(examples)
    for first in range(0, count, rows):  # the last row fills the last batch up
      batch = np.minimum(np.arange(first, first + rows), count - 1)
      some = {key: x[batch] for key, x in inputs.items()}
      found.append(score(run.adapted.overlay, run.adapted.base, some))
    return np.concatenate(found)[:count]

  return reward


def _unmarked(text: str, marks: Collection[str]) -> str:
  """Takes out special tokens that an answer spells in letters, as no turn may hold them."""
  while held := [mark for mark in marks if mark in text]:
    text = text.replace(held[0], "")
  return text


def _wording(run: finished.Run) -> tuple[bool, str | None]:
  """Returns whether a reward model was trained on conversations, and by which chat template."""
  result, data = results.read(run.folder), run.config["data"]
  if not result:
    raise UserError(
      f"{run.folder} has no result.json, which says how its texts were written: expected a run "
      "that was trained, not one that was composed, cut or imported"
    )
  report = result.get("data", {})
  parts = report.get("tasks") or {"": report}
  of_train = {name: one.get("splits", {}).get("train") or {} for name, one in parts.items()}
  spoken = [name for name, one in of_train.items() if "chat_template" in one]
  tasks = data["tasks"] if isinstance(data["tasks"], Mapping) else {}
  used = {tasks.get(name, {}).get("chat_template", data["chat_template"]) for name in spoken}
  if len(used) > 1:
    raise UserError(
      f"{run.folder} was trained on tasks with {len(used)} chat templates, expected one for all: "
      "it is not known of which task an answer is"
    )
  return bool(spoken), next(iter(used), None)


def _text(prompt: str, answer: str, row: dict, where: str) -> Example:
  del row
  return Example(prompt, [answer], {}, where)


def _turn(prompt: str, answer: str, row: dict, where: str) -> Example:
  """Returns the conversation that a prompt and its answer make."""
  before = [{"role": "user", "content": prompt}]
  if conversations.column(tuple(row)):
    # Without the answer that the data may have.
    before, _ = conversations.parted(conversations.turns(row, answered=None))
  turns = [*before, {"role": "assistant", "content": answer.strip() or STANDS_IN}]
  return Example(prompt, [answer], row | {"messages": turns}, where, conversation=True)


def _emptied(split: Split, empty_N: np.ndarray) -> dict[str, np.ndarray]:
  """Returns tokens and mask without `STANDS_IN`: what begins a turn, and what ends it."""
  tokens_NT, mask_NT = split.arrays["tokens"].copy(), split.arrays["mask"].copy()
  for n in np.flatnonzero(empty_N):
    at_T, trained = np.arange(split.width), np.flatnonzero(split.arrays["weights"][n])
    stop = trained.max(initial=0)
    keep_T = mask_NT[n] & ((at_T < len(split.prompts[n])) | (at_T >= stop))
    order_T = np.argsort(~keep_T, stable=True)
    tokens_NT[n], mask_NT[n] = tokens_NT[n, order_T], keep_T[order_T]
  return {"tokens": tokens_NT, "mask": mask_NT}
