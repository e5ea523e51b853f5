"""What `import jaxtune` offers; the command line is a thin shell over these functions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxtune import config as configs
from jaxtune import data, export, generate, preflight, probe, programs, sharding, train
from jaxtune import setup as setups
from jaxtune.config import load_config
from jaxtune.data import show as shows
from jaxtune.errors import UserError
from jaxtune.evaluators import compare
from jaxtune.evaluators import evaluate as evaluators
from jaxtune.models import hf
from jaxtune.runs import Run
from jaxtune.runs import load as load_run
from jaxtune.setup import find_objective
from jaxtune.sweeps import plan as plans
from jaxtune.sweeps import run as sweeps

__all__ = [
  "Run", "complete", "evaluate", "export_run", "fit", "load_config", "load_run", "plan", "show",
  "sweep",
]  # fmt: skip


def fit(config: Any, workdir: str | Path) -> dict:
  """Trains one configuration; resumes where an earlier call in the same folder stopped.

  Args:
    config: a ConfigDict or nested dict of the sections that `jaxtune.config` names.
    workdir: the run's folder.

  Returns:
    The content of result.json: metrics of the untuned base and of the tuned model, counts,
    versions and hashes.
  """
  workdir = Path(workdir)
  full = configs.complete({k: v for k, v in configs.to_dict(config).items() if k != "sweep"})
  preflight.check_options(full)
  setup = setups.prepare(full)
  preflight.check(full, setup)
  probe.check(full, setup)
  print(plans.describe(full, setup))
  base = programs.evaluate_base(full, setup)
  return train.run([full], [workdir], [setup], [base], workdir / "checkpoints")[0]


def sweep(config: Any, workdir: str | Path, metric: str | None = None) -> list[dict]:
  """Trains every trial of `config.sweep` and writes results.csv, report.md, report.html and plots.

  Args:
    config: as for `fit`, with a `sweep`: a tuple of grids {axis: values}.
    workdir: the sweep's folder.
    metric: what results are sorted by; default the test loss.

  Returns:
    Each trial's result, best first, with its "folder".
  """
  return sweeps.run(config, workdir, metric)


def evaluate(run: Run, overrides: dict[str, Any] | None = None) -> dict:
  """Judges a finished run and its untuned base on the same examples.

  Args:
    run: from `load_run`.
    overrides: keys of the data and evaluate sections to change, such as
      {"data.test": "other.jsonl"}.

  Returns:
    {"base": metrics, "final": metrics} and what `compare.record` adds.
  """
  for key in overrides or {}:
    if key.split(".")[0] not in ("data", "evaluate"):
      raise UserError(f"config key {key} cannot be changed after training; only data and evaluate")
  config = configs.complete(configs.override(run.config, overrides or {}))
  config["data"]["labels"] = run.labels or config["data"]["labels"]
  if run.labels:  # other data may lack some of them
    config["data"] |= {"labels": list(run.labels)}
  preflight.check_options(config, devices=False)
  setup = setups.prepare(config, run.pretrained)
  preflight.check(config, setup)
  single = sharding.make("jit", {"data": 1})
  program = programs.make_program(config, setup, False)
  evaluator = programs.make_evaluator(config, program, single, 1, setup)
  pairs = jax.tree.map(lambda x: x[None], (run.tuned, run.hyper))
  final = evaluators.test(evaluator, pairs, run.base, [setup.dataset])[0]
  untuned = programs.evaluate_base(config, setup, single)
  found = {"base": untuned.base.metrics, "final": final.metrics}
  return found | compare.record(final, untuned, evaluator, setup.dataset)


def complete(
  run: Run,
  prompts: list[str] | list[dict],
  *,
  max_new_tokens: int = 64,
  temperature: float = 0.0,
  top_k: int | None = None,
  top_p: float | None = None,
  seed: int = 0,
) -> list[str]:
  """Continues texts with a finished run's model, up to its stop token.

  Args:
    prompts: rows such as {"instruction": ..., "input": ...}, which become prompts by the template
      that the run was trained with; {"messages": [...]}, by the tokenizer's chat template; or texts
      to be continued as they stand.
    temperature: 0 is greedy; with more, `top_k` and `top_p` restrict the draw.
  """
  c, tokenizer = run.pretrained.model.config, run.pretrained.tokenizer
  if find_objective(run.config)[0].HEAD != "lm":
    raise UserError(
      f"{run.folder} was trained for {run.config['objective']['name']}: it writes no text; "
      "`jaxtune evaluate` judges it"
    )
  generate.check_options(c.vocabulary, max_new_tokens, temperature, top_k, top_p)
  ids = _encode(run, prompts)
  longest = max(map(len, ids))
  tokens, mask = generate.pad_left(ids, tokenizer.eos_token_id, longest)
  prefix = sum(method.positions for method in run.methods)
  # The halves of an encoder-decoder place prompt and completion each for itself.
  sides = [longest + max_new_tokens] if c.encoder is None else [longest, max_new_tokens]
  if max(sides) + prefix > c.positions:
    raise UserError(
      f"a prompt of {longest} tokens, a completion of {max_new_tokens} and a prefix of {prefix} "
      f"exceed the model's {c.positions} positions"
    )
  stops = run.stop_tokens
  go = jax.jit(
    lambda tuned, hyper, base, tokens, mask: generate.generate(
      run.pretrained.model, run.methods, base, tuned, hyper, tokens, mask,
      max_new_tokens=max_new_tokens, stop_tokens=stops, temperature=temperature, top_k=top_k,
      top_p=top_p, key=jax.random.key(seed),
    )
  )  # fmt: skip
  found = go(run.tuned, run.hyper, run.base, jnp.asarray(tokens), jnp.asarray(mask))
  return [tokenizer.decode(generate.until_stop(row, stops)) for row in found]


def _encode(run: Run, prompts: list) -> list[list[int]]:
  """Renders rows by the template of the run, and tokenises them."""
  for prompt in prompts:
    if not isinstance(prompt, str | dict):
      raise UserError(f"the prompt {prompt!r} is neither a text nor an object of columns")
  o, tokenizer = run.config["data"], run.pretrained.tokenizer
  if prompts and all(isinstance(prompt, dict) and "messages" in prompt for prompt in prompts):
    form = data.chat.template(tokenizer, o["chat_template"])
    ask = lambda row: tokenizer.apply_chat_template(
      row["messages"], chat_template=form, add_generation_prompt=True, return_dict=False
    )
    return [ask(row) for row in prompts]
  rows = [{"prompt": prompt} if isinstance(prompt, str) else prompt for prompt in prompts]
  given = all(isinstance(prompt, str) for prompt in prompts)
  form = {} if given else {name: o[name] for name in ("template", "rename", "choices")}
  texts = data.render_prompts(rows, **form)
  whole = run.pretrained.model.config.encoder is not None
  ids = data.encode_prompts(tokenizer, texts, whole)
  if not ids or not all(ids):
    raise UserError("a prompt is empty, or there is none: expected at least one token to continue")
  return ids


def export_run(
  run: Run, folder: str | Path, *, format: str = "auto", dtype: str = "float32",
  certify: bool = False,
) -> export.Exported:  # fmt: skip
  """Writes a finished run in a format that PyTorch loads.

  Args:
    format: "peft" (LoRA, prefix), "adapterhub" (bottleneck adapters), "merged" (LoRA, BitFit, full)
      or "auto", by the method.
    dtype: of merged weights.
    certify: reload the files in PyTorch, compare logits on the run's test prompts and write
      certificate.json; a difference above 1e-3 is an error and leaves no export behind.
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
    prompts=prompts,
  )  # fmt: skip


def show(config: Any, count: int = 3) -> str:
  """Shows a config's data as the model sees it: examples, what is trained, lengths, doubles.

  Args:
    count: examples of each split.
  """
  full = configs.complete({k: v for k, v in configs.to_dict(config).items() if k != "sweep"})
  tokenizer, _ = hf.language(**full["model"])
  return shows.show(setups.load_data(full), tokenizer, count)


def plan(config: Any) -> str:
  """Describes what a config would do, without reading weights: groups, targets, memory, FLOPs."""
  if configs.to_dict(config).get("sweep"):
    names, _, completed = sweeps.expand(config)
  else:
    names, completed = ["run"], [configs.complete(config)]
  parts = []
  for number, group in enumerate(plans.groups(completed), 1):
    first = completed[group[0]]
    setup = setups.outline(first)
    for i in group:
      preflight.check_options(completed[i], devices=False)
      preflight.check(completed[i], setup)
    cost = preflight.cost([completed[i] for i in group], setup)
    parts += [
      f"program {number}: {len(group)} trials ({names[group[0]]}{', ...' * (len(group) > 1)})",
      plans.describe(first, setup),
      data.describe(setup.dataset),
      json.dumps(cost, indent=2),
    ]
  return "\n\n".join(parts)
