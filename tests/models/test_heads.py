"""Heads equal PyTorch's in scores, and folders with, without and with other heads load and save."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformers
from jax.sharding import Mesh, PartitionSpec
from safetensors.numpy import load_file, save_file
from support import folders, tiny

from jaxtune import config as configs
from jaxtune import peft, sharding, tree
from jaxtune.errors import UserError
from jaxtune.models import heads, hf
from jaxtune.runs import trial

WEIGHTS = "model.safetensors"


def architecture(name, kind):
  return hf.family_module(name).ARCHITECTURES.get(kind, kind)


def twin(name, kind, folder, labels=3, **changes):
  """PyTorch's tiny model of a family with a head, stored in a folder."""
  layers = "n_layer" if name == "gpt2" else "n_layers"
  layers = layers if name in ("gpt2", "distilbert") else "num_hidden_layers"
  changes = {layers: 2 if name == "modernbert" else 1} | changes
  if name in ("gpt2", "llama"):
    changes |= {"pad_token_id": 0}
  config = tiny.torch_config(name, num_labels=labels, **changes)
  return tiny.torch_twin(config, folder, architecture(name, kind))


def batch(name, side):
  tokens, mask = tiny.batch(side=side)
  pad = 1 if name == "roberta" else 0
  return np.where(mask, np.where(tokens == pad, 5, tokens), pad).astype(np.int32), mask


def scores(theirs, tokens, mask):
  import torch

  ids, seen = torch.tensor(tokens).long(), torch.tensor(mask).long()
  extra = {}
  if type(theirs).__name__.startswith(("GPT2", "Llama")):  # the others are padded on the right
    extra = {"position_ids": torch.tensor(tiny.positions_of(mask))}
  with torch.no_grad():
    out = theirs(input_ids=ids, attention_mask=seen, **extra)
  logits = out.logits if "logits" in out else torch.stack([out.start_logits, out.end_logits], -1)
  return logits.numpy()


KINDS = {
  **{name: ("classify", "qa", "mlm") for name in tiny.ENCODERS},
  "gpt2": ("regression", "tokens", "qa"),
  "llama": ("classify", "tokens", "qa"),
}


@pytest.mark.parametrize(("name", "kind"), [(n, k) for n, kinds in KINDS.items() for k in kinds])
def test_scores_equal_pytorch_and_are_saved_for_it(name, kind, tmp_path):
  labels = {"qa": 2, "regression": 1}.get(kind, 3)
  changes = {"classifier_pooling": "cls"} if (name, kind) == ("modernbert", "qa") else {}
  theirs = twin(name, kind, tmp_path / "theirs", labels, **changes)
  ours = hf.load(str(tmp_path / "theirs"), head=kind)
  assert not ours.fresh and not ours.dropped
  run = jax.jit(ours.model.apply)
  for side in ("right", "left") if name in ("gpt2", "llama") else ("right",):
    tokens, mask = batch(name, side)
    made = np.asarray(run({"params": ours.params}, tokens, mask))
    expected = scores(theirs, tokens, mask)
    assert made.dtype == np.float32
    if kind == "regression":
      assert made.shape == mask.shape[:1]
      expected = expected[:, 0]
    elif kind != "classify":
      made, expected = made[mask], expected[mask]
    np.testing.assert_allclose(made, expected, atol=1e-4, rtol=0)
  given = ("low", "middle", "high") if labels == 3 and kind != "mlm" else None
  folder = hf.save(ours, ours.params, tmp_path / "ours", labels=given)
  auto = heads.CLASSES[kind].removeprefix("For")
  again, info = getattr(transformers, f"AutoModelFor{auto}").from_pretrained(
    folder, output_loading_info=True
  )
  assert not any(info.values()), info
  assert type(again) is type(theirs)
  for key, tensor in theirs.state_dict().items():
    np.testing.assert_array_equal(again.state_dict()[key], tensor, err_msg=key)
  if kind != "mlm":
    assert again.config.num_labels == labels
  if given:
    assert list(again.config.id2label.values()) == list(given)
    assert again.config.label2id["high"] == 2
  if kind in heads.POOLED:
    problem = "regression" if labels == 1 else "single_label_classification"
    assert again.config.problem_type == problem


@pytest.mark.parametrize("name", tiny.DECODERS)
def test_names_in_every_other_decoder(name, tmp_path):
  """Each class that a family names exists in transformers, and its tensors are the table's."""
  for kind in hf.family_module(name).ARCHITECTURES.keys() - {"lm", "regression", "reward"}:
    labels = 2 if kind == "qa" else 3
    config = tiny.torch_config(name, num_labels=labels)
    folder = tmp_path / kind
    tiny.torch_twin(config, folder, architecture(name, kind))
    outlined = hf.outline(str(folder), head=kind)
    assert not outlined.fresh and not outlined.dropped
    assert outlined.model.config.head.outputs == labels


def test_pooling():
  x, mask = (
    np.random.default_rng(0).normal(size=(2, 4, 3)).astype(np.float32),
    np.ones((2, 4), bool),
  )
  mask[0, 2:] = mask[1, :1] = False
  expected = {"first": [x[0, 0], x[1, 1]], "last": [x[0, 1], x[1, 3]]}
  expected["mean"] = [x[0, :2].mean(0), x[1, 1:].mean(0)]
  for pooling, rows in expected.items():
    made = heads.pool(jnp.asarray(x), jnp.asarray(mask), pooling)
    np.testing.assert_allclose(made, np.stack(rows), atol=1e-6)


HEAD = ("head/out/bias", "head/out/kernel")
POOLER = ("pooler/dense/bias", "pooler/dense/kernel")


@pytest.mark.parametrize(
  ("name", "stored", "wanted", "fresh", "dropped"),
  [
    ("gpt2", "lm", "classify", HEAD[1:], 0),
    ("llama", "lm", "tokens", HEAD, 1),
    ("llama", "lm", "qa", HEAD, 1),
    ("llama", "tokens", "classify", HEAD[1:], 2),  # both are called score
    ("bert", "mlm", "classify", HEAD + POOLER, 5),
    ("bert", "BertForPreTraining", "classify", HEAD, 7),
    ("bert", "BertForPreTraining", "mlm", (), 4),
    ("bert", "classify", "tokens", HEAD, 4),  # the classifier, and the pooler
    ("bert", "classify", "qa", HEAD, 4),
    ("roberta", "mlm", "classify", ("head/dense/bias", "head/dense/kernel", *HEAD), 5),
    ("distilbert", "tokens", "mlm", None, 2),
    ("modernbert", "mlm", "classify", HEAD, 1),  # its dense layer and norm are kept
  ],
)
def test_another_head(name, stored, wanted, fresh, dropped, tmp_path):
  changes = {"tie_word_embeddings": False} if name == "llama" else {}
  twin(name, stored, tmp_path, **changes)
  labels = 4 if wanted in ("classify", "tokens") else None
  ours = hf.load(str(tmp_path), head=wanted, labels=labels, seed=3)
  if fresh is None:
    fresh = sorted(path for path in tree.flatten(ours.params) if path.startswith("head/"))
  assert ours.fresh == tuple(sorted(fresh))
  assert len(ours.dropped) == dropped, ours.dropped
  outlined = hf.outline(str(tmp_path), head=wanted, labels=labels)
  assert (outlined.fresh, outlined.dropped) == (ours.fresh, ours.dropped)
  shapes = {path: leaf.shape for path, leaf in tree.flatten(outlined.params).items()}
  assert {path: leaf.shape for path, leaf in tree.flatten(ours.params).items()} == shapes


def test_a_new_head_is_drawn_by_the_seed(tmp_path):
  twin("bert", "mlm", tmp_path, initializer_range=0.3, hidden_size=64)
  load = lambda seed: tree.flatten(
    hf.load(str(tmp_path), head="tokens", labels=50, seed=seed).params
  )
  first, same, other = load(0), load(0), load(1)
  for path in first:
    equal = np.array_equal(first[path], other[path])
    assert equal == (path != "head/out/kernel"), path
    np.testing.assert_array_equal(first[path], same[path])
  assert 0.28 < np.std(first["head/out/kernel"]) < 0.32
  assert not np.any(first["head/out/bias"])


def test_names_of_older_and_bare_folders(tmp_path):
  """BertModel has no "bert."; norms were once called gamma and beta; buffers were stored."""
  twin("bert", "classify", tmp_path)
  expected = hf.load(str(tmp_path), head="classify").params
  tensors = {}
  for name, tensor in load_file(tmp_path / WEIGHTS).items():
    name = name.removeprefix("bert.").replace("LayerNorm.weight", "LayerNorm.gamma")
    tensors[name.replace("LayerNorm.bias", "LayerNorm.beta")] = tensor
  save_file(tensors | {"embeddings.position_ids": np.arange(64)[None]}, tmp_path / WEIGHTS)
  ours = hf.load(str(tmp_path), head="classify")
  jax.tree.map(np.testing.assert_array_equal, ours.params, expected)
  assert not ours.fresh and not ours.dropped


def edit(folder, **changes):
  path = folder / "config.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
  folder = tmp_path_factory.mktemp("bert")
  twin("bert", "classify", folder)
  return folder


@pytest.mark.parametrize(
  ("options", "words"),
  [
    ({}, ("'lm'", "classify", "tokens", "mlm")),
    ({"head": "clasify"}, ("'clasify'", "classify")),
    ({"head": "classify", "labels": 2}, ("has 2 labels, expected 3", "name in data.labels every")),
    ({"head": "regression"}, ("3 labels", "1")),
    ({"head": "tokens"}, ("data.labels", "tokens")),
    ({"head": "tokens", "labels": 0}, ("has 0 labels", "data.labels")),
    ({"head": "qa", "labels": 3}, ("3 labels, expected 2", "head 'qa'")),
  ],
)
def test_heads_refused(bert, options, words):
  with pytest.raises(UserError) as caught:
    hf.load(str(bert), **options)
  assert all(word in str(caught.value) for word in words), caught.value
  assert "\n" not in str(caught.value)


@pytest.mark.parametrize("problem", ["multi_label_classification", "regression"])
def test_a_head_of_another_problem_is_no_classifier(problem):
  stated = tiny.ENCODERS["bert"] | {"problem_type": problem, "num_labels": 3}
  stated |= {"architectures": ["BertForSequenceClassification"]}
  with pytest.raises(UserError, match=f"problem_type is '{problem}', expected 'single_label_class"):
    heads.choose(hf.family_module("bert").ARCHITECTURES, stated, "classify", 3, random=False)
  stated |= {"architectures": ["BertForMaskedLM"]}
  assert heads.choose(hf.family_module("bert").ARCHITECTURES, stated, "classify", 3, random=False)


@pytest.mark.parametrize(
  ("change", "words"),
  [
    (lambda t: t.pop("classifier.bias"), ("1 missing", "classifier.bias")),
    (lambda t: t.pop("bert.pooler.dense.weight"), ("1 missing", "bert.pooler.dense.weight")),
    (lambda t: t.update({"bert.extra": np.ones(2)}), ("1 unexpected", "bert.extra")),
    (lambda t: t.update({"classifier.bias": np.ones(4)}), ("1 misshaped", "(4,)", "(3,)")),
  ],
)
def test_tensors_refused(bert, change, words, tmp_path):
  tensors = load_file(bert / WEIGHTS)
  change(tensors)
  save_file(tensors, tmp_path / WEIGHTS)
  (tmp_path / "config.json").write_text((bert / "config.json").read_text())
  with pytest.raises(UserError) as caught:
    hf.load(str(tmp_path), head="classify")
  assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize(
  ("stored", "auto"),
  [
    ("BertForSequenceClassification", "AutoModelForSequenceClassification"),
    ("BertForMaskedLM", "AutoModelForMaskedLM"),
    ("BertForPreTraining", "AutoModelForPreTraining"),
    ("BertModel", "AutoModel"),
  ],
)
def test_bin_files_come_with_the_command(bert, stored, auto, tmp_path):
  (tmp_path / "config.json").write_text((bert / "config.json").read_text())
  (tmp_path / "pytorch_model.bin").touch()
  edit(tmp_path, architectures=[stored])
  with pytest.raises(UserError, match=rf"import {auto}; {auto}\.from_pretrained"):
    hf.load(str(tmp_path), head="classify", labels=3)
  assert hasattr(transformers, auto)


def test_label_names_must_be_as_many(bert, tmp_path):
  ours = hf.load(str(bert), head="classify")
  with pytest.raises(UserError, match="2 names for the 3 labels"):
    hf.save(ours, ours.params, tmp_path / "model", labels=("a", "b"))


def test_the_classes_of_a_folder_s_own_head(tmp_path):
  """They say what its outputs mean, whatever the order of the data's labels would be."""
  tiny.torch_twin(
    tiny.torch_config("bert", id2label={0: "up", 1: "down", 2: "even"}), tmp_path / "own",
    architecture("bert", "classify"),
  )  # fmt: skip
  folder = folders.base(tmp_path, "bert")  # of another head, but with a tokenizer
  names = ("tokenizer.json", "tokenizer_config.json")
  for name in names:
    shutil.copy(f"{folder}/{name}", tmp_path / "own" / name)
  rows = [{"text": f"a{i}", "label": ("down", "even", "up")[i % 3]} for i in range(9)]
  train = folders.write(tmp_path, "train.tsv", rows)
  read = lambda rows, base=str(tmp_path / "own"), tuned=None, **more: trial.load_data(
    configs.complete(folders.config(base, {"train": rows} | more, "classify")), tuned
  )
  dataset = read(train)
  assert dataset.labels == ("up", "down", "even")
  assert dataset.train.arrays["labels"][:3].tolist() == [1, 2, 0]
  assert read(train, labels=("even", "down", "up")).labels == ("even", "down", "up")
  # A head that is extracted from a checkpoint stays in its order too.
  kept = {"base": folder, "tuned": str(tmp_path / "own")}
  assert read(train, folder).labels == ("down", "even", "up")
  assert read(train, **kept).labels == ("up", "down", "even")
  says = "data.labels is even, down, up, expected the order of the head in .*own, up, down, even"
  with pytest.raises(UserError, match=says):
    read(train, **kept, labels=("even", "down", "up"))
  others = [{"text": row["text"], "label": row["label"].upper()} for row in rows]
  assert read(folders.write(tmp_path, "others.tsv", others), **kept,
              labels=("UP", "DOWN", "EVEN")).labels == ("UP", "DOWN", "EVEN")  # fmt: skip
  with pytest.raises(UserError, match="head has the classes up, down, even, and the data .* DOWN"):
    read(folders.write(tmp_path, "others.tsv", others))
  numbers = [{"text": f"a{i}", "label": str(i % 3)} for i in range(9)]
  assert read(folders.write(tmp_path, "numbers.tsv", numbers)).labels == ("0", "1", "2")


@pytest.mark.parametrize(
  "name, bare", [("gpt2", "GPT2Model"), ("bart", "BartModel"), ("gemma3_text", "Gemma3TextModel")]
)
def test_a_bare_model_whose_table_is_its_head(name, bare, tmp_path):
  config = tiny.torch_config(name, tie_word_embeddings=True)
  tiny.torch_twin(config, tmp_path, bare)
  ours = hf.load(str(tmp_path))
  hf.save(ours, ours.params, tmp_path / "ours")
  stored = json.loads((tmp_path / "ours" / "config.json").read_text())["architectures"]
  assert stored == [hf.family_module(name).ARCHITECTURES["lm"]]
  edit(tmp_path, tie_word_embeddings=False)
  with pytest.raises(UserError, match="has no language model's head"):
    hf.load(str(tmp_path))


def test_linear_probe(tmp_path):
  """Alone, the method "head" trains the head, and a pooler that the checkpoint lacks."""
  twin("bert", "mlm", tmp_path)
  ours = hf.load(str(tmp_path), head="classify", labels=3)
  _, alone, _, _ = tiny.lay(ours, {"name": "head"})
  assert sorted(tree.flatten(alone["params"])) == sorted(HEAD)
  laid = tiny.lay(ours, {"name": "head", "paths": ours.fresh}, noise=0.1)
  methods, tuned, hyper, base = laid
  assert sorted(tree.flatten(tuned["params"])) == sorted(HEAD + POOLER)
  merged = peft.merge(peft.Adapted(methods, tuned, hyper, base))
  folder = hf.save(ours, merged, tmp_path / "merged")
  tokens, mask = batch("bert", "right")
  made = tiny.forward(ours, laid, tokens, mask)
  theirs = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
  np.testing.assert_allclose(made, scores(theirs.eval(), tokens, mask), atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", ["classify", "tokens", "mlm"])
@pytest.mark.parametrize("name", tiny.ENCODERS)
def test_every_leaf_has_a_sharding_rule(name, kind):
  labels = None if kind == "mlm" else 4
  outlined = hf.outline(architecture=tiny.ENCODERS[name], head=kind, labels=labels)
  mesh = Mesh(np.array(jax.devices()).reshape(1, 1, 2, 1, 2), sharding.AXES)
  placed = tree.flatten(sharding.shardings(mesh, outlined.params))
  if "head/dense/kernel" in placed:
    assert placed["head/dense/kernel"].spec == PartitionSpec("fsdp", "tensor")


def test_a_decoder_takes_the_token_types_of_its_tokenizer():
  ours = tiny.make("gpt2", head="qa")
  tokens, mask = tiny.batch()
  run = lambda types: ours.model.apply({"params": ours.params}, tokens, mask, types=types)
  assert jax.eval_shape(run, tokens).shape == (*tokens.shape, 2)
