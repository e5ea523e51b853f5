"""Trials that fail, and learning rates that a sweep chooses."""

import contextlib
import json
import os
import weakref

import numpy as np
import pytest
from support import made_trials

import jaxtune
from jaxtune.api import stages, trials, under_way
from jaxtune.api import sweep as sweeps
from jaxtune.errors import UserError
from jaxtune.runs import identity
from jaxtune.runs import results as results_
from jaxtune.runs.folder import begin
from jaxtune.runs.trial import with_config
from jaxtune.sweeps import tuning

CHANGES = {"train.steps": 4, "train.eval_every": 2, "optim.warmup": 0, "optim.clip": None}


def config(sweep):
  return made_trials.complete({"name": "lora", "rank": 2}, CHANGES) | {"sweep": sweep}


@pytest.fixture
def setup(llama, monkeypatch):
  made = made_trials.make(llama)
  monkeypatch.setattr(trials, "prepare", lambda config, pretrained: with_config(made, config))
  monkeypatch.setattr(trials.gradients, "check", lambda *_: None)


def rebuilt(folder):
  """Says whether `jaxtune report` writes the page that the sweep wrote, to the byte."""
  written = (folder / "report.html").read_bytes()
  return jaxtune.report([folder]).read_bytes() == written


def test_a_trial_that_fails_stops_no_other(setup, tmp_path, monkeypatch, capsys):
  real, broken, tried = trials.training.train, [2], []

  def fragile(members, folders, *rest):
    ranks = [t.config["method"]["rank"] for t in members]
    assert not any((folder / "failed.json").exists() for folder in folders), "it is tried again"
    tried.append((ranks, rest[-1]))
    if {*broken} & {*ranks}:
      if len(ranks) > 1:
        rest[1].mkdir(parents=True)  # it fails after a checkpoint
      raise ValueError(f"rank {broken[0]} is broken")
    return real(members, folders, *rest)

  monkeypatch.setattr(trials.training, "train", fragile)
  swept = config(({"method.rank": [1, 2, 4]},))
  results = sweeps.sweep(swept, tmp_path)
  assert sorted(r["settings"]["method.rank"] for r in results) == [1, 4]
  assert [ranks for ranks, _ in tried] == [[1, 2, 4], [1], [2], [4]]
  failed = tmp_path / "trials" / "rank=2" / "failed.json"
  assert json.loads(failed.read_text())["reason"] == "ValueError: rank 2 is broken"
  assert "1 of 3 trials failed" in capsys.readouterr().err
  assert len(list((tmp_path / "groups").glob("*"))) == 0, "the group is not gone on with"
  assert rebuilt(tmp_path)

  broken.clear()
  assert len(sweeps.sweep(swept, tmp_path)) == 3 and not failed.exists()
  assert [ranks for ranks, _ in tried[4:]] == [[2]], "what is done is not trained again"


def staged(made, folder, changes):
  """Returns the groups of trials that nobody has trained, with `changes` to each."""
  configs = [made_trials.complete({"name": "lora"}, CHANGES | one) for one in changes]
  folders = [folder / "trials" / str(e) for e in range(len(configs))]
  return trials.grouped([with_config(made, one) for one in configs], folders)


def finish(trial, folder, together):
  """Writes that a trial is done, which was trained with so many."""
  begin([folder], [trial.config])
  known = {"base_fingerprint": trial.fingerprint, "data": {}, "sources": {}}
  results_.write(folder, {"final": {}, "trials_in_program": together} | known)


def test_neither_does_a_reward_or_a_program_that_fails(llama, tmp_path, monkeypatch):
  """Rewards fail in training and on the base, a program before its first step or in the probe.

  The trials of a program have the same rewards: the next call goes on with all of them.
  """
  changes = [{"train.batch_size": n, "method.rank": r} for n in (1, 2, 4, 8, 16) for r in (2, 3)]
  stage, trained = staged(made_trials.make(llama), tmp_path, changes), []

  def size(members):
    return members[0].config["train"]["batch_size"]

  def train(members, *_):
    trained.append((size(members), [one.config["method"]["rank"] for one in members]))
    if size(members) == 1:
      raise trials.rewards.Failed("reward 'x' failed")

  def untuned(group):
    if group[0] == 6:
      raise trials.rewards.Failed("reward 'x' failed")
    return [made_trials.UNTUNED] * len(group)

  def fails(number):
    def call(members):
      if size(members) == number:
        raise RuntimeError("RESOURCE_EXHAUSTED")
      return members

    return call

  monkeypatch.setattr(trials.training, "train", train)
  monkeypatch.setattr(trials.cost, "with_remat", fails(2))
  monkeypatch.setattr(trials.gradients, "check", fails(4))
  stage = stage._replace(untuned=untuned)
  saved = under_way.checkpoints([trial.config for trial in stage.trials[:2]], tmp_path)
  saved.mkdir(parents=True)
  trials.train(stage)
  assert trained == [(1, [2, 3]), (16, [2, 3])] and saved.exists()
  failed = {path.parent.name for path in tmp_path.glob("trials/*/failed.json")}
  assert failed == {*"01234567"}


def test_trials_that_would_miss_a_comparison_are_refused(llama, tmp_path):
  """But not where none has been compared, or the group goes on from its checkpoint."""
  changes = [{"seed": seed, "search.early_exit": "halving"} for seed in range(3)]
  stage = staged(made_trials.make(llama), tmp_path, changes)

  def done(*numbers, together):
    for i in numbers:
      finish(stage.trials[i], stage.folders[i], together)
    return trials.waiting(stage, [0, 1, 2])

  assert trials.waiting(stage, [0, 1, 2]) == [[0, 1, 2]]
  assert done(1, together=1) == [[0], [2]]
  with pytest.raises(UserError, match="trials/2 is to be .* delete the folders of these 2, .*ls/0"):
    done(0, 1, together=2)
  saved = under_way.checkpoints([trial.config for trial in stage.trials], tmp_path)
  saved.mkdir(parents=True)
  assert trials.waiting(stage, [0, 1, 2]) == [[0, 1, 2]]
  saved.rmdir()
  assert done(2, together=3) == []


@pytest.mark.parametrize("rate", [0.1, tuning.tune([0.1, 0.2])], ids=["stated", "open"])
def test_seeds_that_join_a_finished_halving_leave_the_folder_as_it_is(setup, tmp_path, rate):
  early = {"search.early_exit": ["halving"], "optim.learning_rate": [rate]}
  swept = lambda *seeds: config(({"seed": list(seeds)} | early,))
  names, _, configs = sweeps.expand(swept(0, 1))
  for name, trial in zip(names, trials.load(configs), strict=True):
    finish(trial, tmp_path / "trials" / name, 2)
  sweeps._begin(tmp_path, swept(0, 1), None)
  before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
  with pytest.raises(UserError, match="early_exit compares all trials of a program"):
    sweeps.sweep(swept(0, 1, 2), tmp_path)
  assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


@pytest.mark.parametrize("seeds", [(0, 0), (0, 1)])
def test_seeds_of_drawn_bases_do_not_leave_early(seeds):
  model = {"path": None, "architecture": {"model_type": "llama"}}
  early = {"search.early_exit": "median"}
  configs = [
    made_trials.complete({"name": "lora"}, early | {"seed": seed}, model=model) for seed in seeds
  ]
  refused = pytest.raises(UserError, match="is 'median', but with model.path=None each seed")
  with refused if len({*seeds}) > 1 else contextlib.nullcontext():
    trials.checks.check_seeds(configs)


@pytest.mark.parametrize(
  ("early", "beta", "refused"),
  [("halving", 0.5, True), ("halving", 0.1, False), (None, 0.5, False)],
)
def test_losses_of_other_numbers_do_not_leave_early(early, beta, refused):
  configs = [
    made_trials.complete({"name": "lora"}, {"search.early_exit": early}, objective=objective)
    for objective in ({"name": "dpo", "beta": 0.1}, {"name": "dpo", "beta": beta})
  ]
  says = "'halving', but trials .* have objective.beta 0.1 and 0.5, on which"
  with pytest.raises(UserError, match=says) if refused else contextlib.nullcontext():
    trials.checks.check_losses(configs)


def test_a_program_s_data_do_not_hang_on_other_programs(llama):
  """Their rows are as long as the longest of its own trials; equal programs share them."""
  made = made_trials.make(llama)

  def load_one(config, _):
    width = config["data"]["limit"]
    train, validation = (made_trials.split(8, seed, width) for seed in (0, 1))
    dataset = made.dataset._replace(train=train, validation=validation)
    return with_config(made._replace(dataset=dataset), config)

  asked = [("lora", 8), ("lora", 16), ("prefix", 8), ("prefix", 32), ("ia3", 8), ("ia3", 16)]
  found = trials.load(
    [made_trials.complete({"name": name}, {"data.limit": width}) for name, width in asked], load_one
  )
  for name in ("train", "validation"):
    widths = [getattr(trial.dataset, name).width for trial in found]
    assert widths == [16, 16, 32, 32, 16, 16]
  assert [id(one.dataset) for one in found[:2]] == [id(one.dataset) for one in found[4:]]


def test_what_another_process_has_just_trained_is_not_trained_again(setup, tmp_path, monkeypatch):
  """Nor is it where this process had to wait for its lock, as tasks of SLURM and Ray may."""
  swept, real = config(({"method.rank": [1]},)), trials.locks.of_group

  @contextlib.contextmanager
  def after_another(first):
    monkeypatch.setattr(trials.locks, "of_group", real)
    trials.train(stages[-1])
    monkeypatch.setattr(trials, "_train_program", lambda *_: pytest.fail("trained twice"))
    with real(first):
      yield

  stages, grouped = [], trials.grouped
  monkeypatch.setattr(trials, "grouped", lambda *a: stages.append(grouped(*a)) or stages[-1])
  monkeypatch.setattr(trials.locks, "of_group", after_another)
  assert len(sweeps.sweep(swept, tmp_path)) == 1


def test_what_only_axes_complete_is_reported_of_the_first_trial():
  swept = config(({"data.train": ["a.jsonl", "b.jsonl"]},))
  del swept["data"]["train"]
  assert sweeps.shared(swept)["data"]["train"] == "a.jsonl"


def test_a_full_disk_loses_nothing(setup, tmp_path, monkeypatch):
  """The disk is full when the second result of a group is written; then there is room again."""
  swept, real = config(({"method.rank": [1, 2]},)), os.fsync
  full, whole = tmp_path / "full", tmp_path / "whole"

  def fsync(file):
    if "rank=2/.result.json." in os.readlink(f"/proc/self/fd/{file}"):
      raise OSError(28, "No space left on device")
    real(file)

  monkeypatch.setattr(os, "fsync", fsync)
  says = "cannot write .*rank=2/result.json: No space left on device; make room .* start again"
  with pytest.raises(UserError, match=says):
    sweeps.sweep(swept, full)
  monkeypatch.setattr(os, "fsync", real)
  losses = [
    {one["trial"]: one["final"] for one in sweeps.sweep(swept, folder)} for folder in (full, whole)
  ]
  assert losses[0] == losses[1]
  for path in whole.glob("trials/*/[mt]*"):  # metrics and weights
    assert (full / path.relative_to(whole)).read_bytes() == path.read_bytes()


def test_a_group_too_large_for_the_memory_is_tried_with_fewer_at_a_time(
  setup, tmp_path, monkeypatch
):
  real, chunks, kept = trials.training.train, [], []

  def narrow(members, folders, bases, checkpoints, chunk):
    chunks.append((len(members), chunk))
    assert not any(one() for one in kept), "the memory of the try before is free"
    array = np.zeros(9)
    kept.append(weakref.ref(array))
    if chunk > 1:
      raise RuntimeError("RESOURCE_EXHAUSTED: out of memory")
    return real(members, folders, bases, checkpoints, chunk)

  monkeypatch.setattr(trials.training, "train", narrow)
  monkeypatch.setattr(trials.cost, "choose_chunk", lambda _: 4)
  assert len(sweeps.sweep(config(({"method.rank": [1, 2]},)), tmp_path)) == 2
  assert chunks == [(2, 4), (2, 2), (2, 1)]


@pytest.mark.parametrize("error", [ValueError("no good"), RuntimeError("RESOURCE_EXHAUSTED")])
def test_one_of_several_processes_that_fails_ends_all(llama, tmp_path, monkeypatch, error):
  """The others, which may not have failed, would wait for it."""

  def broken(*_):
    raise error

  stage = staged(made_trials.make(llama), tmp_path, [{"seed": 0}, {"seed": 1}])
  monkeypatch.setattr(trials.training, "train", broken)
  monkeypatch.setattr(trials.hosts, "several", lambda: True)
  with pytest.raises(type(error), match=str(error)):
    trials._train_group(stage.trials, stage.folders, [made_trials.UNTUNED] * 2, 4)
  assert not list(tmp_path.iterdir())


def test_all_trials_fail(setup, tmp_path, monkeypatch):
  def broken(*_):
    raise ValueError("no good")

  monkeypatch.setattr(trials.training, "train", broken)
  with pytest.raises(UserError, match="all 2 trials of .* failed, the first one with .*no good"):
    sweeps.sweep(config(({"method.rank": [1, 2]},)), tmp_path)


@pytest.mark.full
def test_a_configuration_gets_the_rate_that_is_best_on_validation(setup, tmp_path):
  """The rate that diverges is not chosen; seeds of the choice are not those of the results."""
  rates = tuning.tune([1e-6, 3e-2, 1e30])
  swept = config((
    {"method.rank": [1, 2], "optim.learning_rate": [rates], "seed": [0, 1]},
    {"method.rank": [4], "optim.learning_rate": [1e-3]},
  ))  # fmt: skip
  results = sweeps.sweep(swept, tmp_path)
  rate = {(r["settings"]["method.rank"], r["settings"]["optim.learning_rate"]) for r in results}
  assert rate == {(1, 3e-2), (2, 3e-2), (4, 1e-3)} and len(results) == 5
  curves = json.loads((tmp_path / "tuning.json").read_text())
  assert curves.keys() == {"rank=1", "rank=2"} and not curves["rank=1"]["at_edge"]
  low, best, high = curves["rank=1"]["losses"]
  assert best < low and high is None
  seeds = {json.loads(p.read_text())["seed"] for p in tmp_path.glob("tuning/*/config.json")}
  assert seeds == {1000} and len(list(tmp_path.glob("tuning/*/result.json"))) == 6
  name = "rank=1,learning_rate=tuned,seed=1"
  stated = json.loads((tmp_path / "trials" / name / "config.json").read_text())
  assert stated["optim"]["learning_rate"] == 3e-2 and stated["seed"] == 1
  assert rebuilt(tmp_path)
  # A trial of the choice that had failed now has the best loss: what has begun keeps its rate.
  (place,) = tmp_path.glob("tuning/rank=1*=1e-06*")
  won = {k: v for k, v in json.loads((place / "result.json").read_text()).items() if k != "sha256"}
  results_.write(place, won | {"final": won["final"] | {"validation_loss": 0.01}})
  again = sweeps.sweep(swept, tmp_path)
  assert {r["settings"]["optim.learning_rate"] for r in again} == {3e-2, 1e-3}
  wider = [{"method.rank": [1], "optim.learning_rate": [tuning.tune([1e-6, 2e-2, 3e-2, 1e30])]}]
  with pytest.raises(UserError, match="optim.learning_rate was 0.03, is now 1e-06"):
    sweeps.sweep(config((wider[0] | {"seed": [0, 1]},)), tmp_path)
  sweeps.sweep(config(({"method.rank": [4], "optim.learning_rate": [1e-3]},)), tmp_path)
  assert not (tmp_path / "tuning.json").exists(), "no rate is chosen any more"


@pytest.mark.parametrize("tuned", [False, True])
def test_an_unfinished_sweep_of_another_config_is_refused(setup, tmp_path, monkeypatch, tuned):
  """It would be lost; the same sweep, or a larger one, goes on."""
  real, stops = trials.training.train, ["trials", "tuning"][tuned]

  def stopped(members, folders, *rest):
    if folders[0].parent.name != stops:
      return real(members, folders, *rest)
    begin(folders, [member.config for member in members])
    raise KeyboardInterrupt

  rate = tuning.tune([1e-3, 1e-2]) if tuned else 1e-3
  swept = lambda *ranks, **sections: config(
    ({"method.rank": list(ranks), "optim.learning_rate": [rate]},)
  ) | sections  # fmt: skip
  monkeypatch.setattr(trials.training, "train", stopped)
  with pytest.raises(KeyboardInterrupt):
    sweeps.sweep(swept(1, 2), tmp_path)
  monkeypatch.setattr(trials.training, "train", real)
  before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
  slower = swept(1, 2)["train"] | {"steps": 6}
  for other, says in (
    (swept(2, 4), f"unfinished sweep, whose trial {'rank=1'},learning_rate=0.001.* does not have"),
    (swept(1, 2, train=slower), "is an unfinished trial of another config: train.steps was 4"),
  ):
    with pytest.raises(UserError, match=says):
      sweeps.sweep(other, tmp_path)
  assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
  assert len(sweeps.sweep(swept(4, 1, 2), tmp_path)) == 3


def test_a_result_of_other_data_is_not_taken_for_one_of_the_sweep(tmp_path):
  """Of which it might be the best; one of another value of an axis may stay."""
  names, _, configs = sweeps.expand(config(({"method.rank": [1]},)))
  begin([tmp_path / "trials" / names[0]], configs)
  (tmp_path / "trials" / names[0] / "result.json").touch()
  other = config(({"method.rank": [2]},))
  stages.check_folders(sweeps.plan_of(other), tmp_path)
  other["data"] |= {"limit": 7}
  with pytest.raises(UserError, match="rank=1 holds the .* another sweep.*data.limit was None, is"):
    stages.check_folders(sweeps.plan_of(other), tmp_path)
  stages.check_folders(sweeps.plan_of(other | {"sweep": ({"data.limit": [7]},)}), tmp_path)
  other = config(({"method.rank": [2]},))
  other["model"] |= {"remat": True, "unroll": 2, "attention": "plain", "scored_tokens": 64}
  other["objective"] |= {"label_smoothing": 0.1}
  stages.check_folders(sweeps.plan_of(other), tmp_path)  # it can be compared all the same
  other["rollout"] = {"rewards": ("length",)}
  with pytest.raises(UserError, match="rollout.rewards was .*, is .*length"):
    stages.check_folders(sweeps.plan_of(other), tmp_path)


def save(path, record):
  with trials.checkpoint.Checkpoints(path, record) as saved:
    saved.save(2, {"x": np.ones(1)})


@pytest.mark.parametrize(("ranks", "early", "going_on", "refused"), [
  ([1, 2], None, [(2, 1), (1, 2, 4)], []), ([1], None, [(1, 4)], []),
  ([1, 2], "halving", [(2, 1)], [(1, 2, 4)]),
])  # fmt: skip
def test_updates_of_a_program_that_is_under_way_are_not_lost(
  setup, tmp_path, ranks, early, going_on, refused
):
  """They go on beside other trials and in another order, unless these may leave early."""
  swept = lambda ranks: config(({"method.rank": [*ranks]},)) | {"search": {"early_exit": early}}
  names, _, configs = sweeps.expand(swept(ranks))
  begin([tmp_path / "trials" / name for name in names], configs)
  path = under_way.checkpoints(configs, tmp_path)
  save(path, identity.of(trials.load(configs)))
  for other in (ranks, *going_on):
    stages.check_folders(sweeps.plan_of(swept(other)), tmp_path)
  for other in refused:
    with pytest.raises(UserError, match="groups/.* is the checkpoint of rank=.*, which this sweep"):
      stages.check_folders(sweeps.plan_of(swept(other)), tmp_path)
  if ranks == [1, 2]:
    busy = trials.locks.of_group(tmp_path / "trials" / "rank=1")
    with busy, pytest.raises(UserError, match="checkpoint of trials that another process trains"):
      stages.check_folders(sweeps.plan_of(swept((2, 1))), tmp_path)


def test_trials_of_other_data_do_not_join_a_program_that_is_under_way(setup, tmp_path):
  """Their rows may be longer, and what is drawn for tokens depends on the length."""
  swept = lambda *texts: config(({"data.template": [*texts]},))
  names, _, configs = sweeps.expand(swept("{{ a }}", "{{ b }}"))
  begin([tmp_path / "trials" / name for name in names], configs)
  save(under_way.checkpoints(configs, tmp_path), identity.of(trials.load(configs)))
  with pytest.raises(UserError, match="groups/.* is the checkpoint of .*, which this sweep"):
    stages.check_folders(sweeps.plan_of(swept("{{ a }}", "{{ b }}", "{{ c }}")), tmp_path)


@pytest.mark.parametrize("written", [False, True])
def test_nor_where_some_trials_are_done(setup, tmp_path, written):
  """Before the program was trained, or at its end, whose process writes result after result."""
  swept = lambda ranks: config(({"method.rank": [*ranks]},))
  names, _, configs = sweeps.expand(swept((1, 2, 4, 8)))
  begin([tmp_path / "trials" / name for name in names[1:]], configs[1:])
  rest = configs[1:3]  # 8 was done before, and 1 is not asked for yet
  save(under_way.checkpoints(rest, tmp_path), identity.of(trials.load(rest)))
  for name in names[3 - written :]:
    results_.write(tmp_path / "trials" / name, {"final": {}})
  for other in ((2, 4, 8), (4, 2, 8), (2, 4, 8, 1)):
    stages.check_folders(sweeps.plan_of(swept(other)), tmp_path)


def test_trials_go_on_with_those_of_their_checkpoint(llama, tmp_path):
  """Also where some are done by now: the process was killed between two results."""
  stage = staged(made_trials.make(llama), tmp_path, [{"seed": seed} for seed in range(5)])
  for some in ([1, 2], [4]):
    of = [stage.trials[i] for i in some]
    path = under_way.checkpoints([trial.config for trial in of], tmp_path)
    save(path, identity.of(of))
  for number in (0, 1):
    finish(stage.trials[number], stage.folders[number], 2)
    assert sorted(trials.waiting(stage, [0, 1, 2, 3, 4])) == [[1, 2], [3], [4]]


def test_a_program_that_failed_before_it_began_goes_on_one_by_one(setup, tmp_path, monkeypatch):
  """The first trial is under way when the process is told to end."""
  swept = lambda *ranks: config(({"method.rank": [*ranks]},))
  names, _, configs = sweeps.expand(swept(1, 2, 4))

  def train(members, folders, bases, checkpoints, chunk):
    if len(members) > 1:
      raise RuntimeError("RESOURCE_EXHAUSTED: out of memory")
    save(checkpoints, identity.of(members))
    raise KeyboardInterrupt

  monkeypatch.setattr(trials.training, "train", train)
  folders = [tmp_path / "trials" / name for name in names]
  with pytest.raises(KeyboardInterrupt):
    trials._train_group(trials.load(configs), folders, [made_trials.UNTUNED] * 3, 1)
  for ranks in ((1, 2, 4), (1, 2, 4, 8)):
    stages.check_folders(sweeps.plan_of(swept(*ranks)), tmp_path)


def test_a_checkpoint_of_before_a_new_key_is_its_program_s_own(setup, tmp_path):
  """Its name is made of all keys; that of a program that is being trained stays."""
  swept = config(({"method.rank": [1, 2]},))
  names, _, configs = sweeps.expand(swept)
  record = json.loads(json.dumps(identity.of(trials.load(configs))))
  for one in record["config"]:
    del one["regularize"]["neftune"]
  old = tmp_path / "groups" / "0123456789abcdef"
  save(old, record)
  with trials.locks.of_group(tmp_path / "trials" / names[0]):
    stages.check_folders(sweeps.plan_of(swept), tmp_path)
  assert old.exists()
  with pytest.raises(UserError, match="is the checkpoint of rank=2, which this sweep"):
    stages.check_folders(sweeps.plan_of(config(({"method.rank": [2, 1]},))), tmp_path)
  stages.check_folders(sweeps.plan_of(swept), tmp_path)
  assert [*(tmp_path / "groups").iterdir()] == [under_way.checkpoints(configs, tmp_path)]


def test_a_checkpoint_that_is_being_removed_has_no_record(tmp_path):
  (tmp_path / "2").mkdir()
  assert trials.checkpoint.read_record(tmp_path) == {}


def test_a_configuration_has_one_list_of_rates(setup, tmp_path):
  lists = [{"optim.learning_rate": [tuning.tune([x, 1e-2])], "seed": [0]} for x in (1e-3, 1e-4)]
  with pytest.raises(
    UserError, match="of trial is chosen from .0.001, 0.01. and .0.0001, 0.01.: give one"
  ):
    sweeps.sweep(config(tuple(lists)), tmp_path)
  assert not list(tmp_path.iterdir())


def test_no_rate_is_chosen_with_a_seed_of_the_results(tmp_path):
  axes = {"optim.learning_rate": [tuning.tune([1e-3, 1e-2])], "seed": [0, 1]}
  swept = config((axes,)) | {"search": {"tune_seeds": (5, 1)}}
  with pytest.raises(UserError, match="tune_seeds has the seed 1, .* none has, such as 6"):
    sweeps.sweep(swept, tmp_path)
  with pytest.raises(UserError, match="tune_seeds is .5, 5., expected each seed once"):
    sweeps.plan_of(swept | {"search": {"tune_seeds": (5, 5)}})
  assert sweeps.plan_of(config(({"seed": [1]},)) | {"search": {"tune_seeds": (1,)}}).rates == [[]]


def test_a_base_that_is_drawn_is_that_of_the_trial_s_own_seed(setup, monkeypatch):
  """So it is for the trials that choose a rate, whose configurations begin with other seeds."""
  prepare = trials.prepare
  drawn = lambda config, pretrained: prepare(config, pretrained)._replace(
    fingerprint=f"{config['model']['path']} {config['seed']}"
  )
  monkeypatch.setattr(trials, "prepare", drawn)
  rate = [tuning.tune([1e-3, 1e-2])]
  axes = [{"method.rank": [1 + seed], "optim.learning_rate": rate, "seed": [seed]}
          for seed in (0, 1)]  # fmt: skip
  for path, bases in ((None, ["None 1000"] * 4), ("unused", ["unused 0"] * 4)):
    swept = config(tuple(axes)) | {"model": {"path": path, "architecture": {}, "tokenizer": "x"}}
    swept["evaluate"] |= {"generate": True, "metrics": ("rougeL",), "max_new_tokens": 4}
    plan = sweeps.plan_of(swept)
    made = stages.trials_of(plan.tuning, trials.load(plan.loads))
    assert [trial.fingerprint for trial in made] == bases
    assert [trial.config for trial in made] == plan.tuning.configs
    assert all(trial.dataset.test is None for trial in made)


def test_open_rates_need_a_validation_split(llama, tmp_path, monkeypatch):
  made = made_trials.make(llama, validation=False)
  monkeypatch.setattr(trials, "prepare", lambda config, pretrained: with_config(made, config))
  with pytest.raises(UserError, match="learning_rate is chosen on a validation split"):
    sweeps.sweep(config(({"optim.learning_rate": [tuning.tune([1e-3, 1e-2])]},)), tmp_path)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  ("value", "says"),
  [
    ({"tune": [1e-3]}, "has 1 rate to choose from"),
    ({"tune": [1e-3, -1.0]}, "expected a number, or tune"),
    ({"rates": [1e-3]}, "expected a number, or tune"),
  ],
)
def test_rates_to_choose_from(value, says):
  with pytest.raises(UserError, match=says):
    tuning.rates_of({"optim": {"learning_rate": value}})
  with pytest.raises(UserError, match="has 1 rate|expected a number"):
    jaxtune.fit({"optim": {"learning_rate": value}}, "no_folder")
  with pytest.raises(UserError, match="a sweep does: train with one number"):
    jaxtune.fit({"optim": {"learning_rate": tuning.tune([0.1, 0.2])}}, "no_folder")
  with pytest.raises(UserError, match="of 0.1, 1 trains lora without divergence"):
    tuning.choose("lora", [0.1, 1.0], [None, None])


def test_a_trial_that_could_not_be_judged_chooses_no_rate(tmp_path):
  results_.write(tmp_path, {"final": {"train_loss": 1.0}})
  assert stages._validation_loss(tmp_path) is None
