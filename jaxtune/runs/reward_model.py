"""A finished reward model as the reward of a policy's answers, "model:FOLDER" in a config.

It reads them as it was trained: after their prompt as a text, or, if it was trained on
conversations, as the last turn of one, in its own chat template. A prompt that is no conversation
is then the turn of a user.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from jaxtune import peft
from jaxtune.data import conversations
from jaxtune.data.encode import pairs
from jaxtune.data.options import EncodeOptions
from jaxtune.data.padding import pad
from jaxtune.data.templates import Example
from jaxtune.errors import UserError
from jaxtune.evaluation import rewards
from jaxtune.runs import finished, results
from jaxtune.training import step

PAD_TO = 32  # tokens; every width is a program of its own


def find(names: Sequence[str]) -> dict[str, rewards.Function]:
  """Returns the functions of those names that are reward models.

  Raises:
    UserError: a folder without a finished run, or with one that is no reward model.
  """
  models = [name for name in names if name.startswith(rewards.MODEL)]
  folders = {name: Path(name.removeprefix(rewards.MODEL)) for name in models}
  return {name: _loaded(str(folder.resolve())) for name, folder in folders.items()}


@functools.lru_cache(maxsize=4)  # training and judging read the same model
def _loaded(folder: str) -> rewards.Function:
  """Loads a reward model; returns (answers) -> the reward of each."""
  run = finished.load_run(folder)
  name, c = run.config["objective"]["name"], run.pretrained.model.config
  if name != "reward":
    raise UserError(f"{folder} was trained by objective {name!r}, expected a reward model")
  tokenizer = run.pretrained.tokenizer
  most = c.positions - sum(m.positions for m in run.adapted.methods)
  options = EncodeOptions(
    most, too_long="truncate", no_target="keep", special_tokens="allow",
    chat_template=run.config["data"]["chat_template"],
  )  # fmt: skip
  result = results.read(run.folder)
  if not result:
    raise UserError(
      f"{folder} has no result.json, which says how its texts were written: expected a run that "
      "was trained, not one that was composed, cut or imported"
    )
  report = result.get("data", {})
  parts = [report, *report.get("tasks", {}).values()]  # of a mixture
  seen = [one.get("splits", {}).get("train") or {} for one in parts]
  example = _turn if any("chat_template" in one for one in seen) else _text

  @jax.jit
  def score(overlay, base, inputs):
    adapted = peft.Adapted(run.adapted.methods, *overlay, base)
    return peft.apply(run.pretrained.model, adapted, **inputs)

  def reward(answers: rewards.Answers) -> np.ndarray:
    said = zip(answers.prompts, answers.completions, answers.rows, strict=True)
    examples = [example(*one, f"answer {n}") for n, one in enumerate(said)]
    split, _ = pairs.encode_answers(tokenizer, examples, options, two_texts=True)
    width = min(-(-split.width // PAD_TO) * PAD_TO, most)
    inputs = {
      key: pad(x, width, dtype=x.dtype) for key, x in split.arrays.items() if key in step.INPUTS
    }
    return np.asarray(score(run.adapted.overlay, run.adapted.base, inputs))

  return reward


def _text(prompt: str, answer: str, row: dict, where: str) -> Example:
  del row
  return Example(prompt, [answer], {}, where)


def _turn(prompt: str, answer: str, row: dict, where: str) -> Example:
  """Returns the conversation that a prompt and its answer make."""
  before = [{"role": "user", "content": prompt}]
  if conversations.column(tuple(row)):
    # Without the answer that the data may have.
    before, _ = conversations.parted(conversations.turns(row, answered=None))
  turns = [*before, {"role": "assistant", "content": answer}]
  return Example(prompt, [answer], row | {"messages": turns}, where, conversation=True)
