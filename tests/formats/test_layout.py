"""What the files hold, computed by hand from the formats' definitions."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file
from support import tiny

from jaxtune import peft, tree
from jaxtune.api.export import choose_format, export
from jaxtune.errors import UserError
from jaxtune.formats import merged
from jaxtune.formats.adapterhub import configs
from jaxtune.models import hf


def laid(pretrained, **section):
  methods, tuned, hyper, base = tiny.lay(pretrained, section, noise=0.1)
  return methods, {"params": {}, "peft": {}} | tuned, hyper, base


def files(folder):
  config = json.loads((folder / "adapter_config.json").read_text())
  return config, load_file(folder / "adapter_model.safetensors")


def numbers(config, module):
  """Rank and alpha of a module, as PEFT finds them."""
  find = lambda patterns, default: next(
    (x for name, x in patterns.items() if f".{module}".endswith(f".{name}")), default
  )
  rank = find(config["rank_pattern"], config["r"])
  return rank, find(config["alpha_pattern"], config["lora_alpha"])


def delta_in_torch(config, tensors, module):
  """The (out, in) delta that PEFT adds to a module's weight."""
  rank, alpha = numbers(config, module)
  a, b = (tensors[f"base_model.model.{module}.lora_{x}.weight"] for x in "AB")
  assert a.shape[0] == b.shape[1] == rank
  assert not config["use_rslora"]
  return alpha / rank * b @ a


def our_delta(pretrained, methods, tuned, hyper, base, path):
  after = tree.flatten(peft.merge(peft.Adapted(methods, tuned, hyper, base)))[path]
  return np.asarray(after - tree.flatten(pretrained.params)[path])


@pytest.mark.parametrize(
  "options",
  [
    dict(rank=3),
    dict(rank=8, alpha=5.0, rslora=True),
    dict(rank=4, scale=0.3),
    dict(rank=2, targets=(".*_proj", "head")),
  ],
)
def test_lora_of_llama(llama, tmp_path, options):
  made = laid(llama, name="lora", **options)
  config, tensors = files(export(llama, peft.Adapted(*made), tmp_path / "x").folder)
  assert config["peft_type"] == "LORA" and config["task_type"] == "CAUSAL_LM"
  wanted = {"q_proj", "v_proj"}
  if "targets" in options:
    wanted = {f"{x}_proj" for x in ("q", "k", "v", "o", "gate", "up", "down")} | {"lm_head"}
  assert set(config["target_modules"]) == wanted
  assert len(tensors) == 2 * (3 * len(wanted - {"lm_head"}) + ("lm_head" in wanted))
  for i in range(3):
    theirs = delta_in_torch(config, tensors, f"model.layers.{i}.self_attn.v_proj")
    ours = our_delta(llama, *made, "trunk/layers/attn/v_proj/kernel")[i]
    np.testing.assert_allclose(theirs, ours.T, atol=1e-6)
  if "lm_head" in wanted:
    theirs = delta_in_torch(config, tensors, "lm_head")
    np.testing.assert_allclose(theirs, our_delta(llama, *made, "head/kernel").T, atol=1e-6)


@pytest.mark.parametrize("parts", ["q", "k", "qv", "kv", "qkv"])
def test_lora_of_split_projections_joins_exactly(gpt2, tmp_path, parts):
  made = laid(gpt2, name="lora", rank=2, targets=tuple(f"{p}_proj" for p in parts))
  config, tensors = files(export(gpt2, peft.Adapted(*made), tmp_path / "x").folder)
  assert config["target_modules"] == ["c_attn"] and config["fan_in_fan_out"]
  assert config["r"] == 2 * len(parts) and config["lora_alpha"] == 16 * len(parts)
  for i in range(3):
    theirs = delta_in_torch(config, tensors, f"transformer.h.{i}.attn.c_attn")
    for j, part in enumerate("qkv"):
      rows = theirs[32 * j : 32 * (j + 1)]
      if part in parts:
        ours = our_delta(gpt2, *made, f"trunk/layers/attn/{part}_proj/kernel")[i]
        np.testing.assert_allclose(rows, ours.T, atol=1e-6)
      else:
        assert not rows.any()


def test_ranks_and_scales_that_differ(gpt2, tmp_path):
  """Parts of a fused module with their own ranks and scales; another module with its own."""
  methods, tuned, hyper, base = laid(
    gpt2, name="lora", rank=4, targets=("q_proj", "v_proj", "o_proj", "down_proj")
  )
  flat, fixed = tree.flatten(tuned), tree.flatten(hyper)
  attn = "trunk/layers/attn"
  flat[f"peft/{attn}/q_proj/lora/a"] = flat[f"peft/{attn}/q_proj/lora/a"][..., :1]
  flat[f"peft/{attn}/q_proj/lora/b"] = flat[f"peft/{attn}/q_proj/lora/b"][:, :1]
  fixed[f"{attn}/v_proj/lora/scale"] *= 0.5
  fixed[f"{attn}/o_proj/lora/scale"] *= np.array([1.0, 2.0, 3.0], np.float32)
  made = methods, {"params": {}} | tree.unflatten(flat), tree.unflatten(fixed), base
  config, tensors = files(export(gpt2, peft.Adapted(*made), tmp_path / "x").folder)
  assert set(config["target_modules"]) == {"c_attn", "attn.c_proj", "mlp.c_proj"}
  for i in range(3):
    for ours, theirs, start in (
      ("attn/q_proj", "attn.c_attn", 0),
      ("attn/v_proj", "attn.c_attn", 64),
      ("attn/o_proj", "attn.c_proj", 0),
      ("mlp/down_proj", "mlp.c_proj", 0),
    ):
      theirs = delta_in_torch(config, tensors, f"transformer.h.{i}.{theirs}")
      ours = our_delta(gpt2, *made, f"trunk/layers/{ours}/kernel")[i]
      np.testing.assert_allclose(theirs[start : start + ours.shape[1]], ours.T, atol=1e-6)


@pytest.mark.parametrize("projection", [None, 6])
def test_prefix(llama, tmp_path, projection):
  methods, tuned, hyper, base = laid(llama, name="prefix", length=5, projection=projection)
  config, tensors = files(
    export(llama, peft.Adapted(methods, tuned, hyper, base), tmp_path / "x").folder
  )
  assert (config["num_virtual_tokens"], config["num_layers"]) == (5, 3)
  assert (config["num_attention_heads"], config["token_dim"]) == (2, 16)
  assert list(tensors) == ["prompt_embeddings"]
  flat = tensors["prompt_embeddings"]
  read = peft.reparametrise(methods, tuned["peft"])["trunk"]["layers"]["attn"]["attend"]["prefix"]
  for layer in range(3):
    for i, name in enumerate(("key", "value")):
      for head in range(2):
        start = (2 * layer + i) * 16 + head * 8
        wanted = read[name][layer, :, head]
        np.testing.assert_array_equal(flat[:, start : start + 8], wanted)


def test_prefix_leaves_the_masked_rows_out(llama, tmp_path):
  """As in a group of trials, where shorter prefixes are padded."""
  methods, tuned, hyper, base = laid(llama, name="prefix", length=5)
  flat = tree.flatten(hyper)
  flat["trunk/layers/attn/attend/prefix/mask"] = np.arange(5)[None] < np.full((3, 1), 2)
  flat["trunk/prefix/offset"] = np.asarray(2)
  hyper = tree.unflatten(flat)
  config, tensors = files(
    export(llama, peft.Adapted(methods, tuned, hyper, base), tmp_path / "x").folder
  )
  assert config["num_virtual_tokens"] == 2
  assert tensors["prompt_embeddings"].shape == (2, 3 * 2 * 16)


@pytest.mark.parametrize("hidden", [32, 96, 100, 768, 4096])
def test_reduction_factor_gives_every_width(hidden):
  for width in range(1, hidden + 1):
    written = json.loads(json.dumps(configs.reduction_factor(hidden, width)))
    assert int(hidden // written) == width


@pytest.mark.parametrize(
  ("placement", "locations"),
  [("pfeiffer", ["output"]), ("houlsby", ["attention", "output"]), ("parallel", ["output"])],
)
def test_adapter(gpt2, tmp_path, placement, locations):
  methods, tuned, hyper, base = laid(gpt2, name="adapter", width=5, placement=placement)
  folder = export(gpt2, peft.Adapted(methods, tuned, hyper, base), tmp_path / "x").folder
  config = json.loads((folder / "adapter_config.json").read_text())
  assert config["config"]["scaling"] == (4.0 if placement == "parallel" else 1.0)
  tensors = load_file(folder / "adapter.safetensors")
  assert len(tensors) == 3 * 4 * len(locations)
  read = tuned["peft"]["trunk"]["layers"]["mlp_residual"]["adapter"]
  for i in range(3):
    for location in locations:
      key = f"transformer.h.{i}.{location}_adapters.adapters.{config['name']}."
      assert tensors[f"{key}adapter_down.0.bias"].shape == (5,)
    np.testing.assert_array_equal(tensors[f"{key}adapter_down.0.weight"], read["down_kernel"][i].T)
    np.testing.assert_array_equal(tensors[f"{key}adapter_up.bias"], read["up_bias"][i])


def test_adapter_scales_that_differ_go_into_the_weights(gpt2, tmp_path):
  methods, tuned, hyper, base = laid(gpt2, name="adapter", width=5)
  flat = tree.flatten(hyper)
  flat["trunk/layers/mlp_residual/adapter/scale"] *= np.array([1.0, 2.0, 3.0], np.float32)
  hyper = tree.unflatten(flat)
  folder = export(gpt2, peft.Adapted(methods, tuned, hyper, base), tmp_path / "x").folder
  tensors = load_file(folder / "adapter.safetensors")
  read = tuned["peft"]["trunk"]["layers"]["mlp_residual"]["adapter"]["up_bias"][2]
  key = "transformer.h.2.output_adapters.adapters.jaxtune.adapter_up.bias"
  np.testing.assert_allclose(tensors[key], 3 * read, rtol=1e-6)


def test_merged_model_stays_tied_and_reports_its_rounding(llama3, tmp_path):
  made = laid(llama3, name="lora", rank=2)
  result = export(llama3, peft.Adapted(*made), tmp_path / "x", format="merged", dtype="bfloat16")
  assert "lm_head.weight" not in load_file(result.folder / "model.safetensors")
  assert json.loads((result.folder / "config.json").read_text())["dtype"] == "bfloat16"
  path = "trunk/layers/attn/q_proj/kernel"
  assert set(result.rounding.tensors) == {path, path.replace("q_proj", "v_proj")}
  before = np.asarray(tree.flatten(llama3.params)[path])
  after = np.asarray(tree.flatten(peft.merge(peft.Adapted(*made)))[path])
  stored = np.asarray(tree.flatten(hf.load(str(result.folder)).params)[path])
  error = np.linalg.norm(stored - after) / np.linalg.norm(after - before)
  assert result.rounding.tensors[path].error == pytest.approx(error, rel=1e-4)
  assert 0 < result.rounding.overall.error < 0.1


def test_rounding_counts_the_entries_that_a_cast_loses():
  before = {"w": np.ones(4, np.float32)}
  after = {"w": np.array([1.0, 1.001, 1.002, 1.5], np.float32)}
  loss = merged.rounding(before, after, "bfloat16").overall
  assert loss.lost == pytest.approx(2 / 3)
  assert loss.error == pytest.approx(np.sqrt(0.001**2 + 0.002**2) / np.sqrt(0.250005), rel=1e-3)
  assert merged.rounding(before, after, "float32").overall == (0.0, 0.0)
  assert merged.rounding(before, before, "bfloat16").overall == (0.0, 0.0)


LORA, PREFIX = dict(name="lora", rank=2), dict(name="prefix", length=2)


@pytest.mark.parametrize(
  ("section", "format", "message"),
  [
    (LORA, "onnx", "unknown export format"),
    (LORA, "adapterhub", "format='peft'"),
    (PREFIX, "merged", "format='peft'"),
    (dict(name="full"), "peft", "format='merged'"),
    (dict(name="adapter", width=2), "peft", "format='adapterhub'"),
    (dict(name="adapter", width=2), "merged", "format='adapterhub'"),
    (dict(name="stack", a=LORA, b=PREFIX), "auto", "train a in a run of its own, .* as model.path"),
    (dict(name="stack", a=PREFIX, b=dict(name="reft")), "auto", "each part in a run of its own"),
    (dict(name="stack", a=LORA, b=dict(name="bitfit")), "peft", "format='merged'"),
    (PREFIX | dict(shift=False), "peft", "format='adapterhub'"),
  ],
)
def test_refuses_what_a_format_cannot_express(gpt2, tmp_path, section, format, message):
  with pytest.raises(UserError, match=message):
    export(gpt2, peft.Adapted(*laid(gpt2, **section)), tmp_path / "x", format=format)
  assert not list(tmp_path.iterdir())


def test_refuses_an_adapter_dtype(gpt2, tmp_path):
  with pytest.raises(UserError, match="float32"):
    export(gpt2, peft.Adapted(*laid(gpt2, **LORA)), tmp_path / "x", dtype="bfloat16")


def test_parts_of_a_stack(gpt2, tmp_path):
  methods, tuned, hyper, base = laid(gpt2, name="stack", a=LORA, b=PREFIX)
  made = export(gpt2, peft.Adapted(methods[1:], tuned, hyper, base), tmp_path / "x")
  assert files(made.folder)[0]["peft_type"] == "PREFIX_TUNING"
  both = laid(gpt2, name="stack", a=LORA, b=dict(name="bitfit"))
  assert choose_format(peft.Adapted(*both)) == "merged"
  with pytest.raises(UserError, match="trained too"):
    export(gpt2, peft.Adapted(both[0][:1], *both[1:]), tmp_path / "y")


def test_an_earlier_export_survives_a_failure(gpt2, tmp_path, monkeypatch):
  made, folder = laid(gpt2, **LORA), tmp_path / "x"
  export(gpt2, peft.Adapted(*made), folder)
  before = {p.name: p.read_bytes() for p in folder.iterdir()}

  def full_disk(*args):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr("jaxtune.files.save_file", full_disk)
  with pytest.raises(UserError, match="No space left"):
    export(gpt2, peft.Adapted(*made), folder)
  assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
  assert [p.name for p in tmp_path.iterdir()] == ["x"]
