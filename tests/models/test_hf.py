"""Folders: written and read back unchanged, refused by name, and read in little memory."""

import json
import subprocess
import sys

import huggingface_hub
import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from support import folders, tiny
from transformers import AutoModelForCausalLM

from jaxtune import tree
from jaxtune.errors import UserError
from jaxtune.models import hf, hub, tokenizer
from jaxtune.models.decoder import Decoder

WEIGHTS = "model.safetensors"


@pytest.fixture
def folder(llama, tmp_path):
  return hf.save(llama, llama.params, tmp_path / "model")


def edit(path, change):
  """Rewrites a JSON or safetensors file after `change(contents)`."""
  if path.suffix == ".json":
    contents = json.loads(path.read_text())
    change(contents)
    path.write_text(json.dumps(contents))
  else:
    contents = load_file(path)
    change(contents)
    save_file(contents, path)


def refused(folder, *words, **options):
  with pytest.raises(UserError) as caught:
    hf.load(str(folder), **options)
  message = str(caught.value)
  assert all(word in message for word in words), message
  assert "\n" not in message


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_round_trip_is_bit_equal(pretrained, dtype, tmp_path):
  folder = hf.save(pretrained, pretrained.params, tmp_path / "model", dtype)
  again = hf.load(str(folder), dtype=dtype)
  expected = jax.tree.map(lambda x: x.astype(dtype), pretrained.params)
  jax.tree.map(np.testing.assert_array_equal, again.params, expected)
  assert again.family == pretrained.family and again.folder == folder
  assert json.loads((folder / "config.json").read_text())["dtype"] == dtype


def test_saved_folder_loads_in_transformers(pretrained, tmp_path):
  folder = hf.save(pretrained, pretrained.params, tmp_path / "model")
  theirs, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
  assert not any(info.values()), info
  tokens, _ = tiny.batch()
  ours = pretrained.model.apply({"params": pretrained.params}, tokens)
  np.testing.assert_allclose(ours, tiny.torch_logits(theirs.eval(), tokens), atol=1e-4, rtol=0)


def test_a_random_model_is_drawn_as_wide_as_its_architecture_says():
  architecture = tiny.ARCHITECTURES["gpt2"]
  load = lambda **stated: tree.flatten(hf.load(architecture=architecture | stated, seed=1).params)
  drawn, same, wide = load(), load(initializer_range=0.02), load(initializer_range=0.08)
  for path, x in drawn.items():
    np.testing.assert_array_equal(same[path], x)
    factor = 4 if path.endswith(("kernel", "embedding")) else 1
    np.testing.assert_allclose(wide[path], factor * x, rtol=1e-6, err_msg=path)


def test_saving_replaces_a_folder_and_the_old_dtype_key(llama, tmp_path):
  """Also what names Python files of the base, which are not in the folder."""
  stale = {"torch_dtype": "bfloat16", "auto_map": {"AutoModelForCausalLM": "modeling_x.X"}}
  old = llama._replace(hf_config=llama.hf_config | stale)
  for _ in range(2):
    folder = hf.save(old, old.params, tmp_path / "deep" / "model")
  assert not stale.keys() & json.loads((folder / "config.json").read_text()).keys()
  theirs = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
  assert str(theirs.dtype) == "torch.float32"
  assert [p.name for p in folder.parent.iterdir()] == ["model"]


def test_gpt2_names_without_prefix(gpt2, tmp_path):
  """The hub's gpt2 has "h.0.attn..." for "transformer.h.0.attn...", and the causal mask as data."""
  folder = hf.save(gpt2, gpt2.params, tmp_path / "model")
  tensors = {k.removeprefix("transformer."): v for k, v in load_file(folder / WEIGHTS).items()}
  tensors["h.0.attn.bias"] = np.ones((1, 1, 4, 4), np.float32)
  save_file(tensors, folder / WEIGHTS)
  jax.tree.map(np.testing.assert_array_equal, hf.load(str(folder)).params, gpt2.params)


@pytest.mark.parametrize(
  "change, words",
  [
    ({"model_type": "lama"}, ("lama", "llama")),
    ({"model_type": None}, ("model_type", "gpt2")),
    ({"architectures": ["LlamaForSequenceClassification"]}, ("LlamaForSequenceClassification",)),
    ({"rope_parameters": {"rope_type": "lama3"}}, ("lama3", "llama3")),
    ({"rope_parameters": {"rope_type": "linear"}}, ("factor",)),
    ({"hidden_act": "sillu"}, ("sillu", "silu")),
    ({"num_key_value_heads": 3}, ("3", "4")),
    ({"num_attention_heads": 5}, ("num_attention_heads", "5", "32")),
    ({"vocab_size": 0}, ("config.json: vocab_size is 0", "at least 1")),
    ({"vocab_size": 10**12}, ("vocab_size", "at most")),
    ({"num_hidden_layers": 10**9}, ("num_hidden_layers", "at most")),
    ({"hidden_size": -32}, ("hidden_size is -32",)),
    ({"hidden_size": "32"}, ("hidden_size is '32'", "int")),
    ({"hidden_act": ["silu"]}, ("hidden_act is ['silu']", "silu")),
    ({"attention_bias": "false"}, ("attention_bias is 'false'", "bool")),
    ({"rms_norm_eps": float("nan")}, ("rms_norm_eps", "finite")),
    ({"rope_parameters": [1]}, ("rope_parameters is [1]", "dict")),
    ({"rope_parameters": {"rope_theta": "1"}}, ("rope_parameters.rope_theta", "float")),
    ({"rope_theta": 0}, ("rope_theta is 0", "above 1")),
    ({"architectures": [3]}, ("architectures[0] is 3", "text")),
    ({"model_type": 3}, ("model_type is 3", "text")),
  ],
)
def test_config_refused(folder, change, words):
  edit(folder / "config.json", lambda c: c.update(change))
  refused(folder, *words)


@pytest.mark.parametrize("contents", ["", "[]", "{", '{"model_type": "llama"}'])
def test_config_damaged(folder, contents):
  (folder / "config.json").write_text(contents)
  refused(folder, "config.json")


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", f"{WEIGHTS}.index.json"])
@pytest.mark.parametrize("contents", [
  '{"a": ' * 100_000 + "1" + "}" * 100_000,
  '{"weight_map": ' + "9" * 5_000 + "}",
  '{"weight_map": "\\ud800"}',
])  # fmt: skip
def test_json_that_cannot_be_read(folder, name, contents):
  if "index" in name:
    (folder / WEIGHTS).unlink()
  (folder / name).write_text(contents)
  refused(folder, name)


@pytest.mark.parametrize("path", ["", "a\0b", "/a\0b", "/" + "a" * 5_000, "~nobody/model"])
def test_path_that_cannot_be(path):
  refused(path, "model.path")


def test_weights_that_are_a_folder(folder):
  (folder / WEIGHTS).unlink()
  (folder / WEIGHTS).mkdir()
  refused(folder, f"lacks {WEIGHTS}")


def test_weights_larger_than_memory():
  """Refused by arithmetic, before anything is allocated; a plan of them is no mistake."""
  large = tiny.ARCHITECTURES["llama"] | dict(vocab_size=2**24, hidden_size=2**20)
  assert hf.outline(architecture=large).params["embed"]["embedding"].shape == (2**24, 2**20)
  with pytest.raises(UserError, match="this machine's memory"):
    hf.load(architecture=large)


@pytest.mark.parametrize(
  "change, words",
  [
    (lambda t: t.pop("model.norm.weight"), ("1 missing", "model.norm.weight")),
    (lambda t: t.pop("lm_head.weight"), ("1 missing", "lm_head.weight")),
    (
      lambda t: t.update({"model.layers.3.mlp.up_proj.weight": np.ones(2)}),
      ("1 unexpected", "model.layers.3.mlp.up_proj.weight"),
    ),
    (
      lambda t: t.update({"model.norm.weight": np.ones(31, np.float32)}),
      ("1 misshaped", "model.norm.weight (31,)", "(32,)"),
    ),
    (
      lambda t: t.update({"model.norm.weight": np.ones(32, np.int8)}),
      ("model.norm.weight", "I8"),
    ),
  ],
)
def test_tensors_refused(folder, change, words):
  edit(folder / WEIGHTS, change)
  refused(folder, *words)


def test_truncated_weights(folder):
  whole = (folder / WEIGHTS).read_bytes()
  for size in (len(whole) - 1, len(whole) // 2, 100, 4, 0):
    (folder / WEIGHTS).write_bytes(whole[:size])
    refused(folder, WEIGHTS, "truncated")


def test_bin_only(folder):
  (folder / WEIGHTS).rename(folder / "pytorch_model.bin")
  refused(folder, ".bin", f"from_pretrained('{folder}')", f"save_pretrained('{folder}')")


def test_bin_only_on_the_hub(folder, tmp_path):
  """Of which the cache has no .bin, as none is downloaded."""
  (folder / WEIGHTS).unlink()
  cached = tmp_path / "models--org--name--v2" / "snapshots" / "0a"
  cached.parent.mkdir(parents=True)
  folder.rename(cached)
  then = "model.path='name--v2' and model.tokenizer='org/name--v2'"
  refused(cached, "from_pretrained('org/name--v2')", "save_pretrained('name--v2')", then)


@pytest.mark.parametrize("shard", ["../evil.safetensors", "/etc/passwd", "..", ""])
def test_index_that_leaves_its_folder(folder, shard):
  (folder / WEIGHTS).unlink()
  index = {"weight_map": {"model.norm.weight": shard}}
  (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index))
  refused(folder, "index.json", "outside")


@pytest.mark.parametrize(
  "contents", ["", "{}", "[]", '{"weight_map": []}', '{"weight_map": {"a": 3}}']
)
def test_index_damaged(folder, contents):
  (folder / WEIGHTS).unlink()
  (folder / f"{WEIGHTS}.index.json").write_text(contents)
  refused(folder, "index.json")


def test_shard_missing(folder):
  (folder / WEIGHTS).unlink()
  index = {"weight_map": {"model.norm.weight": "model-2.safetensors"}}
  (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index))
  refused(folder, "lacks model-2.safetensors")


def test_an_old_index_beside_a_single_file_is_not_read(folder):
  """transformers leaves it where it saves a model that had shards, and reads the file too."""
  index = {"weight_map": {"model.norm.weight": "model-00001-of-00007.safetensors"}}
  (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index))
  hf.load(str(folder))


def test_not_a_folder(folder, tmp_path):
  refused(folder / "config.json", "is not a folder")
  refused(tmp_path / "nowhere", "is not a folder")
  (tmp_path / "empty").mkdir()
  refused(tmp_path / "empty", "config.json")


def test_options_refused(folder):
  for options in ({}, {"path": str(folder), "architecture": {}}):
    with pytest.raises(UserError, match="path or an architecture"):
      hf.load(**options)


PEAK = """
import sys, threading, time
import jax
from jaxtune.models import hf
resident = lambda: int(open("/proc/self/statm").read().split()[1]) * 4096
small, large = sys.argv[1:]
jax.block_until_ready(hf.load(small).params)  # imports and compiles what does not depend on size
peak, done, start = 0, False, resident()
def watch():
  global peak
  while not done:
    peak = max(peak, resident())
    time.sleep(0.001)
thread = threading.Thread(target=watch)
thread.start()
params = hf.load(large).params
jax.block_until_ready(params)
done = True
thread.join()
weights = sum(x.nbytes for x in jax.tree.leaves(params))
print((peak - start) / weights)
"""


@pytest.mark.full
def test_peak_memory_of_loading(folder, tmp_path):
  """Loading takes at most 1.2 times the weights: 140 MB in five shards, in a fresh process."""
  width, ffn, layers = 512, 2048, 8
  config = tiny.ARCHITECTURES["llama"] | dict(
    hidden_size=width, intermediate_size=ffn, num_hidden_layers=layers, num_key_value_heads=4
  )
  large = tmp_path / "large"
  large.mkdir()
  (large / "config.json").write_text(json.dumps(config))
  llama = hf.family_module("llama")
  table = llama.names(llama.config(config))
  shapes = hf.tree.flatten(hf.abstract(Decoder(llama.config(config))))
  sized = [(t, shapes[t.ours].shape) for t in table]
  names = [(n, t.their_shape(shape)) for t, shape in sized for n in t.their_names(shape)]
  weight_map = {}
  for i in range(5):
    part = {name: np.ones(shape, np.float32) for name, shape in names[i::5]}
    save_file(part, large / f"model-{i}.safetensors")
    weight_map |= dict.fromkeys(part, f"model-{i}.safetensors")
  (large / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": weight_map}))
  command = [sys.executable, "-c", PEAK, str(folder), str(large)]
  ratio = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
  assert 0.9 < ratio <= 1.2


def test_a_download_has_the_weights_once(tmp_path, monkeypatch):
  """Some repositories hold them in other forms too; a template of a subfolder is read."""
  patterns = {}
  download = lambda name, **given: patterns.update(given) or str(tmp_path)
  monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
  assert hub.resolve("someone/model") == tmp_path
  wanted = ["config.json", "model-1.safetensors", "additional_chat_templates/tool.jinja"]
  copies = ["consolidated.safetensors", "onnx/model.safetensors", "pytorch_model.bin"]
  listed = huggingface_hub.utils.filter_repo_objects(wanted + copies, **patterns)
  assert list(listed) == wanted


def test_a_tokenizer_in_the_home_folder(tmp_path, monkeypatch):
  folders.tokenizer("llama").save_pretrained(tmp_path / "words")
  monkeypatch.setenv("HOME", str(tmp_path))
  assert tokenizer.load("~/words", None).eos_token == "</s>"


@pytest.mark.parametrize("kind", ["PreTrainedTokenizerFast", "OwnTokenizer"])
def test_code_beside_a_tokenizer_is_not_run(tmp_path, kind):
  made = tmp_path / "made by code"
  (tmp_path / "own.py").write_text(f"open({str(made)!r}, 'w')\nclass OwnTokenizer: pass\n")
  entries = {"tokenizer_class": kind, "auto_map": {"AutoTokenizer": ["own.OwnTokenizer", None]}}
  (tmp_path / "tokenizer_config.json").write_text(json.dumps(entries))
  (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
  (tmp_path / "tokenizer.json").write_text("{}")
  with pytest.raises(UserError, match="cannot be loaded"):
    tokenizer.load(None, tmp_path)
  assert not made.exists()
