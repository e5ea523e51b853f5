"""The step, the optimizer and the loop: sums divided once, early stopping, a run's folder."""

import json
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from safetensors.numpy import load_file
from support import made_trials, tiny

from jaxtune import config, data, peft, tree
from jaxtune.errors import UserError
from jaxtune.models import hf
from jaxtune.preflight import checks
from jaxtune.runs import finished, group, programs, results, scores
from jaxtune.runs.first_state import first_state
from jaxtune.runs.trial import with_config
from jaxtune.training import loop, optim
from jaxtune.training import step as update  # fmt: skip
from jaxtune.training.options import TrainOptions, intervals
from jaxtune.training.progress import Progress, begin

LORA = {"name": "lora", "rank": 2}


def close(a, b, atol=1e-6):
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=atol), a, b)


def go(folder, setup, *configs):
  folders = [folder / str(i) for i in range(len(configs))]
  results = made_trials.run(list(configs), folders, setup, folder / "checkpoints")
  return results, folders


def metrics(folder):
  return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_batch_is_made_while_the_step_before_it_is_taken():
  """So that nothing waits: before a log line, which reads the step's loss, or a checkpoint."""
  order = []
  state = update.State(jnp.zeros(1, int), jnp.zeros(1, int), {}, {}, {}, {})

  def step(carry, base, batch):
    order.append(f"step {batch['number']}")
    return carry[0]._replace(step=carry[0].step + 1), *carry[1:]

  def batch(trials, steps, _):
    assert trials.tolist() == [0]
    order.append(f"batch {steps[0]}")
    return {"tokens": np.zeros((1, 1, 1, 1)), "number": steps[0]}

  class Logs:
    def write(self, rows):
      order.append(f"log {rows[0]['step']}")

  options = TrainOptions(steps=3, log_every=2, checkpoint_every=3)
  save = lambda done, progress: order.append(f"save {done}")
  group = loop.Group(options, step, {}, batch, None, 0, Logs(), save)
  loop.run(group, begin(state))
  assert order == [
    "batch 0", "step 0", "batch 1", "step 1", "batch 2", "log 2", "step 2", "log 3", "save 3",
  ]  # fmt: skip


def test_the_bar_tells_the_tokens_of_all_updates(monkeypatch):
  """Also where a step makes several of each trial, whose parts are in one batch."""
  said = []

  class Bar(loop.tqdm):
    format_dict = {"rate": 10.0}  # updates in a second

    def set_postfix_str(self, s="", refresh=True):
      said.append(s)

  monkeypatch.setattr(loop, "tqdm", Bar)
  state = update.State(jnp.zeros(2, int), jnp.zeros(2, int), {}, {}, {}, {})
  step = lambda carry, base, batch: (carry[0]._replace(step=carry[0].step + 3), carry[1])
  batch = lambda *_: {"tokens": np.zeros((2, 3, 4, 5))}
  logs, options = SimpleNamespace(write=lambda rows: None), TrainOptions(steps=3, log_every=3)
  save = lambda done, progress: None
  loop.run(loop.Group(options, step, {}, batch, None, 0, logs, save, updates=3), begin(state))
  assert said == ["loss 0.000, 200 tokens/s"]


@pytest.mark.full
def test_accumulation_divides_once(llama):
  """One part has 2 trained tokens, the other 60: a mean of means would be far off."""
  sgd = {"name": "sgd", "learning_rate": 0.5, "clip": None, "weight_decay": 0.0}
  config = made_trials.complete(LORA, optim=sgd)
  setup = made_trials.make(llama)
  state, base = first_state(with_config(setup, config))
  whole = data.batch(setup.dataset.train, 0, 0, 8)
  whole["weights"] = whole["mask"].astype(np.float32)
  whole["weights"][:4] = 0
  whole["weights"][0, 1:3] = 1
  step = jax.jit(partial(update.update, programs.make_program(with_config(setup, config))))
  ends = []
  for parts in (1, 2):
    end = state
    for _ in range(2):
      batch = {k: x.reshape(parts, -1, *x.shape[1:]) for k, x in whole.items()}
      end, measured = step(end, base, batch)
    ends.append((end.tuned, measured))
  close(*ends)
  assert ends[0][1]["tokens"] == whole["weights"][:, 1:].sum()
  moved = jax.tree.map(lambda x, y: float(jnp.abs(x - y).max()), state.tuned, ends[0][0])
  assert max(jax.tree.leaves(moved)) > 1e-2


def rates(steps, **options):
  """The size of each update of a weight whose gradient is 1."""
  tx = optim.make(None, steps, name="sgd", b1=0.0, clip=None, **options)
  weights = {"kernel": jnp.zeros(())}
  state, found = tx.init(weights), []
  for _ in range(steps):
    change, state = tx.update({"kernel": jnp.ones(())}, state, weights)
    found.append(-float(change["kernel"]))
  return found


def test_schedules():
  rise = [0.5, 1.0, 1.5, 2.0]
  fall = np.arange(6, 0, -1) / 6
  given = dict(learning_rate=2.0, warmup=4)
  assert rates(10, schedule="constant", **given) == pytest.approx(rise + 6 * [2.0])
  assert rates(10, schedule="linear", **given) == pytest.approx([*rise, *2 * fall])
  cosine = 1 + np.cos(np.pi * (1 - fall))
  assert rates(10, schedule="cosine", **given) == pytest.approx([*rise, *cosine])
  assert rates(4, schedule="linear", learning_rate=1.0) == pytest.approx([1, 0.75, 0.5, 0.25])


def test_traced_numbers_replace_the_plain_ones():
  tx = optim.make({"learning_rate": 3.0}, 2, name="sgd", b1=0.0, clip=None, schedule="constant")
  weights = {"kernel": jnp.zeros(())}
  change, _ = tx.update({"kernel": jnp.ones(())}, tx.init(weights), weights)
  assert change["kernel"] == -3


@pytest.mark.parametrize(
  ("name", "expected"),
  [
    # gradient (3, 4) clipped to norm 1, then + 0.1 * weight 2 on the kernel alone
    ("sgd", {"kernel": -(0.6 + 0.2), "bias": -0.8}),
    ("adamw", {"kernel": -(1 + 0.2), "bias": -1.0}),
    ("lion", {"kernel": -(1 + 0.2), "bias": -1.0}),
  ],
)
def test_clipping_and_decay(name, expected):
  tx = optim.make(
    None, 5, name=name, learning_rate=1.0, schedule="constant", weight_decay=0.1, clip=1.0
  )
  weights = {"kernel": jnp.asarray(2.0), "bias": jnp.asarray(2.0)}
  gradient = {"kernel": jnp.asarray(3.0), "bias": jnp.asarray(4.0)}
  change, _ = tx.update(gradient, tx.init(weights), weights)
  assert {k: float(x) for k, x in change.items()} == pytest.approx(expected, rel=1e-5)


def test_decay_does_not_gather_momentum():
  """With no gradient, what SGD takes off each time is rate x decay x weight, as AdamW does."""
  for name in ("sgd", "adamw"):
    tx = optim.make(
      None, 5, name=name, learning_rate=0.1, schedule="constant", weight_decay=0.1, clip=None
    )
    weights = {"kernel": jnp.ones(())}
    state = tx.init(weights)
    for _ in range(4):
      change, state = tx.update({"kernel": jnp.zeros(())}, state, weights)
      assert float(change["kernel"]) == pytest.approx(-0.01)


def test_biases_of_every_method_are_not_decayed(llama):
  method = {"name": "stack", "p": {"name": "p_tuning"}, "x": {"name": "prefix", "projection": 4}}
  method |= {"lora": {}, "loha": {}, "adapter": {"ln_before": True}, "ia3": {}}
  tuned = peft.init(jax.random.key(0), peft.build(method), peft.find_sites(llama.model),
                    llama.params).tuned  # fmt: skip
  spared = {p.rsplit("/", 1)[1] for p, x in tree.flatten(optim._decayed(tuned)).items() if not x}
  every = {path.rsplit("/", 1)[1] for path in tree.flatten(tuned)}
  assert spared == {name for name in every if "bias" in name or "scale" in name} | {"l", "l_in"}
  assert {"bias1", "a", "b", "w1"} <= every and "bias2:" in "".join(spared)


def test_a_stack_is_laid_in_the_order_of_its_keys():
  given = {"name": "stack", "lora": {"rank": 2}, "ia3": {}}
  for section in (given, ConfigDict(given).to_dict()):
    assert list(config.complete_method(section)) == ["name", "ia3", "lora"]


@pytest.mark.parametrize("chunk", [1, 2])
def test_a_stopped_trial_stays_as_it_is(llama, chunk):
  setup, config = made_trials.make(llama), made_trials.complete(LORA)
  options = TrainOptions(**config["train"])
  state, base = first_state(with_config(setup, config))
  progress = begin(tree.stack([state] * 3))
  step = jax.jit(loop.make_step(programs.make_program(with_config(setup, config)), chunk, True))
  batch = loop.make_batch([setup.dataset.train] * 2, [config["seed"]] * 2, [0, 0], options)
  places = jnp.asarray([2, 3])  # the third trial, and a place that is empty
  after, sums = step((progress.state, progress.sums), (base, places), batch)
  pick = lambda x, e: jax.tree.map(lambda leaf: np.asarray(leaf[e]), x)
  for e in (0, 1):
    jax.tree.map(np.testing.assert_array_equal, pick(progress.state, e), pick(after, e))
  assert after.step.tolist() == [0, 0, 1] and sums["steps"].tolist() == [0, 0, 1]
  before = pick(progress.state, 2)
  moved = jax.tree.map(lambda x, y: np.abs(x - y).max(), pick(after, 2).tuned, before.tuned)
  assert max(jax.tree.leaves(moved)) > 0


def test_a_run_is_evaluated_ten_times():
  every = lambda **options: intervals(TrainOptions(**options))
  assert [every(steps=n) for n in (3, 25, 200)] == [(1, 1), (2, 2), (20, 20)]
  assert every(steps=25, eval_every=7) == (7, 7)
  assert every(steps=25, eval_every=7, checkpoint_every=3) == (7, 3)


@pytest.mark.full
def test_early_stopping_in_a_group(llama, tmp_path):
  setup = made_trials.make(llama)
  changes = {"train.patience": 2, "train.eval_every": 1, "train.steps": 10, "optim.warmup": 0}
  good, bad = (
    made_trials.complete({"name": "full"}, changes | {"optim.learning_rate": rate})
    for rate in (1e-3, 1.0)
  )
  results, folders = go(tmp_path / "both", setup, good, bad)
  lines = [[x["step"] for x in metrics(folder) if "validation_loss" in x] for folder in folders]
  assert lines[0] == list(range(1, 11))
  assert lines[1] == list(range(1, results[1]["best_step"] + 3)) and len(lines[1]) < 10
  assert max(x["step"] for x in metrics(folders[1])) == lines[1][-1]
  best = min(x.get("validation_loss", np.inf) for x in metrics(folders[1]))
  assert results[1]["final"]["validation_loss"] == pytest.approx(best, rel=1e-6)
  assert results[0]["final"]["validation_loss"] < results[1]["final"]["validation_loss"]

  alone, (folder,) = go(tmp_path / "alone", setup, bad)
  assert alone[0]["best_step"] == results[1]["best_step"]
  close(*(load_file(f / "tuned.safetensors") for f in (folder, folders[1])), 1e-5)
  assert [x["step"] for x in metrics(folder)] == [x["step"] for x in metrics(folders[1])]
  kept = sorted(int(p.name) for p in (tmp_path / "alone/checkpoints").iterdir())
  assert kept[-1] == lines[1][-1], "a run whose trials have all stopped ends"


@pytest.mark.full
def test_which_weights_are_kept(llama, tmp_path):
  setup = made_trials.make(llama)
  changes = {"train.eval_every": 1, "train.steps": 5, "optim.learning_rate": 3.0}
  found = {}
  for keep in ("best", "last"):
    config = made_trials.complete(LORA, changes | {"train.keep": keep})
    (found[keep],), (folder,) = go(tmp_path / keep, setup, config)
  losses = [x["validation_loss"] for x in metrics(folder) if "validation_loss" in x]
  assert found["best"]["final"]["validation_loss"] == pytest.approx(min(losses), rel=1e-6)
  assert found["last"]["final"]["validation_loss"] == pytest.approx(losses[-1], rel=1e-6)
  assert min(losses) < losses[-1]
  assert found["best"]["best_step"] == 1 + int(np.argmin(losses))


@pytest.mark.full
def test_bfloat16_computes_and_float32_is_trained(tmp_path):
  setup = made_trials.make(tiny.make("llama", dtype="bfloat16"))
  assert {str(x.dtype) for x in jax.tree.leaves(setup.pretrained.params)} == {"bfloat16"}
  for method in (LORA, {"name": "full"}, {"name": "adapter"}, {"name": "prefix"}):
    state, _ = first_state(with_config(setup, made_trials.complete(method)))
    assert {str(x.dtype) for x in jax.tree.leaves(state.tuned)} == {"float32"}
    floats = {str(x.dtype) for x in jax.tree.leaves(state.optimizer) if x.dtype != jnp.int32}
    assert floats == {"float32"}
  config = made_trials.complete({"name": "full"}, {"train.steps": 12, "optim.learning_rate": 1e-3})
  (result,), (folder,) = go(tmp_path, setup, config)
  flat = load_file(folder / "tuned.safetensors")
  assert {x.dtype for x in flat.values()} == {np.dtype(np.float32)}
  rounded = [
    (x == np.asarray(jnp.asarray(x, jnp.bfloat16), np.float32)).all() for x in flat.values()
  ]
  assert not any(rounded), "trained weights are kept in full precision"
  losses = [x["train_loss"] for x in metrics(folder) if "train_loss" in x]
  assert losses[-1] < losses[0] and np.isfinite(losses).all()


def test_a_run_and_its_folder(tmp_path, monkeypatch):
  architecture = tiny.ARCHITECTURES["llama"]
  setup = made_trials.make(hf.load(architecture=architecture, seed=3))
  changes = {"model": {"architecture": architecture}, "seed": 3, "evaluate.generate": True}
  changes |= {"evaluate.metrics": ["exact_match"], "evaluate.max_new_tokens": 4}
  config = made_trials.complete({"name": "prefix", "length": 2}, changes)
  judge, counts = group._judged, []

  def counted(evaluator, base, trials, progress, untuned):
    shapes = [x.shape for x in jax.tree.leaves(progress.state.tuned)]
    alive = [x for x in jax.live_arrays() if x.shape in shapes]
    counts.append(len({x.unsafe_buffer_pointer() for x in alive}) / len(shapes))
    return judge(evaluator, base, trials, progress, untuned)

  monkeypatch.setattr(group, "_judged", counted)
  (result,), (folder,) = go(tmp_path, setup, config)
  assert {path.name for path in folder.iterdir()} == {"result.json", *results.FILES}
  assert json.loads((folder / "result.json").read_text()) == json.loads(json.dumps(result))
  assert json.loads((folder / "config.json").read_text())["method"]["length"] == 2
  assert result["trained_parameters"] == 3 * 2 * 2 * 2 * 8 and result["base"] == {"test_loss": 9.0}
  assert {"test_loss", "test_exact_match", "validation_loss"} <= {*result["final"]}
  assert [x["step"] for x in metrics(folder) if "train_loss" in x] == [1, 2, 3, 4, 5, 6]
  assert len((folder / "predictions.jsonl").read_text().splitlines()) == 8
  kept = scores.read(folder, result)
  assert kept.draws.keys() == result["intervals"].keys() and kept.rows["loss"].shape == (8,)
  for name, draws in kept.draws.items():
    assert result["intervals"][name] == list(np.quantile(draws, (0.025, 0.975)))
  mean = kept.rows["loss"].sum() / kept.rows["weight"].sum()
  assert mean == pytest.approx(result["final"]["test_loss"], rel=1e-5)

  run = finished.load_run(folder)
  flat = load_file(folder / "tuned.safetensors")
  held = tree.flatten({"peft": run.adapted.tuned["peft"], "hyper": run.adapted.hyper})
  assert held.keys() == flat.keys()
  for name, leaf in held.items():
    np.testing.assert_array_equal(leaf, flat[name])
  assert tree.fingerprint(run.pretrained.params) == setup.fingerprint

  again, _ = go(tmp_path, setup, config)  # nothing is left to do but to judge
  assert again[0]["final"] == result["final"]
  assert counts == [4, 4], "the weights, two moments and the best weights; also after a resumption"


def test_a_damaged_run_is_refused(tmp_path):
  with pytest.raises(UserError, match="no finished run"):
    finished.load_run(tmp_path)
  (tmp_path / "trials" / "a").mkdir(parents=True)
  (tmp_path / "trials" / "a" / "tuned.safetensors").write_bytes(b"\x20")
  with pytest.raises(UserError, match="damaged"):
    finished.load_run(tmp_path / "trials" / "a")


@pytest.mark.parametrize(
  ("changes", "says"),
  [
    ({"train.steps": 0}, "train.steps is 0"),
    ({"train.batch_size": 6, "train.accumulate": 4}, "does not divide into"),
    ({"train.batch_size": 2 * 10**9}, "train.batch_size is 2000000000: a batch takes "),
    ({"evaluate.batch_size": 2 * 10**9}, "evaluate.batch_size is 2000000000: a batch takes "),
    ({"train.keep": "worst"}, "expected 'best' or 'last'"),
    ({"train.patience": 0}, "train.patience is 0"),
    ({"train.eval_every": -1}, "train.eval_every is -1"),
    ({"train.chunk": 0}, "train.chunk is 0"),
    ({"evaluate.batch_size": 0}, "evaluate.batch_size is 0"),
    ({"evaluate.limit": 0}, "evaluate.limit is 0"),
    ({"optim.name": "adam"}, "did you mean 'adamw'"),
    ({"optim.schedule": "cosin"}, "did you mean 'cosine'"),
    ({"optim.clip": -1.0}, "optim.clip is -1.0 (float), expected above 0 or None"),
    ({"optim.clip": 0.0}, "optim.clip is 0.0 (float), expected above 0 or None"),
    ({"optim.learning_rate": -1e-3}, "optim.learning_rate is -0.001 (float), expected at least 0"),
    ({"optim.weight_decay": -0.1}, "optim.weight_decay is -0.1"),
    ({"optim.b1": 1.0}, "optim.b1 is 1.0 (float), expected below 1"),
    ({"optim.epsilon": 0.0}, "optim.epsilon is 0.0"),
    ({"optim.learning_rate": float("nan")}, "learning_rate"),
    ({"method.b_rate": float("inf")}, "b_rate"),
    ({"method": {"name": "vera", "d_initial": 0.0}}, "nothing would ever move"),
    ({"method": {"name": "prompt", "init_scale": -0.5}}, "init_scale is -0.5"),
    ({"method": {"name": "stack", "x": {"name": "stack", "lora": {}}}}, "a stack within a stack"),
    ({"method": {"name": "mam", "adapter": {"name": "unipelt"}}}, "stack within a stack"),
    (
      {"method": {"name": "stack", "regularize": {"dropout": 0.5}}, "regularize.dropout": 0.1},
      "two methods are called 'regularize'",
    ),
    (
      {"method": {"name": "stack", "objective": {"name": "lora"}}},
      "method.objective has a name that a run itself uses",
    ),
    ({"method.rank": 0}, "method.rank is 0"),
    ({"method.rank": 33}, "method.rank is 33"),
    ({"method.ranks": {"q_proj": 33}}, "method.ranks is 33"),
    ({"method.targets": ["q_prj"]}, "hits no Linear or Embed site; did you mean"),
    ({"method": {"name": "prefix", "length": 49}}, "exceed the model's 64 positions"),
    ({"evaluate.generate": True, "evaluate.max_new_tokens": 60}, "exceed the model's 64 positions"),
    ({"evaluate.generate": True, "evaluate.metrics": ["blue"]}, "did you mean 'bleu'"),
    ({"evaluate.generate": True, "evaluate.top_p": 0.0}, "top_p is 0.0"),
    ({"evaluate.metrics": ["bleu"]}, "set evaluate.generate=True"),
    ({"evaluate.metrics": ["accuracy"]}, "accuracy judges label"),
    ({"evaluate.shots": -1}, "evaluate.shots is -1"),
    ({"evaluate.shots": 41}, "expected 1 to 40"),
    ({"evaluate.shots": 1, "data.pack": True}, "not with data.pack"),
    ({"objective": {"name": "reward"}, "evaluate.shots": 1}, "expected 0 for objective 'reward'"),
    ({"evaluate.resamples": -1}, "evaluate.resamples is -1"),
    ({"data.eval_limit": 0}, "data.eval_limit is 0"),
    (
      {"data.buckets": 2, "train.patience": 1, "search.places": 3},
      "search.places is 3, expected None with train.patience and data.buckets=2",
    ),
    (
      {"objective": {"name": "dpo", "kind": "ipo", "label_smoothing": 0.1}},
      "label_smoothing is 0.1, expected 0 with objective.kind='ipo'",
    ),
    ({"objective.label_smoothing": 1.0}, "label_smoothing is 1.0 (float), expected below 1"),
    ({"objective": {"name": "classify"}, "evaluate.generate": True}, "'classify' predicts"),
    ({"objective": {"name": "classify"}, "evaluate.metrics": ["bleu"]}, "bleu judges text"),
    ({"regularize.dropout": 1.0}, "regularize.dropout is 1.0"),
  ],
)
def test_what_cannot_work_is_found_before_it_starts(llama, changes, says):
  with pytest.raises(UserError) as error:
    config = made_trials.complete(LORA, changes)
    checks.check_options(config)
    checks.check(with_config(made_trials.make(llama), config))
  assert says in str(error.value)


def test_general_text_needs_positions_too(llama):
  setup = made_trials.make(llama)
  setup = setup._replace(dataset=setup.dataset._replace(general=made_trials.split(2, 0, 72)))
  with pytest.raises(UserError, match="sequences of 72 tokens and a prefix of 0 exceed the"):
    checks.check(with_config(setup, made_trials.complete(LORA)))


def test_shots_need_examples_to_judge(llama):
  setup = made_trials.make(llama, False)
  setup = setup._replace(dataset=setup.dataset._replace(test=None))
  with pytest.raises(UserError, match="give data.test or data.validation"):
    checks.check(with_config(setup, made_trials.complete(LORA, {"evaluate.shots": 1})))


def test_models_without_the_head_are_refused():
  for name, head, says in (
    ("bert", "lm", "has no head 'lm', which"),
    ("llama", "mlm", "no head 'mlm'"),
  ):
    with pytest.raises(UserError, match=says):
      tiny.make(name, head=head)


def test_the_warning_of_overfitting(llama, capsys):
  """Said once, at the third evaluation that is no better, and not where patience sees to it."""
  best = {"best": np.array([2.0, 1.0]), "best_step": np.array([4, 9])}
  progress = Progress(*[None] * 9)._replace(**best)
  for stale in (2, 3, 4):
    counts, steps, losses = np.array([stale, 1]), np.array([12, 12]), np.array([2.5, 0.9])
    loop._warn(counts, np.array([False, True]), progress, steps, losses)
  said = capsys.readouterr()
  text = (said.out + said.err).strip()
  assert text.count("overfits") == 1 and "trial 1 has not fallen since step 4 (2, now 2.5)" in text


def test_patience_needs_validation(llama):
  with pytest.raises(UserError, match="needs a validation split"):
    checks.check(
      with_config(made_trials.make(llama, False), made_trials.complete(LORA, {"train.patience": 1}))
    )
