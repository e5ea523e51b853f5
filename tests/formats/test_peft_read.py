"""Folders that PEFT itself wrote: they are read, equal PyTorch, and are written back bit by bit."""

import functools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from support import made_trials, tiny

from jaxtune import certify, formats, peft, tree
from jaxtune.api import import_adapter
from jaxtune.api.export import export
from jaxtune.errors import UserError
from jaxtune.models import hf
from jaxtune.runs import finished
from jaxtune.runs.first_state import first_state
from jaxtune.runs.trial import with_config

pytest.importorskip("peft")

CAUSAL, SEQ2SEQ = dict(task_type="CAUSAL_LM"), dict(task_type="SEQ_2_SEQ_LM")
QV, PROMPT = dict(target_modules=["q_proj", "v_proj"]), dict(num_virtual_tokens=3)
FUSED = dict(target_modules=["c_attn", "mlp.c_proj"])
ADALORA = dict(init_r=4, target_r=2, total_step=10, lora_alpha=5)
# name: (model, its head, class of PEFT's config, its options)
CASES = {
  "ranks and alphas by pattern": ("llama", None, "Lora", CAUSAL | dict(
    r=4, lora_alpha=7, target_modules="all-linear", use_rslora=True, lora_dropout=0.1,
    rank_pattern={"q_proj": 2, "layers.1.mlp.up_proj": 3}, alpha_pattern={"0.self_attn.v_proj": 3},
  )),
  "DoRA": ("llama", None, "Lora", CAUSAL | QV | dict(r=3, use_dora=True)),
  "some layers": ("llama", None, "Lora", CAUSAL | QV | dict(r=3, layers_to_transform=[1])),
  "embeddings": ("llama", None, "Lora", CAUSAL | dict(
    r=3, target_modules=["embed_tokens", "o_proj"],
  )),
  "AdaLoRA": ("llama", None, "AdaLora", CAUSAL | QV | ADALORA),
  "VeRA": ("llama", None, "Vera", CAUSAL | dict(r=5, target_modules=["k_proj", "down_proj"])),
  "LoHa": ("llama", None, "LoHa", CAUSAL | QV | dict(r=3, alpha=5, rank_pattern={"q_proj": 2})),
  "LoKr": ("llama", None, "LoKr", CAUSAL | QV | dict(
    r=2, decompose_both=True, alpha_pattern={"q_proj": 3},
  )),
  "LoKr, whole": ("llama", None, "LoKr", CAUSAL | QV | dict(r=64, decompose_factor=4)),
  "IA3": ("llama", None, "IA3", CAUSAL),
  "prefix": ("llama", None, "PrefixTuning", CAUSAL | PROMPT | dict(
    prefix_projection=True, encoder_hidden_size=6,
  )),
  "prompt": ("llama", None, "PromptTuning", CAUSAL | PROMPT),
  "P-tuning": ("llama", None, "PromptEncoder", CAUSAL | PROMPT | dict(encoder_hidden_size=6)),
  "norms": ("llama", None, "LNTuning", CAUSAL | dict(
    target_modules=["input_layernorm", "model.norm"],
  )),
  "fused LoRA": ("gpt2", None, "Lora", CAUSAL | FUSED | dict(r=3)),
  "fused DoRA": ("gpt2", None, "Lora", CAUSAL | FUSED | dict(r=3, use_dora=True)),
  "fused AdaLoRA": ("gpt2", None, "AdaLora", CAUSAL | FUSED | ADALORA),
  "fused VeRA": ("gpt2", None, "Vera", CAUSAL | FUSED | dict(r=5)),
  "fused IA3": ("gpt2", None, "IA3", CAUSAL),
  "LoRA and biases": ("bert", "tokens", "Lora", dict(
    task_type="TOKEN_CLS", r=3, target_modules=["query", "output.dense"], bias="lora_only",
  )),
  "LoRA and all biases": ("bert", "tokens", "Lora", dict(
    task_type="TOKEN_CLS", r=3, target_modules=["query"], bias="all",
  )),
  "targets inside of what is saved": ("roberta", "classify", "Lora", dict(
    task_type="SEQ_CLS", r=2, target_modules=["query", "dense"],
  )),
  "a head of which a part is saved": ("modernbert", "classify", "Lora", dict(
    task_type="SEQ_CLS", r=2, target_modules=["Wqkv"],
  )),
  "IA3 and a pooler": ("bert", "classify", "IA3", dict(
    task_type="SEQ_CLS", modules_to_save=["classifier", "pooler"],
  )),
  "prompt of tokens": ("bert", "tokens", "PromptTuning", PROMPT | dict(task_type="TOKEN_CLS")),
  "T5": ("t5", None, "Lora", SEQ2SEQ | dict(r=3, target_modules=["q", "wo", "lm_head"])),
  "some layers of T5": ("t5", None, "Lora", SEQ2SEQ | dict(
    r=3, target_modules=["q", "wo"], layers_to_transform=[0],
  )),
  "T5 prompt": ("t5", None, "PromptTuning", SEQ2SEQ | PROMPT | dict(
    num_transformer_submodules=1,
  )),
}  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory):
  """(name, head) -> our model, of a folder that PyTorch wrote."""
  root = tmp_path_factory.mktemp("bases")

  @functools.cache
  def make(name, head):
    kind = hf.family_module(name).ARCHITECTURES[head or "lm"]
    labels = {} if head is None else dict(num_labels=3)
    folder = root / f"{name}-{head}"
    tiny.torch_twin(tiny.torch_config(name, **labels), folder, kind)
    return hf.load(str(folder), **({} if head is None else dict(head=head, labels=3)))

  return make


def written(model, head, kind, options, folder):
  """Writes an adapter of random arrays with PEFT; returns it over its model."""
  import peft
  import torch
  import transformers

  architecture = hf.family_module(model.family).ARCHITECTURES[head or "lm"]
  twin = getattr(transformers, architecture).from_pretrained(
    model.folder, attn_implementation="eager"
  )
  config = getattr(peft, f"{kind}Config")(**options)
  made = peft.get_peft_model(twin, config)
  torch.manual_seed(1)
  with torch.no_grad():
    for parameter in (p for p in made.parameters() if p.requires_grad):
      parameter.add_(0.1 * torch.randn_like(parameter))
  if kind == "AdaLora":
    keep(made)
  made.save_pretrained(folder)
  return made.eval()


def keep(model):
  """Prunes as AdaLoRA does: every second weight keeps three of its four ranks."""
  config, pattern = model.peft_config["default"], {}
  for i, (name, e) in enumerate(n for n in model.named_parameters() if "lora_E" in n[0]):
    kept = [True, i % 2 == 0, True, True]
    e.data[1] *= float(kept[1])
    pattern[name.removeprefix("base_model.model.")] = kept
  config.rank_pattern = pattern


def inputs(model):
  """Names of arguments here and there, with their arrays."""
  tokens, mask = tiny.batch(side="right", length=9)
  tokens = np.where(mask, np.maximum(tokens, 2), 0).astype(np.int32)
  if model.model.config.encoder is None:
    return dict(tokens=tokens, mask=mask), dict(input_ids=tokens, attention_mask=mask)
  ours = dict(tokens=tokens[:, :5], mask=mask[:, :5], inputs=tokens, inputs_mask=mask)
  names = ("decoder_input_ids", "decoder_attention_mask", "input_ids", "attention_mask")
  return ours, dict(zip(names, ours.values(), strict=True))


@pytest.mark.parametrize(
  "section",
  [
    dict(name="p_tuning", length=3),
    dict(name="adalora", init_rank=4, target_rank=2),
    dict(name="loha", rank=3),
  ],
)
def test_an_export_makes_a_run(llama, section, tmp_path):
  """Also where sites differ in rank, and of P-tuning, of which a prompt is exported."""
  adapted = tiny.lay(llama, section, noise=0.1)
  deltas = tree.flatten(adapted.tuned["peft"])
  for path in [path for path in deltas if "q_proj" in path]:
    ranks = np.s_[..., 2:, :] if path.endswith("b") else np.s_[..., 2:]
    deltas[path] = deltas[path].at[ranks].set(0)
  adapted = adapted._replace(tuned=adapted.tuned | {"peft": tree.unflatten(deltas)})
  export(llama, adapted, tmp_path / "x")
  check_import(llama, None, tmp_path / "x", {})
  tokens, _ = tiny.batch()
  theirs = formats.adapt(formats.read(tmp_path / "x", llama), llama)
  ours, read = (tiny.forward(llama, laid, tokens) for laid in (adapted, theirs))
  np.testing.assert_allclose(ours, read, atol=1e-5)


def test_an_adapter_with_a_part_of_the_head_makes_a_run(tmp_path):
  """PEFT saves ModernBERT's classifier alone, and norms beside it where it is told to."""
  model = tiny.make("modernbert", head="classify", labels=3)._replace(fresh=())
  section = {"name": "stack", "lora": {"name": "lora", "rank": 2}, "head": {"name": "head"}}
  adapted = tiny.lay(model, section, noise=0.1)
  file = export(model, adapted, tmp_path / "x").folder / "adapter_model.safetensors"
  found = {name: x for name, x in load_file(file).items() if ".head." not in name}
  save_file(found, file)
  config = json.loads((path := file.with_name("adapter_config.json")).read_text())
  path.write_text(json.dumps(config | {"modules_to_save": ["classifier"]}))
  check_import(model, "classify", file.parent, {})
  save_file(found | {"base_model.model.model.final_norm.weight": np.ones(32, np.float32)}, file)
  check_import(model, "classify", file.parent, {"bias": "all"})


@pytest.mark.parametrize("case", CASES)
def test_what_peft_wrote(case, base, tmp_path):
  import torch

  name, head, kind, options = CASES[case]
  model = base(name, head)
  twin = written(model, head, kind, options, tmp_path / "theirs")
  ours, theirs = inputs(model)
  with torch.no_grad():
    theirs = twin(**{n: torch.tensor(x).long() for n, x in theirs.items()}).logits.numpy()
  found = formats.read(tmp_path / "theirs", model)
  adapted = formats.adapt(found, model)
  (logits,) = certify.our_logits(model, adapted, [ours])
  theirs = theirs[:, -logits.shape[1] :] if logits.ndim == 3 else theirs
  real = ours["mask"] if logits.ndim == 3 else ...
  np.testing.assert_allclose(logits[real], theirs[real], atol=1e-4, rtol=0)
  check_import(model, head, tmp_path / "theirs", options)
  (bare,) = certify.our_logits(model, peft.untuned(model.params), [ours])
  assert np.abs(logits - bare)[real].max() > 1e-2
  if "bias" in options:
    return  # biases beside a LoRA are read, but have no place in our own files
  export(model, adapted, tmp_path / "ours", format="peft")
  before, after = (tensors(tmp_path / name) for name in ("theirs", "ours"))
  # Beside ModernBERT's classifier we save the layer below it, which a new head has too.
  assert before.keys() == {n for n in after if ".head." not in n}
  for n, x in before.items():
    np.testing.assert_array_equal(after[n], x, err_msg=n)


def check_import(model, head, folder, options):
  """An adapter makes a run, unless it has trained weights of the base that no run does."""
  config = made_trials.complete({"name": "lora"}, objective={"name": head or "sft"})
  run = finished.Run(None, config, model, peft.untuned(model.params))
  if "bias" in options or "pooler" in options.get("modules_to_save", ()):
    with pytest.raises(UserError, match="trained .* of the base too, .*: merge the"):
      import_adapter.lay(run, folder)
    return
  adapted = import_adapter.lay(run, folder).adapted
  arrays = tree.flatten(adapted.tuned | {"hyper": adapted.hyper})
  finished.check_fits(adapted.methods, model, arrays, "the run")


def test_a_table_that_scores_too_is_not_read_as_a_lookup(tmp_path):
  saved = CAUSAL | QV | dict(r=2, modules_to_save=["embed_tokens"])
  tiny.torch_twin(tiny.torch_config("llama", tie_word_embeddings=True), tmp_path / "base")
  model = hf.load(str(tmp_path / "base"))
  written(model, None, "Lora", saved, tmp_path / "adapter")
  with pytest.raises(UserError, match="trained model.embed_tokens.weight: .* the lookup alone"):
    formats.read(tmp_path / "adapter", model)


def test_a_trained_output_layer_is_not_left_behind(base, tmp_path):
  model, saved = base("llama", None), CAUSAL | QV | dict(r=2, modules_to_save=["lm_head"])
  written(model, None, "Lora", saved, tmp_path)
  config = made_trials.complete({"name": "lora", "rank": 2, "alpha": 8.0, "start": str(tmp_path)})
  with pytest.raises(UserError, match="method.start: .* has trained head/kernel too, which no"):
    first_state(with_config(made_trials.make(model), config))


def tensors(folder):
  """An adapter's tensors, but for PEFT's copies of frozen embeddings."""
  found = load_file(folder / "adapter_model.safetensors")
  return {n: x for n, x in found.items() if not n.endswith("base_layer.weight")}


@pytest.fixture(scope="module")
def adapters(base, tmp_path_factory):
  """Folders of a LoRA and of a prefix, and the model they are of."""
  model, root = base("llama", None), tmp_path_factory.mktemp("adapters")
  for section in (
    dict(name="lora", rank=2),
    dict(name="prefix", length=3),
    dict(name="vera", rank=3),
  ):
    adapted = tiny.lay(model, section, noise=0.1)
    export(model, adapted, root / section["name"])
  return model, root


A = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
WRONG = {
  "missing": ("lora", lambda t: t.pop(A), {}, "lacks model.layers.0.self_attn.q_proj.lora_A"),
  "foreign": ("lora", lambda t: t.update({A.replace("q_proj", "o_proj"): t[A]}), {},
              "o_proj.lora_A.weight, which nothing reads"),
  "misspelt": ("lora", lambda t: t.update({A.replace("lora_A", "lora_a"): t.pop(A)}), {},
               "did you mean 'model.layers.0.self_attn.q_proj.lora_A.weight'"),
  "wrong shape": ("lora", lambda t: t.update({A: t[A][:, :-1]}), {},
                  "is \\(2, 31\\), expected \\(2, 32\\): the adapter is of another base"),
  "another rank": ("lora", None, {"r": 3}, "expected \\(3, 32\\)"),
  "NaN": ("lora", lambda t: t[A].fill(np.nan), {}, "holds NaN or infinity"),
  "infinity": ("lora", lambda t: t[A].__setitem__((0, 0), np.inf), {}, "holds NaN or infinity"),
  "no target": ("lora", None, {"target_modules": ["c_attn"]}, "hits no module of this model"),
  "no targets": ("lora", None, {"target_modules": None}, "has no target_modules"),
  "a type": ("lora", None, {"peft_type": "LORE"}, "did you mean 'LORA'"),
  "an option": ("lora", None, {"lora_bias": True}, "jaxtune has no biases of B"),
  "a changed base": ("lora", None, {"init_lora_weights": "pissa"}, "changes the base"),
  "another base": ("lora", None, {"base_model_name_or_path": "other/gpt2"}, "was trained over"),
  "a length": ("prefix", None, {"num_virtual_tokens": 4}, "expected \\(4, 96\\)"),
  "a base of no name": ("lora", None, {"base_model_name_or_path": 5},
                        "base_model_name_or_path is 5 .*, expected text"),
  "targets that are a number": ("lora", None, {"target_modules": 5}, "expected text or list"),
  "no rank": ("lora", None, {"r": None}, "r is None"),
  "a scale in words": ("lora", None, {"lora_alpha": "16"}, "lora_alpha is '16' .*, expected float"),
  "a flag in words": ("lora", None, {"use_rslora": "false"}, "expected bool"),
  "a layer in words": ("lora", None, {"layers_to_transform": "3"}, "expected int or list"),
  "no pattern": ("lora", None, {"target_modules": "*q_proj"}, "not a regular expression"),
  "no pattern of a scale": ("lora", None, {"alpha_pattern": {"(": 1}}, "not a regular expression"),
  "a list of ranks": ("lora", None, {"rank_pattern": ["x"]}, "rank_pattern is .*, expected dict"),
  "a rank that is no whole number": ("lora", None, {"r": 4.5}, "r is 4.5 .*, expected .*int"),
  "a negative rank": ("lora", None, {"r": -4}, "r is -4 .*, expected at least 1"),
  "an infinite scale": ("lora", None, {"lora_alpha": float("inf")}, "lora_alpha is inf"),
  "a rank by pattern": ("lora", None, {"rank_pattern": {"q_proj": 2.5}}, "q_proj is 2.5"),
  "ranks as a mask": ("lora", None, {"rank_pattern": {"q_proj": [True]}}, "q_proj is .True"),
  "a slow pattern": ("lora", None, {"target_modules": "(.|.|..)*0"}, "takes longer than"),
  "a lost module": ("lora", None, {"modules_to_save": ["lm_head"]}, "lacks lm_head.weight"),
  "no module": ("lora", None, {"modules_to_save": ["lm_haed"]}, "'lm_haed', which this"),
  "a flat projection": ("vera", lambda t: t.update({"base_model.vera_A": np.ones(96, np.float32)}),
                        {}, "vera_A is \\(96,\\) .* needs"),
  "a pair of ranks": ("vera", lambda t: t.update({"base_model.vera_B": np.ones((32, 4), "f4")}),
                      {}, "the rank 3"),
  "a head": ("prefix", lambda t: t.update({"base_model.score.weight": np.ones(3)}), {},
             "score.weight, which nothing reads"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_named(case, adapters, tmp_path):
  model, root = adapters
  name, change, config, message = WRONG[case]
  folder = tmp_path / "x"
  shutil.copytree(root / name, folder)
  path = folder / "adapter_config.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | config))
  if change is not None:
    found = load_file(folder / "adapter_model.safetensors")
    change(found)
    save_file(found, folder / "adapter_model.safetensors")
  with pytest.raises(UserError, match=message):
    formats.read(folder, model)


def test_an_adapter_of_another_model_or_task(adapters, base):
  _, root = adapters
  with pytest.raises(UserError, match="was trained over .*llama-None, but the model is .*gpt2"):
    formats.read(root / "lora", base("gpt2", None))
  with pytest.raises(UserError, match="hits no module of this model"):
    formats.read(root / "lora", base("gpt2", None)._replace(folder=None))
  # The same layers under a head that the adapter was not trained with.
  model = hf.load(str(adapters[0].folder), head="classify", labels=3)
  with pytest.raises(UserError, match="has no score.weight, .* trained for another task"):
    formats.read(root / "lora", model)


def test_a_pickle_is_read_as_plain_tensors(adapters, tmp_path):
  import torch

  model, root = adapters
  shutil.copytree(root / "lora", tmp_path / "x")
  path = tmp_path / "x/adapter_model.safetensors"
  found, pickle = load_file(path), tmp_path / "x/adapter_model.bin"
  path.unlink()
  with pytest.raises(UserError, match="no weights: expected adapter_model.safetensors"):
    formats.read(tmp_path / "x", model)
  torch.save({n: torch.tensor(x) for n, x in found.items()}, pickle)
  whole, read = (
    formats.read(folder, model).methods[0].trained for folder in (root / "lora", tmp_path / "x")
  )
  for site, arrays in whole.items():
    for name, x in arrays.items():
      np.testing.assert_array_equal(read[site][name], x)
  made = tmp_path / "made by a pickle"

  class Code:
    def __reduce__(self):
      return Path.touch, (made,)

  for content in ({"x": Code()}, {0: torch.zeros(2)}):
    torch.save(content, pickle)
    with pytest.raises(UserError, match="cannot be read as plain tensors"):
      formats.read(tmp_path / "x", model)
  assert not made.exists()


def test_folders_that_are_no_adapters(adapters, tmp_path):
  model, _ = adapters
  with pytest.raises(UserError, match="it has no adapter_config.json"):
    formats.read(tmp_path, model)
  wrong = {"{": "malformed JSON", "[" * 10**5: "nested too deeply", "9" * 5000: "cannot be read"}
  for text, message in (wrong | {"[]": "neither PEFT's", "{}": "neither PEFT's"}).items():
    (tmp_path / "adapter_config.json").write_text(text)
    with pytest.raises(UserError, match=message):
      formats.read(tmp_path, model)


def test_an_adapter_of_another_task_with_the_same_tensors(tmp_path):
  model = tiny.make("modernbert", head="tokens", labels=3)
  section = {"name": "stack", "lora": {"name": "lora", "rank": 2}, "head": {"name": "head"}}
  export(model, tiny.lay(model, section, noise=0.1), tmp_path / "x")
  with pytest.raises(UserError, match="task_type is 'TOKEN_CLS', expected 'SEQ_CLS' for the head"):
    formats.read(tmp_path / "x", tiny.make("modernbert", head="classify", labels=3))
  config = json.loads((tmp_path / "x" / "adapter_config.json").read_text())
  (tmp_path / "x" / "adapter_config.json").write_text(
    json.dumps(config | {"task_type": "CAUSAL_LM"})
  )
  formats.read(tmp_path / "x", model)  # as trainers leave it, for a head that the files hold


def test_a_rank_above_a_weight_s_smaller_side(base, tmp_path):
  model, options = base("llama", None), CAUSAL | dict(r=20, target_modules=["k_proj"])
  written(model, None, "Lora", options, tmp_path)
  with pytest.raises(UserError, match="rank is 20 at .*k_proj, which is 32 x 16, .* 16: merge it"):
    formats.read(tmp_path, model)
