"""Exports reloaded in real PyTorch: they equal ours, and a damaged one is found out."""

import json
from unittest.mock import Mock

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from support import folders, tiny
from support.random_runs import card_lines

from jaxtune import certify, config, peft, tree
from jaxtune.api import export as exports
from jaxtune.api.export import export
from jaxtune.certify import logits
from jaxtune.errors import UserError
from jaxtune.models import hf
from jaxtune.runs import finished

LORA = dict(name="lora", rank=3, targets=(".*_proj",))
PREFIX = dict(name="prefix", length=4, projection=6)


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
  """The tiny models as folders."""
  found = {}
  for name in tiny.ARCHITECTURES:
    made = tiny.make(name)
    folder = hf.save(made, made.params, tmp_path_factory.mktemp("bases") / name)
    found[name] = hf.load(str(folder))
  return found


def laid(pretrained, section):
  methods, tuned, hyper, base = tiny.lay(pretrained, section, noise=0.1)
  return methods, {"params": {}, "peft": {}} | tuned, hyper, base


def test_a_stream_has_no_prompts_of_its_own(tmp_path):
  rows = [{"prompt": f"a{i} :", "completion": f"b{i}"} for i in range(4)]
  data = {"train": folders.write(tmp_path, "train.jsonl", rows), "stream": 2, "max_length": 8}
  full = config.complete(folders.config(folders.base(tmp_path, "llama"), data))
  assert exports._prompts(finished.Run(None, full, tiny.make("llama"), None)) is None


@pytest.mark.parametrize(
  ("name", "section", "how"),
  [
    ("gpt2", PREFIX, {}),
    ("llama3", LORA, dict(format="merged")),
    ("llama", dict(name="full"), {}),
  ],
)
def test_exports_equal_ours(bases, name, section, how, tmp_path, reload):
  model = bases[name]
  made = export(
    model, peft.Adapted(*laid(model, section)), tmp_path / "x", certify=True, reload=reload, **how
  )
  written = json.loads((made.folder / "certificate.json").read_text())
  assert written == made.certificate
  assert written["passed"] and written["largest_logit_difference"] < 1e-4
  assert written["change_from_base"] > 0.01
  assert written["base"]["name"] == f"./{model.folder.name}"
  assert set(written["files"]) == {p.name for p in made.folder.iterdir()} - {
    "certificate.json",
    "jaxtune_files.json",
  }
  assert {"torch", "transformers", "peft"} <= written["versions"]["reloaded_in"].keys()


def test_base_without_a_folder_and_given_prompts(gpt2, tmp_path, reload):
  prompts = [[1, 2, 3, 4, 5], [6, 7, 8, 9, 10]]
  how = dict(certify=True, reload=reload, prompts=prompts)
  made = export(gpt2, peft.Adapted(*laid(gpt2, LORA)), tmp_path / "x", **how)
  assert made.certificate["passed"] and made.certificate["prompts_from"] == "the caller"


def test_scales_that_differ_between_layers(bases, tmp_path, reload):
  methods, tuned, hyper, base = laid(bases["gpt2"], LORA)
  flat = tree.flatten(hyper)
  flat["trunk/layers/attn/o_proj/lora/scale"] *= np.array([1.0, 2.0, 3.0], np.float32)
  flat["trunk/layers/attn/v_proj/lora/scale"] *= 0.5
  made = methods, tuned, tree.unflatten(flat), base
  assert export(
    bases["gpt2"], peft.Adapted(*made), tmp_path / "x", certify=True, reload=reload
  ).certificate


def test_base_in_bfloat16(bases, tmp_path, reload):
  model = hf.load(str(bases["llama"].folder), dtype="bfloat16")
  made = export(
    model, peft.Adapted(*laid(model, LORA)), tmp_path / "x", certify=True, reload=reload
  ).certificate
  assert made["passed"] and made["largest_logit_difference"] < 1e-4
  narrow = made["bfloat16"]
  assert 1e-3 < narrow["largest_logit_difference"] < narrow["band"] < 1


@pytest.mark.parametrize("second", [False, True])
def test_a_logit_that_is_not_a_number_never_passes(second, monkeypatch):
  batch = {"mask": np.ones((1, 2), int)}
  ours = [np.zeros((1, 2, 3)) for _ in range(2)]
  theirs = [x.copy() for x in ours]
  theirs[second][0, 1, 1] = np.nan
  assert not logits.compare(ours, ours, theirs, [batch, batch])["passed"]
  monkeypatch.setattr(logits, "our_logits", lambda *_: ours)
  assert not logits.in_bfloat16(Mock(), Mock(), [batch, batch], theirs)["passed"]


@pytest.mark.parametrize("how", [{}, dict(format="merged")], ids=["peft", "merged"])
def test_a_corrupted_tensor_is_found(bases, how, tmp_path, reload):
  model, made = bases["llama"], laid(bases["llama"], LORA)
  folder = export(model, peft.Adapted(*made), tmp_path / "x", **how).folder
  path = folder / ("model.safetensors" if how else "adapter_model.safetensors")
  tensors = load_file(path)
  name = next(n for n in sorted(tensors) if "layers.1.self_attn.v_proj" in n)
  save_file(tensors | {name: tensors[name] * np.float32(1.2)}, path, {"format": "pt"})
  with pytest.raises(certify.Rejected, match="differ by"):
    certify.certify(folder, model, peft.Adapted(*made), reload=reload)
  written = json.loads((folder / "certificate.json").read_text())
  assert not written["passed"] and written["largest_logit_difference"] > 1e-3


def test_a_missing_tensor_is_found(bases, tmp_path, reload):
  """PEFT itself only warns."""
  model, made = bases["llama"], laid(bases["llama"], LORA)
  folder = export(model, peft.Adapted(*made), tmp_path / "x").folder
  path = folder / "adapter_model.safetensors"
  save_file(dict(list(load_file(path).items())[1:]), path, {"format": "pt"})
  with pytest.raises(UserError, match="misses"):
    certify.certify(folder, model, peft.Adapted(*made), reload=reload)


def test_a_rejected_export_leaves_the_earlier_one(bases, tmp_path, reload, monkeypatch):
  model, made = bases["gpt2"], laid(bases["gpt2"], LORA)
  folder = export(model, peft.Adapted(*made), tmp_path / "x").folder
  before = (folder / "adapter_model.safetensors").read_bytes()
  monkeypatch.setattr("jaxtune.formats.peft.layout.alpha_of", lambda scale, rank: scale * rank * 2)
  with pytest.raises(UserError, match="x.rejected"):
    export(model, peft.Adapted(*made), folder, certify=True, reload=reload)
  assert (folder / "adapter_model.safetensors").read_bytes() == before
  assert not (folder / "certificate.json").exists()
  assert not json.loads((tmp_path / "x.rejected" / "certificate.json").read_text())["passed"]
  (tmp_path / "x.rejected" / "notes").write_text("mine")
  with pytest.raises(UserError, match="notes.*would be lost"):
    export(model, peft.Adapted(*made), folder, certify=True, reload=reload)
  assert (tmp_path / "x.rejected" / "notes").read_text() == "mine"


@pytest.mark.parametrize("how", [{}, dict(format="merged")], ids=["peft", "merged"])
def test_the_model_card_loads_it(bases, how, tmp_path):
  pytest.importorskip("peft")
  model = bases["gpt2"]
  methods, tuned, hyper, base = laid(model, LORA)
  folder = export(model, peft.Adapted(methods, tuned, hyper, base), tmp_path / "x", **how).folder
  found = {}
  exec(card_lines(folder, model), found)
  tokens, mask = tiny.batch()
  ours = tiny.forward(model, (methods, tuned, hyper, base), tokens)
  theirs = tiny.torch_logits(found["model"].eval(), tokens, mask)
  np.testing.assert_allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize(
  ("contents", "message"),
  [
    ({}, "not an exported adapter"),
    ({"adapter_config.json": "{"}, "malformed JSON"),
    ({"adapter_config.json": "[]"}, "neither PEFT's"),
    ({"adapter_config.json": "{}"}, "neither PEFT's"),
    ({"adapter_config.json": '{"peft_type": "LORA"}'}, "lacks adapter_model.safetensors"),
    ({"adapter_config.json": '{"config": {}}', "adapter.safetensors": "no"}, "damaged"),
  ],
)
def test_a_folder_that_is_no_export(tmp_path, contents, message):
  for name, text in contents.items():
    (tmp_path / name).write_text(text)
  with pytest.raises(UserError, match=message):
    certify.check_folder(tmp_path)


def test_an_interpreter_that_lacks_the_libraries(tmp_path):
  with pytest.raises(UserError, match="cannot be started"), certify.reloader(str(tmp_path / "no")):
    pass


def test_adapterhub_needs_an_interpreter(gpt2, tmp_path, monkeypatch):
  monkeypatch.delenv(certify.VARIABLE, raising=False)
  with pytest.raises(UserError, match=certify.VARIABLE):
    export(
      gpt2, peft.Adapted(*laid(gpt2, dict(name="adapter", width=3))), tmp_path / "x", certify=True
    )
  assert not list(tmp_path.iterdir())


def test_batches_are_padded_and_unpadded(gpt2):
  config = gpt2.model.config
  for prompts in (None, [[1, 2, 3, 4]], [[1], [2, 3]]):
    (_, mask), (_, full) = certify.make_batches(prompts, config, 0)
    assert not mask.all() and full.all() and (np.diff(mask, axis=1) <= 0).all()
  assert certify.make_batches([[1] * 100], config, 10)[0][0].shape[1] == 54
  with pytest.raises(UserError, match="empty"):
    certify.make_batches([[]], config, 0)
  headed = tiny.make("llama", head="classify", labels=3).model.config
  for prompts in ([[5] * 100 + [1]], [[5, 6, 1], [7, 8, 9, 9, 1]]):
    for tokens, mask in certify.make_batches(prompts, headed, 0):
      assert all(row[real > 0][-1] == 1 for row, real in zip(tokens, mask, strict=True)), "its eos"
