"""Exports in PEFT's formats are read back bit by bit; what PEFT cannot hold is refused."""

import functools
import json

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file
from support import tiny

from jaxtune import formats, peft, tree
from jaxtune.api.export import export
from jaxtune.errors import UserError
from jaxtune.models import hf

LINEAR = (".*_proj",)
LORA = dict(name="lora", rank=3)
SECTIONS = {
  "LoRA": LORA | dict(targets=LINEAR, dropout=0.25),
  "ranks": LORA | dict(ranks={"down_proj": 2}, alphas={"down_proj": 3.0}, targets=LINEAR),
  "DoRA": LORA | dict(dora=True),
  "embeddings": LORA | dict(targets=("embed", "q_proj")),
  "AdaLoRA": dict(name="adalora", init_rank=4, target_rank=2),
  "VeRA": dict(name="vera", rank=6, targets=("o_proj", "down_proj")),
  "LoHa": dict(name="loha", rank=3),
  "LoKr": dict(name="lokr", rank=2, factor=4, decompose_both=True),
  "IA3": dict(name="ia3"),
  "prefix": dict(name="prefix", length=4, projection=5),
  "prompt": dict(name="prompt", length=4),
  "P-tuning": dict(name="p_tuning", length=4),
  "norms": dict(name="norms"),
}
# What the files hold as a plain LoRA.
OTHERS = {
  "PiSSA": LORA | dict(initialise="pissa"),
  "OLoRA": LORA | dict(initialise="olora"),
  "LoRA-FA": LORA | dict(train_a=False),
  "LoRA+": LORA | dict(b_rate=4.0),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
  root = tmp_path_factory.mktemp("bases")

  @functools.cache
  def make(name, head=None):
    how = {} if head is None else dict(head=head, labels=3)
    made = tiny.make(name, **how)
    folder = hf.save(made, made.params, root / f"{name}-{head}")
    return hf.load(str(folder), **{n: x for n, x in how.items()})

  return make


def laid(model, section, head=False):
  """A method, and a head beside it, with random arrays."""
  section = {
    "name": "stack",
    section["name"]: section,
    **({"head": {"name": "head"}} if head else {}),
  }
  methods, tuned, hyper, frozen = tiny.lay(model, section, noise=0.1)
  return methods, {"params": {}, "peft": {}} | tuned, hyper, frozen


def written(folder):
  return load_file(folder / "adapter_model.safetensors")


def same(ours, theirs):
  assert ours.keys() == theirs.keys()
  for name, x in ours.items():
    np.testing.assert_array_equal(x, theirs[name], err_msg=name)


# `tests/certificates.py` has every method.
@pytest.mark.parametrize(
  ("name", "head", "case"),
  [
    *[("llama", None, name) for name in ("LoRA", "ranks", "DoRA", "prefix", "prompt", "norms")],
    ("gpt2", None, "AdaLoRA"),
    ("bert", "tokens", "LoRA"),
    ("t5", None, "IA3"),
    ("bart", None, "DoRA"),
  ],
)
def test_round_trip(name, head, case, base, tmp_path):
  model = base(name, head)
  methods, *trees = adapted = laid(model, SECTIONS[case], head is not None)
  export(model, peft.Adapted(*adapted), tmp_path / "x", format="peft")
  found = formats.read(tmp_path / "x", model)
  reparametrised = peft.reparametrise(methods, trees[0]["peft"])
  placed = lambda arrays: peft.by_path(methods[0], arrays)
  same(placed(peft.arrays_of(methods[0], reparametrised)), placed(found.methods[0].trained))
  same(placed(peft.arrays_of(methods[0], trees[1])), placed(found.methods[0].fixed))
  same(tree.flatten(trees[0]["params"]), found.params)
  export(model, formats.adapt(found, model), tmp_path / "y", format="peft")
  same(written(tmp_path / "x"), written(tmp_path / "y"))
  configs = [json.loads((tmp_path / f"{x}/adapter_config.json").read_text()) for x in "xy"]
  assert configs[0] == configs[1]


@pytest.mark.parametrize("case", SECTIONS)
def test_the_files_hold_what_peft_itself_would_save(case, base, tmp_path):
  import transformers
  from peft import PeftModel, get_peft_model_state_dict

  model = base("llama")
  export(model, peft.Adapted(*laid(model, SECTIONS[case])), tmp_path / "x", format="peft")
  theirs = transformers.AutoModelForCausalLM.from_pretrained(model.folder)
  theirs = PeftModel.from_pretrained(theirs, tmp_path / "x")
  saved = get_peft_model_state_dict(theirs, save_embedding_layers=False)
  saved = {name: x.detach().numpy() for name, x in saved.items()}
  ours = written(tmp_path / "x")
  assert {n: x.shape for n, x in ours.items()} == {n: x.shape for n, x in saved.items()}
  for name, x in ours.items():
    np.testing.assert_allclose(x, saved[name], rtol=1e-6, err_msg=name)


@pytest.mark.parametrize("case", OTHERS)
def test_loras_that_lie_otherwise_here(case, base, tmp_path):
  """They come back as the LoRA that they are, and change the weights as before."""
  model = base("gpt2")
  methods, tuned, hyper, frozen = laid(model, OTHERS[case])
  export(model, peft.Adapted(methods, tuned, hyper, frozen), tmp_path / "x")
  again = formats.adapt(formats.read(tmp_path / "x", model), model)
  export(model, again, tmp_path / "y")
  same(written(tmp_path / "x"), written(tmp_path / "y"))
  before = tree.flatten(peft.merge(peft.Adapted(methods, tuned, hyper, frozen)))
  after = tree.flatten(peft.merge(again))
  for path, x in before.items():
    np.testing.assert_allclose(x, after[path], atol=1e-6, err_msg=path)


@pytest.mark.parametrize(
  ("name", "head", "section"),
  [
    ("llama3", None, SECTIONS["embeddings"]),  # the head reads the frozen embeddings
  ],
)
def test_exports_equal_ours(name, head, section, base, tmp_path, reload):
  model = base(name, head)
  made = export(
    model,
    peft.Adapted(*laid(model, section, head is not None)),
    tmp_path / "x",
    certify=True,
    reload=reload,
  )
  assert made.format == "peft" and made.certificate["largest_logit_difference"] < 1e-5
  assert made.certificate["change_from_base"] > 0.01


def test_layers_of_other_ranks_are_trimmed(base, tmp_path):
  """Ranks of zeros are not written: a layer without any is no target."""
  model = base("llama")
  methods, tuned, hyper, frozen = laid(model, LORA)
  arrays = peft.arrays_of(methods[0], tuned["peft"])
  used = jnp.arange(3)[None] < jnp.array([3, 1, 0])[:, None]  # (layers, ranks)
  cut = lambda w: {"a": w["a"] * used[:, None], "b": w["b"] * used[..., None]}
  arrays = {site: cut(w) for site, w in arrays.items()}
  tuned["peft"] = peft.with_arrays(methods[0], tuned["peft"], arrays)
  export(model, peft.Adapted(methods, tuned, hyper, frozen), tmp_path / "x")
  shapes = {n: x.shape[0] for n, x in written(tmp_path / "x").items() if "q_proj.lora_A" in n}
  assert list(shapes.values()) == [3, 1]
  found = formats.read(tmp_path / "x", model)
  same(peft.by_path(methods[0], peft.arrays_of(methods[0], tuned["peft"])),
       peft.by_path(methods[0], found.methods[0].trained))  # fmt: skip


REFUSED = [
  ("gpt2", None, dict(name="loha", rank=2, targets=("o_proj",)), "knows no Conv1D"),
  ("gpt2", None, dict(name="vera", rank=2), "q_proj, v_proj were trained apart"),
  ("bert", "classify", SECTIONS["prompt"], "it pools a virtual token"),
  ("t5", None, SECTIONS["prefix"], "a prefix of an encoder-decoder"),
  ("t5", None, SECTIONS["embeddings"], "adapter of embed in an encoder-decoder"),
  ("bart", None, LORA | dict(targets=("decoder/positions",)), "of decoder/positions in an enc"),
  ("llama", None, dict(name="reft"), "no PyTorch format holds method 'reft'"),
]


@pytest.mark.parametrize(("name", "head", "section", "message"), REFUSED)
def test_what_peft_cannot_hold(name, head, section, message, base, tmp_path):
  model = base(name, head)
  with pytest.raises(UserError, match=message):
    export(model, peft.Adapted(*laid(model, section, head is not None)), tmp_path / "x")
  assert not list(tmp_path.iterdir())


def test_a_prefix_is_written_as_its_keys_and_values(base, tmp_path):
  """Also where a network made them in training: PEFT would make one of its own, at random."""
  made = export(
    base("llama"), peft.Adapted(*laid(base("llama"), SECTIONS["prefix"])), tmp_path / "x"
  )
  stated = json.loads((made.folder / "adapter_config.json").read_text())
  assert stated["prefix_projection"] is False and stated["num_virtual_tokens"] == 4


def test_a_prefix_of_other_lengths(base, tmp_path):
  model = base("llama")
  methods, tuned, hyper, frozen = laid(model, SECTIONS["prefix"])
  flat = tree.flatten(hyper)
  flat["trunk/layers/attn/attend/prefix/mask"] = np.arange(4) < np.array([[4], [2], [4]])
  with pytest.raises(UserError, match="another length in each layer"):
    export(model, peft.Adapted(methods, tuned, tree.unflatten(flat), frozen), tmp_path / "x")


def test_a_gate_is_not_left_out_in_silence(llama, tmp_path):
  laid = tiny.lay(llama, {"name": "lora", "gate": True}, noise=0.1)
  with pytest.raises(UserError, match="gate_bias, which PEFT cannot express"):
    export(llama, peft.Adapted(*laid), tmp_path / "out")
