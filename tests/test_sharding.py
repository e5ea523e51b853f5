"""Every layout of four devices gives what one device gives, in training and in evaluation."""

import functools
import json
import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from safetensors.numpy import load_file
from support import made_trials, tiny

from jaxtune import peft, sharding, tree
from jaxtune.data import pack
from jaxtune.errors import UserError
from jaxtune.evaluation import answers, texts
from jaxtune.evaluation.options import EvaluateOptions
from jaxtune.models import hf
from jaxtune.preflight import checks, hlo, lowered, modules
from jaxtune.runs import baseline, programs
from jaxtune.runs.first_state import first_state
from jaxtune.runs.trial import with_config
from jaxtune.training import loop
from jaxtune.training.progress import begin

LORA = {"name": "lora", "rank": 2}
METHODS = [
  LORA,
  {"name": "adapter", "placement": "houlsby"},
  {"name": "prefix", "length": 2},
  {"name": "prefix", "length": 2, "projection": 4},
  {"name": "full"},
  {"name": "stack", "one": LORA, "two": {"name": "adapter"}},
]
SINGLE = {"train.mesh": {"data": 1}}
LAYOUTS = {
  "pmap": {"train.mesh": None, "train.parallel": "pmap"},
  "fsdp_tensor": {"train.mesh": {"fsdp": 2, "tensor": 2}, "train.accumulate": 2},
  "uneven": {"train.mesh": {"tensor": 3}},
  "sequence": {"train.mesh": {"fsdp": 2, "sequence": 2}},
}
STEPS = {"train.steps": 10, "train.eval_every": 5, "train.batch_size": 8, "evaluate.batch_size": 3}


def go(folder, setup, configs):
  """Trains; returns each trial's losses by step, final metrics and weights."""
  folders = [folder / str(i) for i in range(len(configs))]
  (base,) = baseline.evaluate_bases([with_config(setup, configs[0])])
  results = made_trials.run(configs, folders, setup, folder / "checkpoints", base)
  found = []
  for result, one in zip(results, folders, strict=True):
    rows = map(json.loads, (one / "metrics.jsonl").read_text().splitlines())
    losses = [row.get("train_loss", row.get("validation_loss")) for row in rows]
    numbers = [result["final"][k] for k in sorted(result["final"])] + list(
      base.base.metrics.values()
    )
    found.append((losses, numbers, load_file(one / "tuned.safetensors")))
  return found


def equal(found, expected):
  for (losses, numbers, weights), (want_losses, want_numbers, want_weights) in zip(
    found, expected, strict=True
  ):
    np.testing.assert_allclose(losses, want_losses, rtol=0, atol=1e-5)
    np.testing.assert_allclose(numbers, want_numbers, rtol=1e-5, atol=1e-4)
    assert {*weights} == {*want_weights}
    for name, leaf in weights.items():
      np.testing.assert_allclose(leaf, want_weights[name], rtol=0, atol=1e-5, err_msg=name)


@pytest.fixture(scope="module")
def single(llama, tmp_path_factory):
  configs = [made_trials.complete({"name": "full"}, STEPS | SINGLE | {"optim.learning_rate": 1e-3})]
  return go(tmp_path_factory.mktemp("single"), made_trials.make(llama), configs)


@pytest.mark.parametrize("layout", ["fsdp_tensor", "uneven", "sequence"])
def test_a_layout_equals_a_single_device(llama, single, tmp_path, layout):
  changes = STEPS | {"optim.learning_rate": 1e-3} | LAYOUTS[layout]
  found = go(tmp_path, made_trials.make(llama), [made_trials.complete({"name": "full"}, changes)])
  equal(found, single)


@pytest.mark.full
def test_trials_over_devices(gpt2, tmp_path):
  """Under pmap; on meshes, runs/test_group.py has them."""
  setup, found = made_trials.make(gpt2), {}
  for name, changes in {"single": SINGLE, "pmap": LAYOUTS["pmap"]}.items():
    configs = [
      made_trials.complete(LORA, STEPS | changes | {"method.rank": rank}) for rank in (1, 4)
    ]
    found[name] = go(tmp_path / name, setup, configs)
  equal(found["pmap"], found["single"])


def made_for(name, method=LORA, **model):
  """Returns a model, its config and a batch (1, 1, B, ...): of 8 rows, whose lengths differ."""
  rng = np.random.default_rng(0)
  arrays = dict(made_trials.split(8, 3).arrays)
  if name == "bert":
    pretrained = tiny.make(name, head="classify", labels=3)
    changes, labels = {"objective": {"name": "classify"}}, rng.integers(0, 3, 8).astype(np.int32)
    arrays |= {"labels": labels, "weights": np.ones(8, np.float32)}
  else:
    pretrained, changes = tiny.make(name, **model), {}
  if name == "t5":
    arrays |= {"inputs": arrays["tokens"][:, :12], "inputs_mask": arrays["mask"][:, :12]}
  config = made_trials.complete(method, {"train.batch_size": 8} | changes)
  return pretrained, config, {key: x[None, None] for key, x in arrays.items()}


def steps(made, mesh, trials=1, count=1):
  """Returns the weights and sums after some steps of equal trials, and the module's text."""
  pretrained, config, batch = made
  trial = with_config(made_trials.make(pretrained), config)
  state, base = first_state(trial)
  parallel = sharding.make("jit", mesh)
  step: Any = parallel.compile(loop.make_step(programs.make_program(trial), 1), donate=True)
  progress = parallel.put(jax.tree.map(jnp.copy, begin(tree.stack([state] * trials))), "trial")
  carry = (progress.state, progress.sums)
  batch = {name: np.concatenate([x] * trials) for name, x in batch.items()}
  placed = parallel.put(base), parallel.put_batch(batch)
  compiled = step.lower(carry, *placed).compile()
  for _ in range(count):
    carry = jax.device_put(compiled(carry, *placed), compiled.input_shardings[0][0])
  return jax.tree.map(np.asarray, (carry[0].tuned, carry[1])), compiled.as_text()


@functools.cache
def stepped(name):
  """Makes a model and its batch, and a step of it on one device."""
  made = made_for(name)
  return made, steps(made, {"data": 1})[0]


@pytest.mark.full
@pytest.mark.parametrize("mesh", [{"fsdp": 2, "tensor": 2}, {"sequence": 4}], ids=str)
@pytest.mark.parametrize("name", ["bert", "t5", "gemma2"])
def test_a_step_of_every_kind_of_model(name, mesh):
  """An encoder with a head, an encoder-decoder, and a decoder of local and global layers."""
  made, alone = stepped(name)
  close = lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)
  jax.tree.map(close, steps(made, mesh)[0], alone)


@pytest.fixture(scope="module")
def stacked():
  """A decoder with LoRA and a prefix, and two steps of two trials of it on one device."""
  section = {"name": "stack", "one": LORA, "two": {"name": "prefix", "length": 4}}
  made = made_for("llama", section)
  return made, steps(made, {"data": 1}, 2, 2)[0]


@pytest.mark.parametrize("mesh", [{"fsdp": 2, "tensor": 2}, {"trial": 2, "fsdp": 2}], ids=str)
def test_large_arrays_of_methods_are_split(stacked, mesh, monkeypatch):
  """Each layer's are gathered where they are used, so that no activation is summed for them."""
  made, whole = stacked
  monkeypatch.setattr(sharding, "LARGE", 0)
  found, text = steps(made, mesh, 2, 2)
  close = lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=2e-6)
  jax.tree.map(close, found, whole)
  layout = sharding.make("jit", mesh).mesh
  a, b = jnp.zeros((2, 3, 32, 2)), jnp.zeros((2, 3, 2, 16))
  placed = sharding.shardings(layout, {"peft": {"q": {"lora": {"a": a, "b": b}}}}, "trial")
  assert {x.spec for x in jax.tree.leaves(placed)} == {
    P("trial", None, "fsdp", None), P("trial", None, None, "fsdp")
  }  # fmt: skip
  monkeypatch.setattr(sharding, "LARGE", 2**23)
  assert {x.spec for x in jax.tree.leaves(sharding.shardings(layout, {"peft": {"a": a}}))} == {
    P(None, None, None, None)
  }


@pytest.mark.parametrize(
  ("mesh", "alone"), [({"trial": 4}, {"data": 1}), ({"trial": 2, "fsdp": 2}, {"fsdp": 2})], ids=str
)
def test_devices_share_trials_and_exchange_what_they_do_for_one(llama, mesh, alone):
  """One trial at a time, as alone: of the trials nothing, and of the base each layer's weights."""
  setup, generate = made_trials.make(llama), {"generate": True, "max_new_tokens": 3}

  def programs_of(count, mesh):
    changes = {"train.mesh": mesh, "train.batch_size": 8}
    configs = [
      made_trials.complete(LORA, changes | {"seed": seed}, evaluate=generate)
      for seed in range(count)
    ]
    group = lowered.outline([with_config(setup, config) for config in configs])
    for kind, batch in lowered.batches(group).items():
      compiled = lowered.LOWER[kind](group, batch, 1).compile()
      found = modules.operations(hlo.parse(compiled.as_text()))
      results = {"all-gather"} if kind == "evaluation" else set()  # they are whole on every device
      moved = [o.moved for o in found if o.collective and o.collective not in results]
      yield kind, compiled.cost_analysis()["flops"], sum(moved)

  share = 4 // mesh["trial"]
  for (kind, work, moved), (_, expected, exchanged) in zip(
    programs_of(4, mesh), programs_of(1, alone), strict=True
  ):
    assert work == pytest.approx(expected, rel=0.01), f"{kind}: loops count once"
    assert moved <= 1.05 * share * exchanged, f"{kind}: embeddings are exchanged once more"


@pytest.mark.parametrize(
  ("mesh", "rows", "count", "share"),
  [
    ({"data": 2, "fsdp": 2}, 16, 42, 2),
    ({"data": 4}, 16, 15, 16),  # the answers to one prompt, as a policy draws them
  ],
  ids=str,
)
def test_devices_share_the_rows_of_generated_texts(llama, mesh, rows, count, share):
  """Each has its part of the cache, which stays where it is, and the texts are those of one."""
  trial = with_config(made_trials.make(llama), made_trials.complete(LORA))
  state, base = first_state(trial)
  length, new = 8, 9
  options = EvaluateOptions(batch_size=rows, max_new_tokens=new, temperature=1.0)
  stops = tuple(range(0, tiny.VOCABULARY, 6))
  tokens_NT, mask_NT = texts.pad_left(
    [np.arange(n // share % length + 1) + n // share for n in range(count)], 0, length, count + 1
  )
  prompts = {"tokens": tokens_NT, "mask": mask_NT, "numbers": np.arange(count + 1)}
  prompts = {name: x[None] for name, x in prompts.items()}
  prompts |= {"count": np.array([count]), "seed": np.array([3])}

  def completed(mesh):
    parallel = sharding.make("jit", mesh)
    complete: Any = answers.completer(
      programs.make_program(trial), options, stops, parallel=parallel, chunk=1, share=share
    )
    overlays = parallel.put(tree.stack([peft.Overlay(state.tuned, state.hyper)]), "trial")
    arguments = overlays, parallel.put(base), prompts
    compiled = complete.lower(*arguments).compile()
    return np.asarray(compiled(*arguments))[0, :count], compiled

  (found, split), (expected, whole) = completed(mesh), completed({"data": 1})
  np.testing.assert_array_equal(found, expected)
  c, moved = llama.model.config, modules.operations(hlo.parse(split.as_text()))
  cache = 2 * 4 * c.layers * rows * c.kv_heads * (length + new) * c.head_size
  assert max(one.moved for one in moved if one.collective) < cache / 4, "data's part is a half"
  saved = [one.memory_analysis().temp_size_in_bytes for one in (whole, split)]
  assert saved[0] - saved[1] > cache / 2


@functools.cache
def packed(length):
  """Makes a decoder with LoRA and a prefix, logits of a few tokens at a time, and packed rows."""
  section = {"name": "stack", "one": LORA, "two": {"name": "prefix", "length": 3}}
  pretrained, config, _ = made_for("llama", section, remat="linear", scored_tokens=32)
  arrays = pack.pack(made_trials.split(24, 3), length)[0].arrays
  made = pretrained, config, {name: x[None, None, :8] for name, x in arrays.items()}
  return made, steps(made, {"data": 1}, count=3)[0]


@pytest.mark.parametrize(
  ("mesh", "length"),
  [
    ({"sequence": 4}, 32),
    pytest.param({"sequence": 4}, 29, marks=pytest.mark.full),
    pytest.param({"trial": 2, "sequence": 2}, 32, marks=pytest.mark.full),
    pytest.param({"fsdp": 2, "sequence": 2}, 32, marks=pytest.mark.full),
    pytest.param({"tensor": 2, "sequence": 2}, 32, marks=pytest.mark.full),
  ],
  ids=str,
)
def test_tokens_are_split(mesh, length):
  """Where a row divides, keys and values are gathered, their gradients summed, and little else."""
  made, alone = packed(length)
  found, text = steps(made, mesh, mesh.get("trial", 1), 3)
  close = lambda x, y: np.testing.assert_allclose(x, np.broadcast_to(y, x.shape), atol=2e-6)
  jax.tree.map(close, found, alone)
  if (mesh, length) == ({"sequence": 4}, 32):
    moved = [one for one in modules.operations(hlo.parse(text)) if one.collective]
    gathered = sum(one.moved for one in moved if one.collective == "all-gather")
    c = made[0].model.config
    keys = 2 * 4 * c.layers * made[2]["tokens"].size * c.kv_heads * c.head_size
    assert 2 * keys <= gathered < 2.1 * keys, "forward, and again for the backward pass"
    assert sum(one.moved for one in moved) - gathered < 1.2 * keys


@dataclass(frozen=True)
class Chip:
  """As jax describes one of a TPU's slice of 4 x 4."""

  id: int
  platform: str = "tpu"
  device_kind: str = "TPU v6 lite"
  core_on_chip: int = 0
  process_index: int = 0

  @property
  def coords(self):
    return self.id % 4, self.id // 4, 0


MESHES = [{"data": 2, "fsdp": 8}, {"fsdp": 2, "tensor": 8}, {"data": 6}]


@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_any_mesh_of_a_tpu_s_slice_is_arranged(mesh):
  """Also where it splits an axis of the slice's torus, or is of some of its devices."""
  chips = [Chip(i) for i in range(16)]
  found = sharding.make("jit", mesh, chips)
  assert {*found.mesh.devices.flat} == {*chips[: found.devices]}
  assert found.devices == math.prod(mesh.values())


@pytest.mark.full
def test_pmap_resumes(llama, tmp_path, monkeypatch):
  """As if it had been killed after its third step: the later checkpoints are taken away.

  Meshes resume in training/test_turns.py, and on other meshes in training/test_hosts.py.
  """
  setup, taken, real = made_trials.make(llama), [], loop.make_batch
  changes = LAYOUTS["pmap"] | {"train.checkpoint_every": 3, "train.keep": "last"}
  config = made_trials.complete(LORA, changes)
  whole = go(tmp_path, setup, [config])
  saved = tmp_path / "checkpoints"
  (saved / "6").rename(tmp_path / "gone")
  assert [p.name for p in saved.iterdir()] == ["3"]

  def make_batch(splits, seeds, steps, *others):
    taken.extend(steps)
    return real(splits, seeds, steps, *others)

  monkeypatch.setattr(loop, "make_batch", make_batch)
  again = go(tmp_path, setup, [config])
  assert taken == [3, 4, 5]
  assert whole[0][0] == again[0][0]
  for name, leaf in whole[0][2].items():
    np.testing.assert_array_equal(leaf, again[0][2][name])


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("optimizer", ["adamw", "lion", "sgd"])
def test_the_rules_cover_every_leaf(request, family, optimizer):
  setup = made_trials.make(request.getfixturevalue(family))
  mesh = sharding.make("jit", {"fsdp": 2, "tensor": 2}).mesh
  methods = METHODS + [{"name": "bitfit"}] * (family == "gpt2")
  for method in methods:
    config = made_trials.complete(method, {"optim.name": optimizer})
    state, base = jax.eval_shape(lambda c=config: first_state(with_config(setup, c)))
    progress = jax.eval_shape(lambda s: begin(tree.stack([s])), state)
    sharding.shardings(mesh, progress, "trial")
    placed = tree.flatten(sharding.shardings(mesh, base))
    if "trunk/layers/attn/q_proj/kernel" in placed:
      assert placed["trunk/layers/attn/q_proj/kernel"].spec == P(None, "fsdp", "tensor")
      assert placed["trunk/layers/mlp/down_proj/kernel"].spec == P(None, "tensor", "fsdp")
      assert placed["trunk/layers/attn_norm/scale"].spec == P(None, None)
      assert placed["embed/embedding"].spec == P(None, "fsdp"), "61 rows do not divide by 2"


@pytest.mark.parametrize("form", [None, pytest.param("int8", marks=pytest.mark.full)])
def test_weights_are_loaded_into_their_shards(llama, tmp_path, form):
  lie_in_their_shards(str(hf.save(llama, llama.params, tmp_path / "base")), quantize=form)


@pytest.mark.parametrize("form", [None, pytest.param("nf4", marks=pytest.mark.full)])
def test_random_weights_are_made_in_their_shards(form, monkeypatch):
  monkeypatch.setattr(sharding, "hosts", None)  # which would put them there from the first device
  lie_in_their_shards(architecture=tiny.ARCHITECTURES["llama"], quantize=form)


def lie_in_their_shards(*model, **options):
  """Loads a model onto a mesh and onto a device: to the same bits."""
  parallel = sharding.make("jit", {"fsdp": 2, "tensor": 2})
  found = hf.load(*model, **options, parallel=parallel).params
  assert tree.fingerprint(found) == tree.fingerprint(hf.load(*model, **options).params)
  wanted = sharding.shardings(parallel.mesh, found)
  assert jax.tree.map(lambda x: x.sharding, found) == wanted


def test_a_batch_is_on_its_devices_before_a_step_takes_it():
  rows = {"tokens": np.zeros((1, 1, 8, 2), np.int32)}
  for devices in (1, 4):
    placed = sharding.make("jit", {"data": devices}).put_batch(rows)["tokens"]
    assert isinstance(placed, jax.Array) and len(placed.devices()) == devices


def test_moments_lie_as_their_weights(llama):
  setup = made_trials.make(llama)
  state, _ = jax.eval_shape(
    lambda: first_state(with_config(setup, made_trials.complete({"name": "full"})))
  )
  stacked = jax.eval_shape(lambda s: tree.stack([s, s]), state)
  mesh = sharding.make("jit", {"trial": 2, "fsdp": 2}).mesh
  placed = sharding.shardings(mesh, stacked, "trial")
  paths = jax.tree_util.tree_flatten_with_path(placed.optimizer)[0]
  found = [leaf.spec for path, leaf in paths if "o_proj" in str(path)]
  weight = placed.tuned["params"]["trunk"]["layers"]["attn"]["o_proj"]["kernel"].spec
  assert found == [weight, weight] and weight == P("trial", None, "tensor", "fsdp")


def test_an_uncovered_leaf_is_named(llama):
  mesh = sharding.make("jit", {"data": 2}).mesh
  odd = {"trunk": {"odd": np.zeros((2, 2)), "norm": {"scale": np.zeros(2)}}}
  with pytest.raises(UserError, match="no sharding rule covers trunk/odd$"):
    sharding.shardings(mesh, odd)


@pytest.mark.parametrize(
  ("mesh", "says"),
  [
    ({"data": 8}, "the number of devices is 4, expected 8"),
    ({"data": 3, "fsdp": -1}, "the number of devices is 4, expected a multiple of 3"),
    ({"data": 5, "fsdp": -1}, "the number of devices is 4, expected a multiple of 5"),
    ({"data": -1, "fsdp": -1}, "-1 for data and fsdp"),
  ],
)
def test_a_wrong_mesh_is_refused(mesh, says):
  with pytest.raises(UserError) as error:
    sharding.make("jit", mesh)
  assert says in str(error.value)


def test_pmap_has_no_mesh():
  with pytest.raises(UserError, match="train.mesh is for parallel='jit'"):
    sharding.make("pmap", {"data": 4})


@pytest.mark.parametrize(
  ("mesh", "devices", "shards"),
  [
    (None, 4, 4), ({"data": 1}, 1, 1), ({"data": 2}, 2, 2), ({"tensor": -1}, 4, 1),
    ({"data": 2, "fsdp": -1}, 4, 4), ({"trial": 2, "data": 2}, 4, 2),
  ],
)  # fmt: skip
def test_meshes(mesh, devices, shards):
  parallel = sharding.make("jit", mesh)
  assert (parallel.devices, parallel.batch_shards) == (devices, shards)


@pytest.mark.parametrize(
  "changes",
  [
    {"train.mesh": None, "train.batch_size": 6},
    {"train.mesh": None, "train.batch_size": 8, "train.accumulate": 4},
    {"train.parallel": "pmap", "train.mesh": None, "train.batch_size": 2},
    {"train.mesh": {"data": 2, "fsdp": 2}, "train.batch_size": 2},
  ],
)
def test_a_batch_that_does_not_divide_is_refused(changes):
  with pytest.raises(UserError, match="do not divide over 4 devices; use a multiple of"):
    checks.check_options(made_trials.complete(LORA, changes))
