"""What AdapterHub's format says is read to the bit, and what does not fit is refused by name."""

import functools
import json
import os
import subprocess
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from support import made_trials, tiny

from jaxtune import certify, formats, peft, tree
from jaxtune.api import import_adapter
from jaxtune.api.export import export
from jaxtune.certify import reloading
from jaxtune.errors import UserError
from jaxtune.formats.facts import Facts
from jaxtune.models import hf
from jaxtune.models.heads import is_head
from jaxtune.runs.finished import Run

ADAPTER = dict(name="adapter", width=5)
PREFIX = dict(name="prefix", length=3, shift=False)
COMPACTER = dict(name="compacter", width=8, n=2)
MAM = dict(name="mam", prefix=dict(length=3, projection=None), adapter=dict(width=6))
BART = tiny.ARCHITECTURES["bart"] | dict(decoder_attention_heads=4)


def laid(model, section):
  """A method, and the head where the model has one; every array off its start."""
  parts = {section["name"]: section}
  if model.model.config.head is not None:
    parts["head"] = {"name": "head", "paths": model.fresh}
  return tiny.lay(model, {"name": "stack", **parts}, noise=0.1)


@functools.cache
def make(name):
  name, _, head = name.partition(":")
  how = dict(head=head, labels=3) if head else {}
  if name == "bart":
    return tiny.random(BART)
  return tiny.make(name, **how)


@pytest.mark.parametrize(
  ("name", "section"),
  [
    ("gpt2", ADAPTER),
    ("gpt2", ADAPTER | dict(width=(3, 5, 4), placement="houlsby", scale=0.5, dropout=0.1)),
    ("gpt2", PREFIX),
    ("bert:classify", ADAPTER | dict(placement="plus", ln_before=True, ln_after=True)),
    ("bert:classify", PREFIX | dict(projection=4)),
    ("bert:classify", COMPACTER),
    ("gpt2", COMPACTER | dict(shared=False, placement="pfeiffer", rank=2)),
    ("t5", ADAPTER | dict(targets=("encoder/.*/mlp_residual", "cross_residual"))),
    ("bart", PREFIX | dict(cross=False)),
    ("gpt2", MAM),
  ],
)
def test_a_round_trip_changes_no_bit(name, section, tmp_path):
  model = make(name)
  methods, tuned, hyper, base = laid(model, section)
  named = ":" in name and section is not COMPACTER  # else they get the names LABEL_0, ...
  labels = ("low", "middle", "high") if named else ()
  export(
    model, peft.Adapted(methods, tuned, hyper, base), tmp_path / "a", facts=Facts(labels=labels)
  )
  found = formats.read(tmp_path / "a", model)
  for method, read in zip(methods, found.methods, strict=False):  # a head is not among them
    ours = peft.arrays_of(method, tuned["peft"])
    ours = method.reparametrise(ours) if method.kind == "prefix" else ours
    assert read.trained.keys() == ours.keys()
    equal(read.trained, ours)
    equal(read.fixed, peft.arrays_of(method, hyper))
  equal(found.params, tree.flatten(tuned["params"]))
  assert (found.labels, found.source["format"]) == (labels, "adapterhub")
  again = export(
    model, formats.adapt(found, model), tmp_path / "b", facts=Facts(labels=found.labels)
  )
  for path in (tmp_path / "a").glob("*.safetensors"):
    assert path.read_bytes() == (again.folder / path.name).read_bytes()
  for path in (tmp_path / "a").glob("*config.json"):  # the list of files has the card's hash
    assert json.loads(path.read_text()) == json.loads((again.folder / path.name).read_text())


def equal(found, expected):
  found, expected = tree.flatten(found), tree.flatten(expected)
  assert found.keys() == expected.keys()
  for path, x in expected.items():
    np.testing.assert_array_equal(found[path], x, err_msg=path)


@pytest.fixture(scope="module")
def adapter(gpt2, tmp_path_factory):
  """An exported adapter: its config and tensors."""
  folder = export(
    gpt2, peft.Adapted(*laid(gpt2, ADAPTER)), tmp_path_factory.mktemp("made") / "a"
  ).folder
  return json.loads((folder / "adapter_config.json").read_text()), load_file(
    folder / "adapter.safetensors"
  )


def store(folder, config, tensors):
  folder.mkdir(exist_ok=True)
  (folder / "adapter_config.json").write_text(json.dumps(config))
  save_file(
    {n: np.ascontiguousarray(x) for n, x in tensors.items()}, folder / "adapter.safetensors"
  )
  return folder


BIAS = "transformer.h.1.output_adapters.adapters.jaxtune.adapter_up.bias"


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda c, t: t.pop(BIAS), f"lacks {BIAS}"),
    (lambda c, t: t.update({"transformer.h.9.x": t[BIAS]}), "1 foreign tensors .*h.9.x"),
    (lambda c, t: t.update({BIAS: t[BIAS][:5]}), "is .*another base"),
    (lambda c, t: t.update({BIAS: t[BIAS] * np.float32("nan")}), "NaN"),
    (lambda c, t: c.update(hidden_size=768), "hidden_size 768, expected 32"),
    (lambda c, t: c.update(model_type="bert"), "model_type bert, expected gpt2"),
    (lambda c, t: c.update(name="other"), "lacks .*adapters.other"),
    (lambda c, t: c["config"].update(leave_out=[1]), "leave_out"),
    (lambda c, t: c["config"].update(use_gating=True), "use_gating"),
    (lambda c, t: c["config"].update(inv_adapter="nice"), "inv_adapter"),
    (lambda c, t: c["config"].update(non_linearity="maxout"), "expected one of"),
    (lambda c, t: c["config"].update(residual_before_ln=False), "no adapter with this placement"),
    (lambda c, t: c["config"].update(output_adapter=False), "asks for no adapter"),
    (lambda c, t: c.update(config={"architecture": "union", "configs": []}), "a union of nothing"),
    (
      lambda c, t: c.update(config={"architecture": "union", "configs": ["x"]}),
      r"configs\[0\] is 'x'",
    ),
    (lambda c, t: c["config"].update(architecture=["x"]), r"architecture is \['x'\]"),
    (
      lambda c, t: c.update(config={"architecture": "union", "configs": [c["config"]] * 2}),
      "two parts of one kind: bottleneck",
    ),
    (
      lambda c, t: c.update(
        config={"architecture": "union", "configs": [c["config"], {"architecture": "lora"}]}
      ),
      "is a bottleneck [+] lora, expected",
    ),
  ],
)
def test_what_does_not_fit_is_refused(gpt2, adapter, change, message, tmp_path):
  config, tensors = json.loads(json.dumps(adapter[0])), dict(adapter[1])
  change(config, tensors)
  with pytest.raises(UserError, match=message) as raised:
    formats.read(store(tmp_path / "x", config, tensors), gpt2)
  assert "\n" not in str(raised.value)


def test_other_names_of_the_same(gpt2, adapter, tmp_path):
  """Saved from the model without its head, under another name, with scales that were trained."""
  config, tensors = adapter
  renamed = {
    n.replace("jaxtune", "sst-2").removeprefix("transformer."): x for n, x in tensors.items()
  }
  place = "h.{}.output_adapters.adapters.sst-2.scaling"
  renamed |= {place.format(i): np.float32([i + 2]) for i in range(3)}
  config = config | {"name": "sst-2", "config": config["config"] | {"scaling": "learned"}}
  found = formats.read(store(tmp_path / "x", config, renamed), gpt2)
  site = "trunk/layers/mlp_residual"
  np.testing.assert_array_equal(found.methods[0].fixed[site]["scale"], [2, 3, 4])
  np.testing.assert_array_equal(found.methods[0].trained[site]["up_bias"][1], tensors[BIAS])


def test_before_version_3_gelu_was_the_tanh_form(gpt2, adapter, tmp_path):
  config, tensors = adapter
  old = {key: x for key, x in config.items() if key != "version"}
  for stated, ours in (("gelu", "gelu_new"), ("gelu_orig", "gelu"), ("relu", "relu")):
    about = old | {"config": config["config"] | {"non_linearity": stated}}
    found = formats.read(store(tmp_path / stated, about, tensors), gpt2)
    assert found.methods[0].section["activation"] == ours


def test_heads_of_another_kind_are_refused(tmp_path):
  model = make("bert:classify")
  folder = export(model, peft.Adapted(*laid(model, ADAPTER)), tmp_path / "x").folder
  with pytest.raises(UserError, match="load the model with head='classify'"):
    formats.read(folder, make("bert:tokens"))
  (folder / "head_config.json").unlink()
  model = make("bert:classify")
  model = model._replace(fresh=tuple(p for p in tree.flatten(model.params) if "head" in p))
  with pytest.raises(UserError, match="neither the base nor .* has weights of a head 'classify'"):
    formats.read(folder, model)


def test_a_head_is_read_as_a_whole(tmp_path):
  """Also a pooler that the base lacks, without which the head would read a random one."""
  model = make("bert:classify")
  fresh = tuple(path for path in tree.flatten(model.params) if is_head(path))
  lacking = model._replace(fresh=fresh)
  folder = export(lacking, peft.Adapted(*laid(lacking, ADAPTER)), tmp_path / "x").folder
  head = load_file(file := folder / "model_head.safetensors")
  save_file({n: x for n, x in head.items() if "pooler" not in n}, file)
  assert formats.read(folder, model).params.keys() == {"head/out/kernel", "head/out/bias"}
  with pytest.raises(UserError, match="the head in .* lacks bert.pooler.dense.weight"):
    formats.read(folder, lacking)
  save_file({"classifier.weight": head["classifier.weight"]}, file)
  with pytest.raises(UserError, match="the head in .* lacks classifier.bias"):
    formats.read(folder, model)


SCRIPT = Path(__file__).with_name("save_adapters.py")
# What adapters itself makes: (model, class, configuration, its arguments)
THEIRS = [
  ("gpt2", "AutoModelForCausalLM", "DoubleSeqBnConfig", dict(reduction_factor=4)),
  ("llama", "AutoModelForCausalLM", "AdapterPlusConfig",
   dict(reduction_factor=4, stochastic_depth=0.0)),
  ("bert:classify", "AutoModelForSequenceClassification", "SeqBnConfig",
   dict(reduction_factor={"0": 4, "default": 8}, ln_after=True, scaling="learned")),
  ("roberta:classify", "AutoModelForSequenceClassification", "CompacterConfig",
   dict(reduction_factor=4, phm_dim=2)),
  ("llama", "AutoModelForCausalLM", "PrefixTuningConfig", dict(prefix_length=3, bottleneck_size=6)),
  ("bart", "AutoModelForSeq2SeqLM", "PrefixTuningConfig", dict(prefix_length=2, flat=True)),
  ("t5", "AutoModelForSeq2SeqLM", "ParBnConfig", dict(cross_adapter=True)),
  ("gpt2", "AutoModelForCausalLM", "MAMConfig", {}),
]  # fmt: skip


@pytest.mark.full
@pytest.mark.skipif(not os.environ.get(certify.VARIABLE), reason=f"needs {certify.VARIABLE}")
def test_what_adapters_saves_is_read(tmp_path):
  tokens, mask = tiny.batch(side="right")
  tokens = np.where(mask, np.maximum(tokens, 2), 1)  # RoBERTa knows its padding by its id
  jobs, models = [], []
  for i, (name, auto, config, options) in enumerate(THEIRS):
    made = make(name)
    base = hf.save(made, made.params, tmp_path / f"base{i}")
    _, _, head = name.partition(":")
    models.append(hf.load(str(base), **dict(head=head, labels=3) if head else {}))
    inputs = {"tokens": tokens, "mask": mask}
    names = reloading.THEIR_NAMES[made.model.config.encoder is not None]
    if made.model.config.encoder is not None:
      inputs |= {"inputs": tokens, "inputs_mask": mask}
    np.savez(tmp_path / f"in{i}.npz", **{names[n]: x.astype(int) for n, x in inputs.items()})
    jobs.append([auto, {"num_labels": 3} if head else {}, str(base), config, options])
  (tmp_path / "jobs.json").write_text(json.dumps(jobs))
  subprocess.run([certify.adapters_interpreter(), str(SCRIPT), str(tmp_path)], check=True)
  for i, model in enumerate(models):
    found = formats.read(tmp_path / f"out{i}", model)
    batch = {"tokens": tokens, "mask": mask}
    if model.model.config.encoder is not None:
      batch |= {"inputs": tokens, "inputs_mask": mask}
    ours = certify.our_logits(model, formats.adapt(found, model), [batch])
    theirs = np.load(tmp_path / f"logits{i}.npy")
    if theirs.ndim == 3:
      ours, theirs = [ours[0][mask]], theirs[mask]
    np.testing.assert_allclose(ours[0], theirs, atol=1e-4, rtol=0, err_msg=str(THEIRS[i]))


def test_labels_in_another_order_than_an_adapter_s_head_are_refused(tmp_path):
  """A run of it reads data.labels as what the data call the outputs of the head."""
  model = make("bert:classify")
  given = Facts(labels=("low", "middle", "high"))
  export(model, peft.Adapted(*laid(model, ADAPTER)), tmp_path / "a", facts=given)
  full = made_trials.complete({"name": "lora"}) | {"objective": {"name": "classify"}}
  for labels, fits in (
    (None, True),
    (("small", "medium", "large"), True),
    (("high", "low", "middle"), False),
  ):
    config = full | {"data": full["data"] | {"labels": labels}}
    run = Run(tmp_path, config, model, peft.untuned(model.params))
    refused = pytest.raises(UserError, match="data.labels is high, .* head in .*, low, middle, hig")
    with nullcontext() if fits else refused:
      assert import_adapter.lay(run, tmp_path / "a").labels == ("low", "middle", "high")


def test_a_head_whose_labels_nothing_names_is_refused(tmp_path):
  model, head = make("bert:classify"), {"head": {"name": "head"}}
  for name, section in (("peft", {"name": "lora", "rank": 2}), ("adapterhub", ADAPTER)):
    methods = {"name": "stack", section["name"]: section, **head}
    export(model, tiny.lay(model, methods, noise=0.1), tmp_path / name)
    config = made_trials.complete(section) | {"objective": {"name": "classify"}}
    named = config | {"data": config["data"] | {"labels": ("pos", "neg", "even")}}
    for given, labels, fits in (
      (config, ("even", "neg", "pos"), False),
      (named, ("pos", "neg", "even"), True),
      (config, ("0", "1", "2"), True),
    ):
      run = Run(tmp_path, given, model, peft.untuned(model.params), labels)
      refused = pytest.raises(
        UserError, match=f"the head in .*{name} names no labels, expected dat"
      )
      with nullcontext() if fits else refused:
        assert import_adapter.lay(run, tmp_path / name).labels == labels
