"""T5 and BART equal PyTorch transformers; cached decoding equals teacher forcing."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from support import tiny
from transformers import AutoModelForSeq2SeqLM, BartConfig, T5Config
from transformers.models.t5.modeling_t5 import T5Attention

from jaxtune import peft, sharding, tree
from jaxtune.errors import UserError
from jaxtune.models import hf, layers
from jaxtune.models.fields import start_tokens
from jaxtune.objectives import sft

T5 = {k: v for k, v in tiny.ARCHITECTURES["t5"].items() if k != "model_type"}
BART = {k: v for k, v in tiny.ARCHITECTURES["bart"].items() if k != "model_type"}
CONFIGS = {
  "t5": lambda: T5Config(**T5 | dict(feed_forward_proj="relu", tie_word_embeddings=True)),
  "t5-v1.1": lambda: T5Config(**T5),
  "bart": lambda: BartConfig(**BART | dict(scale_embedding=False)),
  "bart-scaled": lambda: BartConfig(**BART),
}
STORED = ("t5", "t5-v1.1", "bart-scaled")  # the scale is a number of config.json, in no tensor


def twin(name, folder):
  """Saves a random PyTorch model, every parameter off its start; v1.1 has a head of its own."""
  torch.manual_seed(0)
  model = AutoModelForSeq2SeqLM.from_config(CONFIGS[name](), attn_implementation="eager").eval()
  if name == "t5-v1.1":
    model.lm_head.weight = torch.nn.Parameter(0.3 * torch.randn_like(model.shared.weight))
  with torch.no_grad():
    for parameter in model.parameters():
      parameter.add_(0.1 * torch.randn_like(parameter))
    if name.startswith("bart"):
      model.final_logits_bias.add_(torch.randn_like(model.final_logits_bias))
  model.save_pretrained(folder)
  return model


def theirs_of(model, tokens, mask, inputs, inputs_mask):
  as_ids = lambda x: torch.tensor(np.asarray(x)).long()
  with torch.no_grad():
    made = model(
      input_ids=as_ids(inputs),
      attention_mask=as_ids(inputs_mask),
      decoder_input_ids=as_ids(tokens),
      decoder_attention_mask=as_ids(mask),
    )
  return made.logits.float().numpy()


@pytest.fixture(scope="module", params=CONFIGS)
def pair(request, tmp_path_factory):
  folder = tmp_path_factory.mktemp(request.param)
  model = twin(request.param, folder)
  return model, hf.load(str(folder)), folder


@partial(jax.jit, static_argnums=0)  # equal models share a program
def compiled(model, params, *args):
  return model.apply({"params": params}, *args)


def run(pretrained, *args):
  return np.asarray(compiled(pretrained.model, pretrained.params, *args))


def test_logits_equal_pytorch(pair):
  theirs, ours, _ = pair
  tokens, mask = tiny.batch(length=9, side="right")
  inputs, inputs_mask = tiny.batch(length=14, seed=1, side="right")
  full = np.ones_like
  for m, im in ((mask, inputs_mask), (full(mask), full(inputs_mask))):
    expected = theirs_of(theirs, tokens, m, inputs, im)
    made = run(ours, tokens, m, inputs, im)
    assert expected[m].std() > 0.1
    np.testing.assert_allclose(made[m], expected[m], atol=1e-4, rtol=0)
  # Padding on the left gives each row the logits it has without any, unlike BART in transformers.
  left = lambda x, m: np.stack([np.concatenate([r[~k], r[k]]) for r, k in zip(x, m, strict=True)])
  expected = theirs_of(theirs, tokens, mask, inputs, inputs_mask)
  moved = [left(tokens, mask), mask[:, ::-1], left(inputs, inputs_mask), inputs_mask[:, ::-1]]
  made = run(ours, *moved)
  np.testing.assert_allclose(made[mask[:, ::-1]], expected[mask], atol=1e-4, rtol=0)


@pytest.mark.parametrize("pair", STORED, indirect=True)
def test_the_loss_equals_that_of_transformers(pair):
  """Theirs of the labels alone; ours of the decoder's start and the labels in one row."""
  theirs, ours, _ = pair
  tokens, mask = tiny.batch(length=9, side="right")
  inputs, inputs_mask = tiny.batch(length=14, seed=1, side="right")
  tokens[:, 0] = ours.model.config.decoder_start[0]
  labels = torch.tensor(np.where(mask, tokens, -100)[:, 1:]).long()
  with torch.no_grad():
    expected = theirs(
      input_ids=torch.tensor(inputs).long(), attention_mask=torch.tensor(inputs_mask).long(),
      labels=labels,
    ).loss.item()  # fmt: skip
  weights = (mask & (np.arange(9) > 0)[None]).astype(np.float32)
  made, others = sft.loss(
    lambda batch, score, targets: score(
      run(ours, batch["tokens"], mask, inputs, inputs_mask), targets
    ),
    {"tokens": jnp.asarray(tokens), "weights": jnp.asarray(weights)},
  )
  assert abs(made.sum() / others["weight"].sum() - expected) < 1e-5


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_every_leaf_has_a_sharding(name):
  mesh = sharding.make("jit", {"fsdp": 2, "tensor": 2}).mesh
  outlined = hf.outline(architecture=tiny.ARCHITECTURES[name])
  placed = tree.flatten(sharding.shardings(mesh, outlined.params))
  assert tuple(placed["decoder/layers/cross/q_proj/kernel"].spec) == (None, "fsdp", "tensor")
  assert tuple(placed["encoder/layers/mlp/down_proj/kernel"].spec) == (None, "tensor", "fsdp")


@pytest.mark.parametrize("name", ["t5-v1.1", "bart-scaled"])
def test_bf16_stays_within_a_band(name, tmp_path):
  """Computing in bf16 stays within 4 % of the logits' spread."""
  theirs = twin(name, tmp_path)
  ours = hf.load(str(tmp_path), dtype="bfloat16")
  assert {str(x.dtype) for x in jax.tree.leaves(ours.params)} == {"bfloat16"}
  inputs = (
    tiny.batch(length=9)[0],
    tiny.batch(length=9)[1],
    *tiny.batch(length=14, seed=1),
  )
  expected = theirs_of(theirs, *inputs)
  made = run(ours, *inputs)
  assert made.dtype == np.float32
  assert np.sqrt(np.mean((made - expected) ** 2)) < 0.04 * expected.std()


@pytest.mark.parametrize("pair", STORED, indirect=True)
def test_saved_folders_load_in_pytorch(pair, tmp_path):
  theirs, ours, _ = pair
  moved = tiny.perturb(ours.params, 3)
  hf.save(ours, moved, tmp_path / "out")
  again, report = AutoModelForSeq2SeqLM.from_pretrained(
    tmp_path / "out", attn_implementation="eager", output_loading_info=True
  )
  assert not any(report.values()), report
  reloaded = hf.load(str(tmp_path / "out"))
  jax.tree.map(np.testing.assert_array_equal, reloaded.params, moved)
  inputs = *tiny.batch(length=9), *tiny.batch(length=14, seed=1)
  expected = theirs_of(again.eval(), *inputs)
  np.testing.assert_allclose(run(reloaded, *inputs), expected, atol=1e-4, rtol=0)
  assert not np.allclose(expected, theirs_of(theirs, *inputs), atol=1e-2)


def rewritten(folder, target, tensors=lambda t: t, **config):
  """Copies a folder with other tensors or entries of config.json (None: taken out)."""
  target.mkdir()
  kept = json.loads((folder / "config.json").read_text()) | config
  kept = {k: v for k, v in kept.items() if v is not None}
  (target / "config.json").write_text(json.dumps(kept))
  save_file(tensors(load_file(folder / "model.safetensors")), target / "model.safetensors")
  return str(target)


@pytest.mark.parametrize("pair", STORED, indirect=True)
def test_folders_of_transformers_4_and_without_a_head(pair, tmp_path):
  """Copies of the embeddings are dropped, a missing bias is zero, a missing prefix is added."""
  _, ours, folder = pair
  if "t5" in ours.family:
    tied, base = ours.model.config.tied, ""
    with_copies = lambda t: t | {f"{half}.embed_tokens.weight": t["shared.weight"]
                                 for half in ("encoder", "decoder")}  # fmt: skip
    changes = dict(scale_decoder_outputs=None, tie_word_embeddings=tied)
    tensors = lambda t: {k: v for k, v in with_copies(t).items() if k != "shared.weight"}
  else:
    changes, base = {}, "model."
    tensors = lambda t: {k.removeprefix(base): v for k, v in t.items() if k != "final_logits_bias"}
  again = hf.load(rewritten(folder, tmp_path / "4", tensors, **changes))
  assert again.model.config == ours.model.config
  expected = tree.flatten(ours.params)
  if "bart" in ours.family:
    expected["logit_bias"] = jnp.zeros_like(expected["logit_bias"])
  assert tree.flatten(again.params).keys() == expected.keys()
  for path, leaf in tree.flatten(again.params).items():
    np.testing.assert_array_equal(leaf, expected[path], path)
  twice = lambda t: t | {f"{base}encoder.embed_tokens.weight": t[f"{base}shared.weight"] + 1}
  with pytest.raises(UserError, match="encoder.embed_tokens.weight differs from"):
    hf.load(rewritten(folder, tmp_path / "differs", twice))


def test_a_gated_model_whose_head_was_tied_all_the_same(tmp_path):
  """transformers 5 ties v1.1 where it makes one itself: the file then has no head of its own."""
  model = AutoModelForSeq2SeqLM.from_config(CONFIGS["t5-v1.1"](), attn_implementation="eager")
  model.eval().save_pretrained(tmp_path)
  assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
  inputs = *tiny.batch(length=9), *tiny.batch(length=14, seed=1)
  made = run(hf.load(str(tmp_path)), *inputs)
  np.testing.assert_allclose(made, theirs_of(model, *inputs), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("both_ways", [True, False])
@pytest.mark.parametrize(("buckets", "longest"), [(32, 128), (8, 12), (16, 100)])
def test_buckets_of_distances(buckets, longest, both_ways):
  ahead = np.arange(-300, 301)[None]
  expected = T5Attention._relative_position_bucket(
    torch.tensor(ahead), both_ways, buckets, longest
  ).numpy()
  table = np.arange(buckets, dtype=np.float32)[:, None]
  module = layers.RelativeBias(buckets, longest, 1, both_ways)
  made = module.apply({"params": {"embedding": table}}, ahead)
  np.testing.assert_array_equal(made[0, 0], expected)


@pytest.fixture(scope="module", params=["t5", "bart"])
def moved(request):
  """A tiny model with LoRA, prefixes and adapters at every kind of place."""
  pretrained = tiny.make(request.param)
  section = {
    "name": "stack",
    "lora": {"rank": 2, "targets": ("cross/q_proj", "encoder/.*/v_proj", "down_proj")},
    "prefix": {"length": 3},
    "adapter": {"width": 4, "placement": "houlsby"},
  }
  return pretrained, tiny.lay(pretrained, section, noise=0.1)


@pytest.fixture(scope="module")
def call(moved):
  """Its compiled program: (tokens, mask, inputs, inputs_mask) -> logits."""
  pretrained, (methods, tuned, hyper, base) = moved
  return jax.jit(
    lambda *args: peft.apply(pretrained.model, peft.Adapted(methods, tuned, hyper, base), *args)
  )


def test_decoding_equals_teacher_forcing(moved, call):
  """The start at once, then tokens one by one; inputs are padded on the left."""
  pretrained, (methods, tuned, hyper, base) = moved
  model, start = pretrained.model, pretrained.model.config.decoder_start
  tokens, _ = tiny.batch(length=len(start) + 6)
  tokens[:, : len(start)] = start
  inputs, inputs_mask = tiny.batch(length=7, seed=1, side="left")
  expected = call(tokens, np.ones(tokens.shape, bool), inputs, inputs_mask)
  run = lambda method: (
    lambda *a: peft.apply(model, peft.Adapted(methods, tuned, hyper, base), *a, method=method)
  )
  begin, decode = run(lambda model, *prompts: model.prefill(*prompts, 6)), run(model.decode)
  logits, cache = jax.jit(begin)(inputs, inputs_mask)
  assert cache.mask.shape == tokens.shape and cache.encoded.shape == inputs.shape
  step = jax.jit(decode)
  for end in range(len(start), tokens.shape[1]):
    np.testing.assert_allclose(logits, expected[:, end - 1], atol=2e-5, rtol=0)
    logits, cache = step(tokens[:, end], cache)
  np.testing.assert_allclose(logits, expected[:, -1], atol=2e-5, rtol=0)


def test_content_of_padding_does_not_matter(moved, call):
  length = len(moved[0].model.config.decoder_start) + 6
  tokens, mask = tiny.batch(length=length, side="right")
  inputs, inputs_mask = tiny.batch(length=7, seed=1, side="left")
  other = lambda x, m: np.where(m, x, (x + 7) % tiny.VOCABULARY)
  made = call(tokens, mask, inputs, inputs_mask)
  again = call(other(tokens, mask), mask, other(inputs, inputs_mask), inputs_mask)
  np.testing.assert_array_equal(made[mask], again[mask])
  changed = inputs.copy()
  changed[:, -1] = (changed[:, -1] + 1) % tiny.VOCABULARY  # a real token does matter, to every one
  assert (np.abs(call(tokens, mask, changed, inputs_mask) - made).max(-1)[mask] > 1e-6).all()
  later = tokens.copy()
  later[:, 3:] = (later[:, 3:] + 1) % tiny.VOCABULARY
  np.testing.assert_array_equal(
    call(later, mask, inputs, inputs_mask)[:, :3][mask[:, :3]], made[:, :3][mask[:, :3]]
  )


def test_what_an_output_begins_with():
  assert start_tokens({"decoder_start_token_id": 7}, None) == (7,)
  assert start_tokens({}, 2) == (2,)
  assert start_tokens({"decoder_start_token_id": 0, "forced_bos_token_id": 5}, 2) == (0, 5)
  old = {"force_bos_token_to_be_generated": True, "bos_token_id": 4}
  assert start_tokens(old, 2) == (2, 4)
  with pytest.raises(UserError, match="no decoder_start_token_id"):
    start_tokens({}, None)


@pytest.mark.parametrize(
  ("name", "changes", "says"),
  [
    ("t5", {"feed_forward_proj": "gated-gelo"}, "feed_forward_proj is 'gelo'.*did you mean 'gelu'"),
    ("t5", {"is_encoder_decoder": False}, "is_encoder_decoder=False is not supported"),
    ("bart", {"normalize_before": True}, "normalize_before=True is not supported"),
    ("bart", {"activation_function": "swash"}, "activation_function is 'swash'.*'silu'"),
  ],
)
def test_configs_that_mean_another_model_are_refused(name, changes, says):
  with pytest.raises(UserError, match=says):
    hf.load(architecture=tiny.ARCHITECTURES[name] | changes)


def test_an_encoder_decoder_needs_inputs(moved):
  with pytest.raises(UserError, match="needs `inputs`"):
    moved[0].model.apply({"params": moved[0].params}, np.zeros((1, 2), np.int32))
