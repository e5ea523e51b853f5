"""Supervised tuning, a reward model, and policies that learn from it, on the bundled base.

  python experiments/feedback/run.py runs/feedback
  python experiments/feedback/run.py --tiny runs/feedback   # little of all, to try the script

Pairs of titles are drawn from the supervised model. Which of two is chosen is drawn too, with
probability sigmoid(8 * difference of their true worth), as people would choose who are often but
not always right. The true worth of an answer is computed by rewards.py; no method learns
from it, it is only reported. Stages that are finished are not repeated. Writes results.json and
README.md, which is notes.md followed by the tables.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
from pathlib import Path

import jax
import numpy as np
from scipy.stats import t as student
from scipy.stats import ttest_ind

import jaxtune
from jaxtune import data, peft
from jaxtune.assets import instructions
from jaxtune.data import padding, templates
from jaxtune.evaluation import rewards
from jaxtune.evaluation.texts import pad_left
from jaxtune.objectives import grpo
from jaxtune.runs import reward_model
from jaxtune.runs.finished import Run

HERE = Path(__file__).resolve().parent
CONFIG = HERE.parents[1] / "configs" / "feedback.py"
POLICIES = ("sft_more", "dpo", "kto", "orpo", "grpo", "ppo", "grpo_others")
SHARPNESS = 8.0
SAMPLES = 8  # of best-of-n, and of the estimate of the divergence
NEW_TOKENS = 24
TINY_ROWS, TINY_SEEDS = 32, 2  # reviews of each file, and seeds, with --tiny


def module(path: Path):
  spec = importlib.util.spec_from_file_location(path.stem, path)
  found = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(found)
  return found


truth = module(HERE / "rewards.py")


def stage(name: str, folder: Path, steps: int | None) -> list[dict]:
  """Runs a stage's sweep, or goes on with it; returns its results."""
  changes = {} if steps is None else {"train.steps": steps}
  config = jaxtune.load_config(f"{CONFIG}:{name},{folder}", changes).to_dict()
  if steps is not None:
    config["sweep"] = [axes | {"seed": axes["seed"][:TINY_SEEDS]} for axes in config["sweep"]]
  return jaxtune.sweep(config, folder / name)


def read(path: Path) -> list[dict]:
  return [json.loads(line) for line in path.read_text().splitlines()]


def write(path: Path, rows: list[dict]) -> None:
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def reviews(split: str, *seeds: int) -> list[dict]:
  """Makes reviews with titles, and their stars."""
  rows = [row for seed in seeds for row in instructions.rows(split, seed) if row["task"] == "title"]
  first = lambda output: output if isinstance(output, str) else output[0]
  stars = lambda row: 1 + truth.TONES.index(first(row["output"]).split()[0])
  return [row | {"stars": stars(row)} for row in rows]


def choose_pairs(run: Run, rows: list[dict], seed: int) -> list[dict]:
  """Draws two answers to each prompt and which of them is chosen; equal ones are left out."""
  texts = [
    jaxtune.complete(run, rows, max_new_tokens=NEW_TOKENS, temperature=1.0, seed=seed + side)
    for side in (0, 1)
  ]
  rng, pairs = np.random.default_rng(seed), []
  for row, *two in zip(rows, *texts, strict=True):
    two = [text.strip() for text in two]
    if two[0] == two[1] or not all(two):
      continue
    difference = truth.worth(two[0], row["stars"]) - truth.worth(two[1], row["stars"])
    first = rng.random() < 1 / (1 + math.exp(-SHARPNESS * difference))
    chosen, rejected = two if first else two[::-1]
    asked = {key: row[key] for key in ("instruction", "input")}
    pairs.append(asked | {"chosen": chosen, "rejected": rejected})
  return pairs


def prepare(folder: Path, steps: int | None) -> dict:
  """Makes the data, the supervised model, the pairs of its answers and the reward model.

  Returns the reward model's result.
  """
  folder.mkdir(parents=True, exist_ok=True)
  seeds = {"train": (0,), "prompts": (1, 2, 3), "validation": (0,), "test": range(5)}
  for name, of in seeds.items():
    rows = reviews("train" if name == "prompts" else name, *of)
    write(folder / f"{name}.jsonl", rows if steps is None else rows[:TINY_ROWS])
  (best,) = stage("sft", folder, steps)
  run = jaxtune.load_run(best["folder"])
  if not (folder / "base").exists():
    jaxtune.export_run(run, folder / "base", format="merged")
  if not (folder / "pairs_test.jsonl").exists():
    write(folder / "pairs.jsonl", choose_pairs(run, read(folder / "prompts.jsonl"), 10))
    write(folder / "pairs_test.jsonl", choose_pairs(run, read(folder / "test.jsonl"), 40))
  (judge,) = stage("reward", folder, steps)
  if not (folder / "judge").exists():
    (folder / "judge").symlink_to(Path(judge["folder"]).resolve())
  return judge


def log_probabilities(run: Run, adapted: peft.Adapted, batch: dict) -> np.ndarray:
  """Returns log p of each answer by a model, (N,)."""

  @jax.jit
  def score(overlay, base, batch):
    inputs = {"tokens": batch["tokens"], "mask": batch["mask"]}
    whole = peft.Adapted(adapted.methods, *overlay, base)
    forward = lambda _, **options: peft.apply(run.pretrained.model, whole, **inputs, **options)
    return grpo.observe(forward, batch, 1.0)["policy"].sum((1, 2))

  return np.asarray(score(adapted.overlay, adapted.base, batch))


def divergence(run: Run, rows: list[dict]) -> float:
  """Estimates KL(policy | supervised model) of an answer in nats, from a sample of each prompt."""
  tokenizer, stop = run.pretrained.tokenizer, run.stop_tokens[0]
  texts = jaxtune.complete(run, rows, max_new_tokens=NEW_TOKENS, temperature=1.0, seed=1)
  asked = templates.render_prompts(rows)
  prompts = data.encode_prompts(tokenizer, asked)
  answers = [tokenizer.encode(text, add_special_tokens=False) + [stop] for text in texts]
  tokens, mask = pad_left(prompts, stop, max(map(len, prompts)))
  lengths = np.array(list(map(len, answers)))[:, None]
  real = np.arange(lengths.max()) < lengths
  batch = {
    "tokens": np.concatenate([tokens, padding.pad(answers, lengths.max())], 1),
    "mask": np.concatenate([mask, real], 1),
    "weights": real[:, None].astype(np.float32),
  }
  before = peft.untuned(run.pretrained.params)
  mine, theirs = (log_probabilities(run, one, batch) for one in (run.adapted, before))
  return float((mine - theirs).mean())


def judged(texts: list[str], rows: list[dict], others: list[str]) -> dict[str, float]:
  """Returns the true worth of answers, its parts, and how often they beat others'."""
  stars = [row["stars"] for row in rows]
  of = lambda texts: list(map(truth.worth, texts, stars))
  values = of(texts)
  wins = [(mine > its) + 0.5 * (mine == its) for mine, its in zip(values, of(others), strict=True)]
  tones = list(map(truth.tone, texts, stars))
  return {
    "true reward": float(np.mean(values)),
    "tone": float(np.mean(tones)),
    "words": float(np.mean([len(text.split()) for text in texts])),
    "wins (%)": 100 * float(np.mean(wins)),
  }


def choices(folder: Path, judge: dict) -> str:
  """Writes how many held-out choices the reward model, length and the true worth get right."""
  stars = {row["input"]: row["stars"] for row in read(folder / "test.jsonl")}
  pairs = read(folder / "pairs_test.jsonl")
  worth = lambda pair, side: truth.worth(pair[side], stars[pair["input"]])
  gaps = np.array([worth(pair, "chosen") - worth(pair, "rejected") for pair in pairs])
  model, length = judge["final"]["test_accuracy"], judge["length"]["test_accuracy"]
  right, ties = 100 * np.mean(gaps > 0), 100 * np.mean(gaps == 0)
  return (
    f"Of {len(pairs)} held-out choices the reward model gets {model:.0f} % right, length alone "
    f"{length:.0f} %, and the true worth {right:.0f} %; {ties:.0f} % are between titles of the "
    "same true worth."
  )


def best_of(run: Run, judge: str, rows: list[dict], seed: int) -> list[str]:
  """Draws several answers to each prompt and keeps the one that the reward model likes best."""
  drawn = [
    jaxtune.complete(run, rows, max_new_tokens=NEW_TOKENS, temperature=1.0, seed=100 * seed + n)
    for n in range(SAMPLES)
  ]
  name = f"model:{judge}"
  functions = rewards.make((name,), models=reward_model.find((name,)))
  asked = templates.render_prompts(rows)
  score = lambda texts: rewards.score(
    functions, rewards.Answers(asked, texts, [[]] * len(rows), rows)
  )
  best = np.argmax([score(texts)["reward"] for texts in drawn], 0)
  return [drawn[n][i] for i, n in enumerate(best)]


def label(stage: str, settings: dict) -> str:
  """Names a configuration in the table."""
  weight = f", weight of KL {settings['objective.kl']}" if "objective.kl" in settings else ""
  return f"{stage.removesuffix('_others')}, rank {settings['method.rank']}{weight}"


def measure(folder: Path, stages: dict[str, list[dict]]) -> dict[str, list[dict]]:
  """Judges every run on the test prompts: {method: what each seed scores}.

  Answers are drawn as in training, at temperature 1; "greedy" is the true reward of greedy ones.
  """
  rows = read(folder / "test.jsonl")
  write_answers = lambda run, temperature, seed=0: jaxtune.complete(
    run, rows, max_new_tokens=NEW_TOKENS, temperature=temperature, seed=seed
  )
  sft = jaxtune.load_run(next((folder / "sft").glob("trials/*/result.json")).parent)
  start = [write_answers(sft, 1.0, seed) for seed in range(5)]
  greedy = judged(write_answers(sft, 0.0), rows, start[0])["true reward"]
  found = {"sft": [judged(texts, rows, texts) | {"KL": 0.0, "greedy": greedy} for texts in start]}
  found["best of 8"] = [
    judged(best_of(sft, str(folder / "judge"), rows, seed), rows, start[seed]) for seed in range(5)
  ]
  for name, results in stages.items():
    for result in sorted(results, key=lambda one: one["settings"]["seed"]):
      run, seed = jaxtune.load_run(result["folder"]), result["settings"]["seed"]
      scored = judged(write_answers(run, 1.0, seed), rows, start[seed])
      scored["greedy"] = judged(write_answers(run, 0.0), rows, start[seed])["true reward"]
      scored |= {"KL": divergence(run, rows), "seconds": result["seconds"]}
      found.setdefault(label(name, result["settings"]), []).append(scored)
  return found


def interval(values: list[float]) -> str:
  """Writes a mean with half of its 95 % interval over seeds, by Student's t."""
  if len(set(values)) < 2:  # one model, whose greedy answers are always the same
    return f"{values[0]:.3g}"
  half = student.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values))
  return f"{np.mean(values):.3g} ± {half:.2g}"


def above(scores: list[dict], others: list[dict]) -> str:
  """Writes by how much the true reward is above others', with its 95 % interval by Welch's t."""
  mine, theirs = ([one["true reward"] for one in some] for some in (scores, others))
  interval = ttest_ind(mine, theirs, equal_var=False).confidence_interval(0.95)
  difference = np.mean(mine) - np.mean(theirs)
  return f"{difference:+.3f} ({interval.low:+.3f} to {interval.high:+.3f})"


def table(found: dict[str, list[dict]]) -> str:
  columns = ("true reward", "greedy", "wins (%)", "KL", "tone", "words", "seconds")
  compared = {f"above {name}": name for name in ("sft", "sft_more, rank 8")}
  head = [*columns[:1], *compared, *columns[1:]]
  lines = ["| | " + " | ".join(head) + " |", "| --- |" + " ---: |" * len(head)]
  for name, scores in found.items():
    cells = [interval([s[c] for s in scores]) if c in scores[0] else "" for c in columns]
    cells[1:1] = ["" if name == of else above(scores, found[of]) for of in compared.values()]
    lines.append(f"| {name} | " + " | ".join(cells) + " |")
  return "\n".join(lines)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("folder", type=Path)
  parser.add_argument("--tiny", action="store_true", help="little of all, to try the script")
  parser.add_argument("--out", type=Path, default=HERE)
  options = parser.parse_args()
  steps = 2 if options.tiny else None
  judge = prepare(options.folder, steps)
  stages = {name: stage(name, options.folder, steps) for name in POLICIES}
  found = measure(options.folder, stages)
  options.out.mkdir(parents=True, exist_ok=True)
  (options.out / "results.json").write_text(json.dumps(found, indent=1) + "\n")
  notes = (HERE / "notes.md").read_text()
  (options.out / "README.md").write_text(
    f"{notes}\n{choices(options.folder, judge)}\n\n{table(found)}\n"
  )


if __name__ == "__main__":
  main()
