"""A step that is compiled for devices that are named: what it costs, fits and exchanges there."""

import contextlib
import importlib.util
import math
import re
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from support import made_trials, tiny

import jaxtune
from jaxtune import tree
from jaxtune.api import plan_text
from jaxtune.errors import UserError
from jaxtune.evaluation import decoding, texts
from jaxtune.preflight import (
  compiled,
  cost,
  devices,
  elsewhere,
  fit,
  generation,
  hlo,
  lowered,
  modules,
  pace,
)
from jaxtune.runs.trial import with_config

HERE = devices.Device("cpu", 1e9, 1e12, 1e10, 1e9)
CHANGES = {"train.batch_size": 8, "model.remat": True}
GENERATE = {"generate": True, "max_new_tokens": 5}


@pytest.fixture
def here(monkeypatch):
  """Lets this machine's four CPU devices stand for those that are named."""
  monkeypatch.setattr(devices, "describe", lambda name: (HERE, jax.devices()))
  monkeypatch.setattr(elsewhere, "_largest", lambda *_: {"rows": 16, "trials": 3})


def trials(mesh, count=1, **model):
  pretrained = tiny.make("llama", remat=True, **model)
  changes = CHANGES | {"train.mesh": mesh}
  configs = [
    made_trials.complete({"name": "lora"}, changes | {"seed": seed}) for seed in range(count)
  ]
  return [with_config(made_trials.make(pretrained), config) for config in configs]


def test_what_programs_cost(here):
  one, split = (elsewhere.cost_on(trials(mesh), "here") for mesh in ({"data": 1}, {"fsdp": 4}))
  size = sum(leaf.nbytes for leaf in tree.flatten(trials(None)[0].pretrained.params).values())
  step, spread = (cost["programs"]["training step"] for cost in (one, split))
  assert step["parts_GB"]["base"] == pytest.approx(size / 1e9) and step["moved_GB"] == {}
  assert size / 4e9 < spread["parts_GB"]["base"] < size / 3e9, "norms and odd axes stay whole"
  assert split["devices"] == 4 and spread["floor_ms"] == pytest.approx(step["floor_ms"] / 4)
  for found in (one, split):
    for program in found["programs"].values():
      assert sum(program["parts_GB"].values()) == pytest.approx(program["peak_GB"])
      assert all(part >= 0 for part in program["parts_GB"].values())


@pytest.mark.parametrize("kind", ["training step", "evaluation", "generation"])
def test_matrix_products_are_counted(llama, kind):
  """Of a frozen base: one product of each weight and token, and one more in the backward pass."""
  config = made_trials.complete({"name": "ia3"}, {"train.mesh": {"data": 1}}, evaluate=GENERATE)
  group = lowered.outline([with_config(made_trials.make(llama), config)])
  weights = sum(x.size for path, x in tree.flatten(llama.params).items() if "kernel" in path)
  layers = sum(
    x.size for p, x in tree.flatten(llama.params).items() if "layers" in p and "kernel" in p
  )
  batch = lowered.batches(group)[kind]
  rows, length = batch["tokens"].shape[-2:]
  new, c = GENERATE["max_new_tokens"], llama.model.config
  attention = lambda queries, keys: 4 * c.layers * c.heads * c.head_size * rows * queries * keys
  expected = {
    "training step": 4 * weights * rows * length + 3 * attention(length, length),
    "evaluation": 2 * weights * rows * length + attention(length, length),
    # One of three rows is given a prompt, and all are continued by a token.
    "generation": 2 * (layers * (length + 3) + (weights - layers) * 4)
    + attention(length + 3, length + new) / rows,
  }[kind]
  assert lowered.flops(group, batch, kind) == pytest.approx(expected, rel=0.05)


def test_logits_of_the_most_targets_are_planned(llama):
  """Also where the split that has them, 16 of each row, is not the widest, which has 8 of 64."""
  made, planned = made_trials.make(llama), []
  wide, narrow = (made.dataset.test._replace(arrays=dict(made.dataset.test.arrays)) for _ in "ab")
  wide.arrays.update({k: np.tile(x, (1, 4)) for k, x in wide.arrays.items()})
  wide.arrays["weights"][:, 8:] = 0
  narrow.arrays["weights"] = np.ones_like(narrow.arrays["weights"])
  for test in (None, narrow):
    dataset = made.dataset._replace(validation=wide, test=test)
    group = lowered.outline([made._replace(dataset=dataset)], HERE, jax.devices()[:1])
    planned.append(lowered.flops(group, lowered.judged_batch(group), "evaluation"))
  assert planned[1] > planned[0]


def test_pmap_is_compiled_as_it_is(here, monkeypatch):
  """Each device holds the whole base, gradients are summed, and kernels are the device's own."""
  (trial,), asked = trials(None), []
  monkeypatch.setattr(lowered.cudnn, "on", lambda of: asked.append(of) or contextlib.nullcontext())
  trial = with_config(trial, trial.config | {"train": trial.config["train"] | {"parallel": "pmap"}})
  step = elsewhere.cost_on([trial], "here")["programs"]["training step"]
  size = sum(leaf.nbytes for leaf in tree.flatten(trial.pretrained.params).values())
  assert step["parts_GB"]["base"] == pytest.approx(size / 1e9)
  tuned = sum(x.size * 4 for x in jax.tree.leaves(lowered.outline([trial]).states.tuned))
  assert tuned / 1e9 <= step["moved_GB"]["all-reduce"] < 1.1 * tuned / 1e9 + 1e-6
  assert len(asked) == 2, "the step and the evaluation"


@pytest.mark.parametrize(("memory", "policy"), [(1e9, False), (8e5, "linear"), (1e4, True)])
def test_what_is_stored_is_chosen_by_the_memory(monkeypatch, memory, policy):
  """By `plan` and by a run alike: by the step alone, in nine tenths of what jax takes of a GPU."""
  peaks = {False: 7e5, "linear": 5e5, True: 3e5}
  lower = lambda group, batch, chunk, **computation: computation.get("remat", policy)
  build = lambda programs, *_, **__: [compiled.Built("", int(peaks[one])) for one in programs]
  monkeypatch.setitem(lowered.LOWER, "training step", lower)
  gpu = HERE._replace(memory=memory, gpu=((9, 0),))
  group = lowered.outline(trials({"data": 1}), gpu, jax.devices())
  assert elsewhere._least(group, lowered.step_batch(group), build) == policy
  on_cpu = cost.with_remat(lowered.changed(group.trials, remat="auto"))
  assert on_cpu[0].pretrained.model.config.remat == "linear"
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  taken = lambda: {"bytes_limit": 0.75 * memory}
  here = SimpleNamespace(memory_stats=taken, device_kind="here")
  monkeypatch.setattr(jax, "local_devices", lambda: [here])
  monkeypatch.setattr(compiled, "build", build)
  auto = cost.with_remat(lowered.changed(group.trials, remat="auto"))
  assert auto[0].pretrained.model.config.remat == policy


def test_fsdp_exchanges_weights_and_no_activations():
  """Every kernel is gathered twice, forward and backward; else only what is small is summed."""
  (trial,) = trials({"fsdp": 4})
  group = lowered.outline([trial], HERE, jax.devices())
  batch = lowered.step_batch(group)
  text = lowered.lower_step(group, batch, 1).compile().as_text()
  found = [one for one in modules.operations(hlo.parse(text)) if one.collective]
  flat = tree.flatten(trial.pretrained.params)
  kernels = sum(
    x.nbytes for path, x in flat.items() if path.startswith("trunk/layers") and x.ndim > 2
  )
  total = lambda kind: sum(one.moved for one in found if one.collective == kind)
  assert 2 * kernels <= total("all-gather") < 2.6 * kernels
  tuned = sum(x.size * 4 for x in jax.tree.leaves(group.states.tuned))
  rest = sum(one.moved for one in found if one.collective != "all-gather")
  assert rest < 1.2 * tuned + 1e4


def test_a_step_that_does_not_fit(here, monkeypatch):
  """Settings are tried in their order, with those before them; the idle ones are left out."""
  tried = []

  def build(programs, device, folder, quick=False):
    return [compiled.Built("", refused="20G exceeds 16G") for _ in programs]

  def lower(group, batch, chunk, **computation):
    tried.append({"rows": batch["tokens"].shape[2]} | computation)

  def fits(change):
    return "model.scored_tokens" in change and change.get("train.accumulate", 1) > 1

  group = lowered.outline(trials({"data": 1}), HERE, jax.devices()[:1])
  assert fit.advice(group, "here", fits) == {"train.accumulate": 8, "model.scored_tokens": 128}
  assert fit.advice(group, "here", lambda change: False) is None
  monkeypatch.setattr(compiled, "build", build)
  monkeypatch.setattr(lowered, "lower_step", lower)
  monkeypatch.setitem(lowered.LOWER, "training step", lower)
  found = elsewhere.cost_on(trials({"data": 1}), "here")
  assert found["programs"]["training step"]["would_fit"] is None
  assert found["programs"]["evaluation"]["would_fit"] is None
  assert [one["rows"] for one in tried[1:4]] == [4, 2, 1]
  assert tried[-1] == {"rows": 1, "scored_tokens": 128, "quantize": "nf4"}
  assert "no setting that was tried makes it fit" in plan_text.lay_out(found)


def test_meshes_that_may_fit():
  """Tokens are split where rows are too few and long, weights where that is not enough."""
  meshes = lambda rows, length: list(fit._meshes(rows, length, heads=8, count=16))
  assert meshes(32, 64) == [{"fsdp": 16}]
  assert meshes(1, 2048) == [{"sequence": 16}, {"sequence": 2, "tensor": 8}, {"tensor": 16}]
  assert meshes(4, 512) == [{"fsdp": 4, "sequence": 4}, {"fsdp": 4, "tensor": 4}]
  assert meshes(1, 128) == [{"tensor": 16}]


def test_trials_that_take_turns_are_all_in_memory():
  """A step of two of them has the states of all, of which it changes copies."""
  setup = made_trials.make(tiny.make("llama"))
  peaks = []
  for changes in ({}, {"search.places": 2}):
    settings = [changes | {"seed": seed, "train.mesh": {"data": 1}} for seed in range(4)]
    trials = [with_config(setup, made_trials.complete({"name": "full"}, one)) for one in settings]
    group = lowered.outline(trials, HERE, jax.devices()[:1])
    program = lowered.lower_step(group, lowered.step_batch(group), 2)
    peaks.append(program.compile().memory_analysis())
  states = sum(x.size * 4 for x in jax.tree.leaves(group.states.tuned))
  assert peaks[1].argument_size_in_bytes == pytest.approx(peaks[0].argument_size_in_bytes, rel=0.05)
  assert peaks[1].temp_size_in_bytes > states


def test_how_many_fit_where_trials_take_turns(monkeypatch):
  """More are tried side by side than take turns; a step of two costs what two cost."""
  setup = made_trials.make(tiny.make("llama"))
  groups = []
  for changes in ({}, {"search.places": 2}):
    settings = [changes | {"seed": seed, "train.mesh": {"data": 1}} for seed in range(4)]
    made = [with_config(setup, made_trials.complete({"name": "ia3"}, one)) for one in settings]
    groups.append(lowered.outline(made, HERE, jax.devices()[:1]))
  assert [pace.turns(one.trials) for one in groups] == [1, 2]
  assert pace.turns(groups[1].trials[:3]) == 1.5, "an empty place is not computed"
  batch = lowered.step_batch(group := groups[1])
  assert lowered.flops(group, batch) == pytest.approx(lowered.flops(groups[0], batch) / 2)
  sizes = lambda group, batch, chunk: lowered.at_once(group, batch, chunk)[0]["tokens"].shape
  monkeypatch.setitem(lowered.LOWER, "training step", sizes)
  rows, base = batch["tokens"].shape[2], fit.bytes_of(group, group.base)
  peak_of = lambda trials, _, rows, __: base + 4000 * trials * rows
  build = lambda shapes, **_: [compiled.Built("", peak_of(*one)) for one in shapes]
  built = {"training step": compiled.Built("", base + 4000 * 2 * rows, base)}
  group = group._replace(device=HERE._replace(memory=base + 4e5))
  found = elsewhere._largest(group, batch, 2, built, build)
  assert 40 < found["rows"] <= 50 and 80 < rows * found["trials"] <= 100
  # Of four trials that all take each step, also fewer side by side have the states of four.
  alone, size = groups[0], 4000 * rows
  peak_of = lambda held, chunk: base + size * (held + chunk)
  lower = lambda group, batch, chunk: (len(batch["tokens"]), chunk)
  monkeypatch.setitem(lowered.LOWER, "training step", lower)
  built = {"training step": compiled.Built("", peak_of(4, 1), base + 4 * size)}
  alone = alone._replace(device=HERE._replace(memory=base + 7.6 * size))
  assert elsewhere._largest(alone, lowered.step_batch(alone), 1, built, build)["trials"] == 3


@pytest.mark.parametrize("kind", ["training step", "evaluation"])
def test_what_is_held_beside_a_program_is_counted(here, kind):
  """The weights, two moments, the best weights so far and the base's own, whatever runs."""
  (trial,) = trials({"data": 1})
  config = made_trials.complete({"name": "full"}, CHANGES | {"train.mesh": {"data": 1}})
  program = elsewhere.cost_on([with_config(trial, config)], "here")["programs"][kind]
  size = sum(leaf.nbytes for leaf in tree.flatten(trial.pretrained.params).values())
  assert 5 * size / 1e9 < program["parts_GB"]["trained"] < 5.3 * size / 1e9
  assert sum(program["parts_GB"].values()) == pytest.approx(program["peak_GB"])


def test_a_larger_slice_keeps_its_name(monkeypatch):
  """Without which its mesh would have too few devices, and be refused."""

  def fits(change):
    if change.get("train.mesh") and "--device" not in change:
      raise UserError("the number of devices is 1, expected 4")
    return "train.mesh" in change

  larger = {"train.accumulate": 2, "--device": "here:4", "train.mesh": {"fsdp": 4}}
  monkeypatch.setattr(fit, "changes", lambda *_: [larger])
  expected = {"--device": "here:4", "train.mesh": {"fsdp": 4}}
  assert fit.advice(None, "here", fits) == expected


def test_fewer_trials_side_by_side_come_first(here):
  (trial,) = trials({"data": 1})
  changes = {"train.chunk": 5, "train.mesh": {"data": 1}}
  many = [
    with_config(trial, made_trials.complete({"name": "lora"}, changes | {"seed": i}))
    for i in range(8)
  ]
  group = lowered.outline(many, HERE, jax.devices()[:1])
  first = [change.get("train.chunk") for change in fit.changes(group, "here")]
  assert first[:3] == [3, 2, 1] and set(first[3:]) == {1}


def test_text_is_generated_without_fused_kernels_over_several_devices():
  """XLA cannot split one by itself."""
  for mesh, fused in (({"data": 1}, True), ({"data": 2}, False)):
    assert ("pallas_call" in traced("tpu", mesh, attention="splash")) == fused


def test_prompts_are_as_long_as_those_of_any_trial(llama):
  """The plan and the run have one shape, also where the first trial's are the shortest."""
  made, asked = made_trials.make(llama), []
  config = made_trials.complete({"name": "lora"}, evaluate=GENERATE | {"limit": 6})
  for length in (3, 9, 5):
    split = made.dataset.test._replace(prompts=[[1] * (length + n) for n in range(8)])
    asked.append(made._replace(dataset=made.dataset._replace(test=split)))
  group = [with_config(one, config) for one in asked]
  shapes = set()

  def call(batch):
    shapes.add(batch["tokens"].shape)
    return batch["tokens"][..., :0]

  texts.complete(call, [one.dataset.test.prompts[:6] for one in group], 3, (0,))
  assert shapes == {generation.batches(group)["generation"]["tokens"].shape} == {(3, 6, 14)}


def traced(platform, mesh, **model):
  """Returns the traced program that generates text on four devices of a platform."""
  config = made_trials.complete({"name": "ia3"}, {"train.mesh": mesh}, evaluate=GENERATE)
  trial = with_config(made_trials.make(tiny.make("llama", **model)), config)
  group = lowered.outline([trial], HERE._replace(platform=platform), jax.devices())
  (batch,) = generation.batches(group.trials).values()
  complete: Any = generation.completer(group.trials, "generation", group.parallel, 1)
  arguments = lowered._overlays(group, batch), lowered._placed(group, group.base), batch
  return str(complete.trace(*arguments).jaxpr)


@pytest.mark.parametrize("platform", ["cpu", "tpu", "cuda"])
def test_text_is_generated_as_the_planned_device_does(platform, monkeypatch):
  """Only a CPU computes the layers in a row, for which it holds their weights a second time."""
  monkeypatch.setattr(decoding, "LARGE", 0)
  found = traced(platform, {"data": 1})
  assert ("optimization_barrier" in found) == (platform == "cpu")


@pytest.mark.parametrize(("attention", "platform"), [("splash", "cuda"), ("cudnn", "tpu")])
def test_a_kernel_that_the_planned_device_does_not_have(attention, platform):
  pretrained = tiny.make("llama", attention=attention, dtype="bfloat16")
  trial = made_trials.make(pretrained)
  with pytest.raises(UserError, match=f"model.attention is '{attention}', expected a [TG]PU; this"):
    lowered.outline([trial], HERE._replace(platform=platform), jax.devices())


def test_a_batch_of_pairs_has_rows():
  """Beside its two answers, whose tokens are (E, A, B, C, T)."""
  group = lowered.outline(trials({"data": 1}), HERE, jax.devices())
  shape = lambda *sizes: jax.ShapeDtypeStruct((1, 1, 4, *sizes), "int32")
  batch = {"tokens": shape(2, 9), "reference": shape(2), "labels": shape()}
  refused = compiled.Built("", refused="20G exceeds 16G")
  assert elsewhere._figures(group, "training step", batch, refused)["batch"] == (1, 4, 9)
  more = {name: x.shape for name, x in elsewhere._with_rows(batch, 6).items()}
  assert more == {"tokens": (1, 1, 6, 2, 9), "reference": (1, 1, 6, 2), "labels": (1, 1, 6)}


def test_a_peak_above_the_memory_does_not_fit(here, monkeypatch):
  """Not every compiler refuses a program that is too large."""
  small = HERE._replace(memory=1e5)
  monkeypatch.setattr(devices, "describe", lambda name: (small, jax.devices()))
  monkeypatch.setattr(fit, "advice", lambda *_: {"train.accumulate": 2, "model.remat": True})
  text = plan_text.lay_out(elsewhere.cost_on(trials({"data": 1}), "here"))
  assert (
    "does not fit (its peak is 0.00 GB); it would fit with train.accumulate=2 and model" in text
  )


@pytest.mark.parametrize("limit", [300, 400, 10**9])
def test_the_largest_that_fits(limit):
  """Found in few tries where memory is linear but for a step, as of another algorithm."""
  tried = []

  def peak_of(number):
    tried.append(number)
    taken = 100 + 7 * number + (300 if number > 40 else 0)
    return taken if taken <= 2 * limit else math.inf

  found = fit.largest(8, 156, 0, peak_of, limit, step=4)
  assert found % 4 == 0 and len(tried) <= 6
  truth = max(n for n in range(4, fit.MOST + 1, 4) if 100 + 7 * n + 300 * (n > 40) <= limit)
  assert 0.9 * truth <= found <= truth


def test_compilations_are_kept(tmp_path, monkeypatch):
  """The second time nothing is compiled; another program and another device are."""
  program = lambda n: jax.jit(lambda x: x * n).lower(jax.ShapeDtypeStruct((4,), "float32"))
  first = compiled.build([program(2), program(2), program(3)], "here", tmp_path)
  assert len(list(tmp_path.iterdir())) == 2 and first[0] == first[1] != first[2]
  monkeypatch.setattr(compiled, "_compile", lambda *_: compiled.Built("compiled"))
  assert compiled.build([program(2)], "here", tmp_path) == first[:1]
  assert compiled.build([program(2)], "there", tmp_path)[0].text == "compiled"
  assert compiled.build([program(4)], "here", tmp_path)[0].text == "compiled"
  for path in tmp_path.iterdir():
    path.write_bytes(path.read_bytes()[:-9])
  assert compiled.build([program(2), program(3)], "here", tmp_path)[1].text == "compiled"


@pytest.mark.parametrize(
  ("name", "says"),
  [
    ("v5", "unknown device 'v5'; did you mean 'v5"),
    ("h200:2x2", "a slice such as 4x4 is for TPUs, expected 'h200:4'"),
    ("v5e:4x4", "pip install -e '.\\[plan-tpu\\]'"),
    ("l4", "pip install -e '.\\[plan-cuda\\]'"),
  ],
)
def test_devices_that_cannot_be_compiled_for(name, says):
  compiler = {"v5e:4x4": "libtpu", "l4": "jax_cuda12_plugin"}.get(name)
  if compiler and importlib.util.find_spec(compiler):
    pytest.skip("the compiler is here")
  with pytest.raises(UserError, match=says):
    devices.describe(name)


@pytest.mark.parametrize(
  ("name", "place"),
  [
    ("jit(f)/jvp(Decoder)/trunk/while/body/closed_call/layers/mlp/up_proj/dot_general",
     "forward    trunk/layers/mlp/up_proj/dot_general"),
    ("jit(f)/vmap(transpose(jvp(Decoder)))/trunk/while/body/closed_call/checkpoint/layers/add",
     "backward   trunk/layers/add"),
    ("jit(f)/transpose(jvp(Decoder))/trunk/checkpoint/rematted_computation/layers/attn/jit(_pad)/pad",
     "recomputed trunk/layers/attn/pad"),
  ],
)  # fmt: skip
def test_where_an_operation_comes_from(name, place):
  assert plan_text.place(name) == place


def test_a_plan_is_data_and_text(here, tmp_path):
  """Of a config with two trials, whose step is spread over four devices."""
  config = jaxtune.load_config(tiny.ROOT / "configs/quickstart.py")
  with config.unlocked():
    config.sweep = ({"seed": [1, 2]},)
    config.method = {"name": "prompt", "length": 3}
    config.train.batch_size, config.train.compilation_cache = 4, None
  (program,) = (plan := jaxtune.plan(config, device="here", text=tmp_path / "text")).programs
  assert len(program.trials) == 2 and program.cost["devices"] == 4
  text = str(plan)
  assert "on each of 4 devices" in text and "GB by all-reduce" in text
  for kind in ("training step", "evaluation", "generation"):
    assert re.search(f"{kind}.*: 2 trials", text)
  assert program.cost["programs"]["generation"]["parts_GB"]["cache"] > 0
  assert program.cost["programs"]["evaluation"]["parts_GB"]["logits"] > 0
  assert (tmp_path / "text").read_text().count("HloModule") == 3


def test_a_plan_for_the_processor():
  """Has no rates to compare with, and says what it knows."""
  config = made_trials.complete({"name": "lora"}, CHANGES)
  config["evaluate"]["shots"] = 2
  found = elsewhere.cost_on([with_config(made_trials.make(tiny.make("llama")), config)], "cpu")
  step, text = found["programs"]["training step"], plan_text.lay_out(found)
  assert step["floor_ms"] is step["traffic_ms"] is None and found["side_by_side"] == 1
  assert step["parts_GB"]["activations"] > 0 and "GB left" not in text and " left: " in text
  assert "GFLOP" in text and "peak rates" not in text
  assert "not planned: the judgement of the base with evaluate.shots=2" in text


@pytest.mark.full
def test_what_is_stored_for_the_backward_pass():
  """Less with every kind of rematerialisation, the more it computes again."""
  taken = []
  for remat in (True, "linear", False):
    pretrained = tiny.random(tiny.ARCHITECTURES["llama"] | {"num_hidden_layers": 12}, remat=remat)
    config = made_trials.complete({"name": "lora"}, {"train.mesh": {"data": 1}})
    trial = with_config(made_trials.make(pretrained), config)
    group = lowered.outline([trial])
    program = lowered.lower_step(group, lowered.step_batch(group), 1)
    taken.append(program.compile().memory_analysis().temp_size_in_bytes)
  assert taken[0] < taken[1] < taken[2]
