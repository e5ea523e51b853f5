"""A trial in a group equals the same trial run alone, for every method and axis."""

import pkgutil
from functools import partial

import jax
import numpy as np
import pytest
from support import deltas, folders, made_trials, tiny
from support.methods import NEEDED, OTHER

from jaxtune import config, objectives, peft, tree
from jaxtune.api import trials
from jaxtune.peft import methods
from jaxtune.runs import programs
from jaxtune.runs.first_state import first_state
from jaxtune.runs.trial import with_config
from jaxtune.sweeps import groups
from jaxtune.training import loop
from jaxtune.training import step as update
from jaxtune.training.options import TrainOptions
from jaxtune.training.progress import begin

STEPS = 10
LORA, PREFIX = {"name": "lora"}, {"name": "prefix"}
PROMPT = {"name": "stack", "prompt": {"length": 4}, "lora": {"rank": 2}}
DROPS = {"rank": 2, "dropout": 0.1}  # noise, which a prefix of another length does not move
STACK = {"name": "stack", "lora": DROPS, "prefix": {"length": 3}, "adapter": {"width": 3}}
NUMBERS = {
  "optim.learning_rate": 2e-2, "optim.weight_decay": 0.5, "optim.warmup": 20,
  "optim.head_ratio": 3.0, "seed": 7,
}  # fmt: skip
NOISY = {"regularize.dropout": 0.1}
NOISE = {"regularize.dropout": 0.2, "regularize.token_dropout": 0.1, "regularize.neftune": 5.0}
WORDS = {
  "data.template": "{{ text }} and more of it :", "data.answer": "{{ answer_choices[1 - label] }}",
  "data.choices": ["b0 b5", "b1"], "data.rename": {"text": "other"}, "data.limit": 5,
  "data.only": {"task": ["long"]}, "data.mixture": "equal", "data.temperature": 5.0, "data.cap": 2,
}  # fmt: skip
# The numbers of each objective's loss.
LOSSES = {
  "cpo": {"beta": 1.0, "alpha": 0.1}, "dpo": {"beta": 1.0}, "orpo": {"beta": 1.0},
  "kto": {"beta": 1.0, "desirable": 3.0, "undesirable": 3.0},
  "reward": {"margin": 3.0, "centring": 3.0}, "simpo": {"beta": 9.0, "gamma": 3.0},
  "grpo": {"clip_low": 0.5, "clip_high": 1.0, "kl": 1.0},
  "ppo": {
    "clip_low": 0.5, "clip_high": 1.0, "value_clip": 1.0, "value_weight": 3.0, "kl_stop": 0.1
  },
}  # fmt: skip
# Those that only rollouts read, before a step; objectives/test_policy.py has them.
ADAPTED = {"kl_target", "kl_rate"}
ROLLED = {"grpo": ADAPTED, "ppo": {"kl", "gamma", "trace"} | ADAPTED}
WITH = {"data.cap": {"data.mixture": "capped"}}


def one_each(changes):
  return [{key: value} | WITH.get(key, {}) for key, value in changes.items()]


def laid(*names):
  """Lays methods over one model, and changes each option that trials of one program may differ in.

  Returns:
    The section, and the changes: of all methods' sizes at once, and of one other option each.
  """
  sizes, others = {}, []
  for name in names:
    (method,) = peft.build({"name": name})
    for option in method.groupable:
      changed = {option: OTHER[option]} | NEEDED.get(option, {})
      change = {f"method.{name}.{key}": value for key, value in changed.items()}
      if option in SIZES:
        sizes |= change
      else:
        others.append(change)
  section = {"name": "stack"} | {name: START.get(name, {}) for name in names}
  return section, [one for one in (sizes, *others) if one]


SIZES = {"rank", "width", "length", "init_rank"}
START = {"compacter": {"rank": 2}}  # whose default is what `OTHER` has
TOGETHER = [("loha", "lokr", "reft", "vera"), ("prefix", "prompt")]
METHODS = {name for _, name, _ in pkgutil.iter_modules(methods.__path__)}
APART = [(name,) for name in sorted(METHODS.difference(*TOGETHER, {"regularize"}))]  # see `NOISE`
# A program, and how each of its trials but the first differs from the first.
PROGRAMS = {" ".join(names): laid(*names) for names in TOGETHER + APART} | {
  "numbers": ({"name": "full"}, one_each(NUMBERS)),
  "noise": (LORA, one_each(NOISE)),
  "projection": (PREFIX | {"projection": 8}, [{"method.length": 2}]),
  "stack": (STACK, [{"method.lora.rank": 1, "method.prefix.length": 4}]),
}
PROGRAMS = {name: (section, others) for name, (section, others) in PROGRAMS.items() if others}


def test_every_key_that_programs_do_not_depend_on_is_below(llama):
  """Here by its place in a config, so that a new one is missed; those of methods are `PROGRAMS`."""
  full = made_trials.complete(LORA, {"regularize.dropout": 0.1})

  def shared(full, section):
    keys = full[section] if isinstance(full[section], dict) else ()
    other = lambda key: full | {section: full[section] | {key: "another value"}}
    return {key for key in keys if key != "name" and len(groups.groups([full, other(key)])) == 1}

  found = {
    f"{section}.{key}" for section in full if section != "method" for key in shared(full, section)
  }
  assert len(groups.groups([full, full | {"seed": 7}])) == 1
  assert found | {"seed"} == {*NUMBERS, *NOISE, *WORDS}
  for _, name, _ in pkgutil.iter_modules(objectives.__path__):
    full = made_trials.complete(LORA, {"objective": {"name": name}})
    read = LOSSES.get(name, {}).keys() | ROLLED.get(name, set())
    assert shared(full, "objective") == read, name


def solo(trial, state, base, step):
  """Runs the pure step alone, without padding, stacking or the loop; returns losses and weights."""
  options = TrainOptions(**trial.config["train"])
  losses = []
  for i in range(options.steps):
    batch = loop.make_batch([trial.dataset.train], [trial.config["seed"]], [i], options)
    state, metrics = step(state, base, {name: x[0] for name, x in batch.items()})
    losses.append(float(metrics["loss"]))
  return losses, state.tuned


def grouped(members, starts, chunk):
  """Runs the group's compiled step; returns each trial's losses, the weights, and the step."""
  options = TrainOptions(**members[0].config["train"])
  noise = any(programs.uses_noise(trial.config) for trial in members)
  states, (base, *_) = zip(*starts, strict=True)
  program = programs.make_program(members[0], noise)
  step = jax.jit(loop.make_step(program, chunk))
  progress = begin(tree.stack(states), 1, program.logged)
  state, losses = progress.state, []
  for i in range(options.steps):
    splits, seeds = zip(*((t.dataset.train, t.config["seed"]) for t in members), strict=True)
    batch = loop.make_batch(splits, seeds, [i] * len(members), options)
    state, sums = step((state, progress.sums), base, batch)
    losses.append(np.asarray(sums["loss"]))
  shapes = [jax.eval_shape(lambda s=s: s.tuned) for s in states]
  tuned = [
    tree.crop(jax.tree.map(lambda x, e=e: x[e], state.tuned), s) for e, s in enumerate(shapes)
  ]
  return np.stack(losses, 1), tuned, step, state


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_trial_of_a_group_equals_its_solo_run(llama, name):
  check(made_trials.make(llama), *PROGRAMS[name], chunk=1)


@pytest.mark.full
def test_so_it_does_side_by_side(llama):
  section, others = PROGRAMS["stack"]
  check(made_trials.make(llama), section, [*others, {"seed": 7}], chunk=3)


def check(setup, method, others, chunk, plain=None):
  plain = plain or (NOISY if others[0].keys() <= NOISE.keys() else {})
  configs = [
    made_trials.complete(method, plain | one, train={"steps": STEPS}) for one in ({}, *others)
  ]
  assert groups.groups(configs) == [list(range(len(configs)))]
  members = [with_config(setup, config) for config in configs]
  compare(members, members, others, chunk)


def compare(members, single, others, chunk):
  """Compares the trials of a group with those alone, and sees that each change changes something.

  Args:
    single: the same trials with their own data, which are not padded to those of the group.
  """
  starts = [first_state(trial) for trial in members]
  own = starts if single is members else [first_state(trial) for trial in single]
  losses, tuned, step, state = grouped(members, starts, chunk)
  for e, weights in enumerate(tuned):  # what pads a trial's arrays is zero, and stays so
    padded = jax.tree.map(lambda x, e=e: np.asarray(x[e]), state.tuned)
    outside = jax.tree.map(lambda x, like: deltas.padding(x, like.shape), padded, weights)
    assert not any(map(np.any, jax.tree.leaves(outside)))
  assert step._cache_size() == 1
  alone = {}  # one program for all without dropout, and for all with it
  for trial, start, each, weights in zip(single, own, losses, tuned, strict=True):
    drops = programs.uses_noise(trial.config)
    if drops not in alone:
      alone[drops] = jax.jit(partial(update.update, programs.make_program(trial, drops)))
    expected, whole = solo(trial, *start, alone[drops])
    np.testing.assert_allclose(each, expected, rtol=0, atol=1e-5)
    close = partial(np.testing.assert_allclose, rtol=0, atol=1e-5)
    jax.tree.map(close, weights, whole)
  for change, each in zip(others, losses[1:], strict=True):
    assert np.abs(losses[0] - each).max() > 1e-4, f"{change} changes nothing"


def test_so_it_does_for_every_word_and_share_of_the_data(tmp_path):
  rng, data = np.random.default_rng(0), {"overlap": "allow"}
  for name, count in (("train", 12), ("test", 4)):
    words = rng.choice(folders.WORDS[20:], (count, 8))
    rows = [
      {"task": "long" if i % 3 else "short", "text": " ".join(row[:4]), "other": " ".join(row),
       "label": i % 2} for i, row in enumerate(words)
    ]  # fmt: skip
    data[name] = folders.write(tmp_path, f"{name}.jsonl", rows)
  data |= {"template": "{{ text }} :", "answer": "{{ answer_choices[label] }}", "tasks": "task"}
  plain = folders.config(folders.base(tmp_path, "llama"), data | {"choices": ["b0", "b1"]}, steps=5)
  others = one_each(WORDS)
  configs = [config.complete(config.override(plain, one)) for one in ({}, *others)]
  assert len(groups.groups(configs)) == 1
  compare(trials.load(configs), [trials.load([one])[0] for one in configs], others, chunk=1)


# The numbers of the others reach their loss in the same way, and tests of objectives compare it.
@pytest.mark.parametrize("name", [
  name if name in ("kto", "ppo", "reward") else pytest.param(name, marks=pytest.mark.measurement)
  for name in LOSSES
])  # fmt: skip
def test_so_it_does_for_every_number_of_a_loss(llama, name):
  head = objectives.module(name).HEAD
  setup = made_trials.make(llama if head == "lm" else tiny.make("llama", head=head))
  rng, pair = np.random.default_rng(0), [made_trials.split(40, seed).arrays for seed in (0, 3)]
  arrays = {key: np.stack([one[key] for one in pair], 1) for key in pair[0]}
  arrays["reference"] = -rng.uniform(20, 40, (40, 2)).astype(np.float32)
  arrays["labels"] = rng.integers(0, 2, 40).astype(np.int32)
  arrays["difference"] = rng.integers(1, 4, 40).astype(np.float32)
  if programs.rolls_out(setup._replace(objective=objectives.module(name))):
    arrays = pair[0] | answers(rng, pair[0]["weights"][:, None, 1:])
  train = setup.dataset.train._replace(arrays=arrays)
  setup = setup._replace(dataset=setup.dataset._replace(train=train))
  others = [{f"objective.{key}": value} for key, value in LOSSES[name].items()]
  check(setup, LORA, others, chunk=1, plain={"objective": {"name": name}})


def answers(rng, weights):
  """What is known of sampled answers: uniform numbers, and ones of what only logs read.

  Each row has one answer, to a prompt of one token.
  """
  drawn = lambda low, high: rng.uniform(low, high, weights.shape).astype(np.float32)
  known = ("scale", "reward", "length", "truncated", "repeated")
  arrays = {name: np.ones((len(weights), 1), np.float32) for name in known} | {"weights": weights}
  arrays |= {name: drawn(-8, -2) for name in ("policy", "reference")}
  return arrays | {name: drawn(-1, 1) for name in ("advantages", "values", "returns")}


@pytest.mark.parametrize(
  ("changes", "count"),
  [
    ([{"method.rank": 1}, {"method.rank": 2}, {"optim.learning_rate": 0.5}, {"seed": 3}], 1),
    ([{"method.rank": 1}, {"method.targets": ["q_proj"]}], 2),
    ([{}, {"method": {"name": "prefix"}}, {"method": {"name": "prefix", "length": 3}}], 2),
    ([{}, {"train.batch_size": 8}, {"optim.schedule": "cosine"}], 3),
    ([{"method": PROMPT, "method.prompt.length": n} for n in (4, 8)], 1),
    ([{"method": PROMPT | {"lora": DROPS}, "method.prompt.length": n} for n in (4, 8)], 2),
    ([{"method": {"name": "p_tuning", "length": n}, **NOISY} for n in (4, 8, 4)], 2),
    ([{"method": {"name": "prefix", "length": n}, **NOISY} for n in (4, 8)], 1),
  ],
)
def test_what_shares_a_program(changes, count):
  configs = [made_trials.complete(LORA, change) for change in changes]
  assert len(groups.groups(configs)) == count


def test_a_random_base_depends_on_the_seed():
  model = {"model.path": None, "model.architecture": {"model_type": "llama"}}
  configs = [made_trials.complete(LORA, model | {"seed": seed}) for seed in (0, 1)]
  assert len(groups.groups(configs)) == 2


def test_a_base_is_judged_once_for_each_reference():
  """Trials of a DPO start from it; of other objectives the base is the same wherever they start."""
  keys = lambda name: {
    groups.baseline_key(made_trials.complete(method, {"objective": {"name": name}}))
    for method in ({"name": "lora"}, {"name": "lora", "start": "runs/sft"})
  }
  assert [len(keys(name)) for name in ("dpo", "sft")] == [2, 1]
