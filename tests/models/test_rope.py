"""Rotary positions of every kind are those of transformers, whatever decides on the length."""

import copy
import importlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import tiny
from transformers import AutoConfig, AutoModelForCausalLM

from jaxtune import peft
from jaxtune.errors import UserError
from jaxtune.models import hf, rope

ORIGINAL = 16  # the length of the pretraining; texts are shorter and longer
PAIRS = 4  # of rotated features in the Llama below
SHORT, LONG = [1.0, 1.1, 1.5, 2.0], [1.2, 2.0, 3.5, 8.0]
YARN = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=ORIGINAL)
LONGROPE = dict(
  rope_type="longrope", short_factor=SHORT, long_factor=LONG,
  original_max_position_embeddings=ORIGINAL,
)  # fmt: skip
DYNAMIC = dict(rope_type="dynamic", factor=3.0)
SCALED = {
  "yarn": YARN,
  "yarn, another base": YARN | dict(rope_theta=500.0, beta_fast=4, beta_slow=0.5),
  "yarn, not rounded": YARN | dict(truncate=False, attention_factor=1.3),
  "yarn, as DeepSeek": YARN | dict(mscale=0.7, mscale_all_dim=1.2),
  "yarn, factor from lengths": YARN | dict(factor=None),
  "yarn, a factor below 1": YARN | dict(factor=0.5),
  "yarn, all frequencies fast": YARN | dict(original_max_position_embeddings=2**20),
  "longrope": LONGROPE,
  "longrope, own numbers": LONGROPE | dict(factor=32.0, rope_theta=3e5),
  "longrope, attention factor": LONGROPE | dict(attention_factor=1.4),
  "longrope, no longer": LONGROPE | dict(factor=0.5),
  "dynamic": DYNAMIC,
  "dynamic, another base": DYNAMIC | dict(rope_theta=500.0),
}
LLAMA = tiny.ARCHITECTURES["llama"]


def llama(numbers, **changes):
  positions = ORIGINAL if numbers["rope_type"] == "dynamic" else 64
  return LLAMA | dict(max_position_embeddings=positions, rope_parameters=numbers) | changes


def read(fields):
  """Returns what a config.json makes; theirs is made of a copy, which transformers writes into."""
  return hf.family_module(fields["model_type"]).config(fields)


def their_config(fields):
  return AutoConfig.for_model(**copy.deepcopy(fields))


def check_tables(ours, theirs_at, size, lengths=(ORIGINAL - 3, ORIGINAL, ORIGINAL + 1, 61)):
  """Compares cos and sin at every position of texts of several lengths."""
  positions = np.arange(max(lengths))[None]  # of one shape, as jax compiles for each
  for length in lengths:
    made = rope.rope_tables(ours, size, positions, np.full_like(positions, length))
    for ours_BT1H, theirs in zip(made, theirs_at(length), strict=True):
      half = theirs.shape[-1] // 2
      np.testing.assert_allclose(
        ours_BT1H[0, :length, 0], theirs[0, :, :half], atol=2e-5, err_msg=f"length {length}"
      )


def their_tables(config, module, **kind):
  """Returns transformers' cos and sin, of a fresh module each time: some remember lengths."""
  import torch

  places = importlib.import_module(f"transformers.models.{module}.modeling_{module}")
  name = next(n for n in vars(places) if n.endswith("RotaryEmbedding") and "Vision" not in n)

  def at(length):
    made = getattr(places, name)(config)(torch.zeros(1), torch.arange(length)[None], **kind)
    return [x.numpy() for x in made]

  return at


@pytest.mark.parametrize("name", SCALED)
def test_frequencies_equal_transformers(name):
  """As transformers 5 writes them, and as 4 did."""
  fields = llama(SCALED[name])
  config = their_config(fields)
  written = json.loads(config.to_json_string())
  older = {k: v for k, v in SCALED[name].items() if k not in ("rope_type", "rope_theta")}
  older = {k: v for k, v in fields.items() if k != "rope_parameters"} | dict(
    rope_scaling={"type": SCALED[name]["rope_type"], **older},
    rope_theta=SCALED[name].get("rope_theta", 10_000.0),
  )
  ours = [read(x).rope for x in (written, fields, older)]
  assert ours[0] == ours[1] == ours[2]
  check_tables(ours[0], their_tables(config, "llama"), 8)


FAMILIES = {
  "mistral": YARN, "qwen2": YARN, "qwen3": DYNAMIC, "gemma": LONGROPE, "gemma2": YARN,
  "olmo2": DYNAMIC, "phi3": LONGROPE, "gpt_neox": DYNAMIC,
}  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_reads_them(name):
  changes = dict(max_position_embeddings=ORIGINAL if FAMILIES[name] is DYNAMIC else 64)
  size = dict(qwen3=12, gemma=16, gemma2=16).get(name, 8)
  pairs = dict(phi3=2).get(name, size // 2)  # of which half are rotated
  numbers = FAMILIES[name]
  if numbers is LONGROPE:
    numbers = LONGROPE | dict(short_factor=(SHORT * 4)[:pairs], long_factor=(LONG * 4)[:pairs])
  if name == "phi3":
    changes |= dict(original_max_position_embeddings=ORIGINAL)
  fields = tiny.DECODERS[name] | changes | dict(rope_parameters=numbers)
  config = their_config(fields)
  for written in (fields, json.loads(config.to_json_string())):
    check_tables(read(written).rope, their_tables(config, name), size)


@pytest.mark.parametrize("name", ["gemma3_text", "modernbert"])
def test_ropes_of_layer_types(name):
  both = {"full_attention": YARN, "sliding_attention": LONGROPE | dict(rope_theta=300.0)}
  pairs = 8 if name == "gemma3_text" else 4
  both["sliding_attention"] |= dict(
    short_factor=(SHORT * 2)[:pairs], long_factor=(LONG * 2)[:pairs]
  )
  fields = (tiny.DECODERS | tiny.ENCODERS)[name] | dict(rope_parameters=both)
  made = read(fields)
  config = their_config(fields)
  module = "gemma3" if name == "gemma3_text" else name
  for kind, ours in (("full_attention", made.rope), ("sliding_attention", made.local_rope)):
    check_tables(ours, their_tables(config, module, layer_type=kind), 2 * pairs)


@pytest.mark.parametrize("kind", ["yarn", "longrope"])
def test_phi3_of_128k_tokens(kind):
  """As the published files have it: the older names, the pretraining's length outside."""
  fields = tiny.DECODERS["phi3"] | dict(
    max_position_embeddings=128, original_max_position_embeddings=ORIGINAL, rope_theta=10_000.0,
    rope_scaling=dict(type=kind, short_factor=SHORT[:2], long_factor=LONG[:2]),
  )  # fmt: skip
  made = read(fields)
  assert made.positions == 128
  check_tables(made.rope, their_tables(their_config(fields), "phi3"), 8)


@pytest.mark.parametrize("numbers, positions", [
  (DYNAMIC, 3 * ORIGINAL),
  (dict(rope_type="linear", factor=4.0), 4 * 64),
  (YARN, 64),
  (YARN | dict(factor=8.0), 128),
  (LONGROPE | dict(factor=32.0), 64),
])  # fmt: skip
def test_how_far_they_reach(numbers, positions):
  """Linear and YaRN's files may state the length of the pretraining alone, dynamic ones do."""
  assert read(llama(numbers)).positions == positions


def test_gemma3_states_how_far_it_reaches():
  assert read(tiny.DECODERS["gemma3_text"]).positions == 64


@pytest.mark.parametrize("name, changes, words", [
  ("llama", dict(rope_parameters=YARN | dict(rope_type="yarm")), ("yarm", "yarn")),
  ("llama", dict(rope_parameters={"rope_type": "yarn"}), ("lack", "factor")),
  ("llama", dict(rope_parameters=DYNAMIC | dict(factor=None)), ("lack", "factor")),
  ("llama", dict(rope_parameters=DYNAMIC, head_dim=2), ("4 rotated",)),
  ("llama", dict(rope_parameters=LONGROPE | dict(long_factor=[1.0])), ("long_factor", "4")),
  ("llama", dict(rope_parameters=LONGROPE | dict(short_factor=[0.0] * 4)), ("short_factor[0]",)),
  ("llama", dict(rope_parameters={"full_attention": YARN}), ("layer",)),
  ("llama", dict(rope_parameters=tiny.LLAMA3_ROPE | dict(high_freq_factor=1.0)), ("high",)),
  ("llama", dict(rope_theta=0), ("rope_theta", "above 1")),
  ("phi3", dict(rope_parameters=DYNAMIC), ("dynamic", "longrope")),
  ("modernbert", dict(rope_parameters=YARN), ("rope_type", "full_attention")),
])  # fmt: skip
def test_refused(name, changes, words):
  architecture = (tiny.ARCHITECTURES | tiny.DECODERS | tiny.ENCODERS)[name] | changes
  with pytest.raises(UserError) as caught:
    hf.language(architecture=architecture)
  assert all(word in str(caught.value) for word in words), caught.value


CONFIGS = {
  "llama, yarn": llama(YARN),
  "gpt_neox, dynamic": tiny.DECODERS["gpt_neox"]
  | dict(rope_scaling={"type": "dynamic", "factor": 3.0}, max_position_embeddings=ORIGINAL),
  "phi3, longrope": tiny.DECODERS["phi3"]
  | dict(
    rope_scaling={"type": "longrope", "short_factor": SHORT[:2], "long_factor": LONG[:2]},
    original_max_position_embeddings=ORIGINAL,
  ),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_equal_pytorch(name, tmp_path):
  """On this side of the pretraining's length and beyond; and in a folder that we have written."""
  tiny.torch_twin(their_config(CONFIGS[name]), tmp_path / "theirs")
  ours = hf.load(str(tmp_path / "theirs"))
  older = ours._replace(hf_config=CONFIGS[name])
  hf.save(older, ours.params, tmp_path / "ours")
  run = jax.jit(ours.model.apply)
  load = lambda folder: AutoModelForCausalLM.from_pretrained(
    tmp_path / folder, attn_implementation="eager"
  )
  models = [load(folder).eval() for folder in ("theirs", "ours")]
  for length in (ORIGINAL - 3, ORIGINAL + 9):
    tokens, _ = tiny.batch(length=length)
    made = run({"params": ours.params}, tokens)
    for model in models:
      np.testing.assert_allclose(made, tiny.torch_logits(model, tokens), atol=1e-4, rtol=0)


@pytest.fixture(scope="module", params=["longrope", "dynamic"])
def model(request):
  return tiny.random(llama(SCALED[request.param], num_hidden_layers=2))


METHODS = {
  "prefix": {"name": "prefix", "length": 3},
  "prompt": {"name": "prompt", "length": 3},
}


def test_a_row_goes_by_its_own_length(model):
  """Padded on either side, or packed with others, a text has the logits that it has alone."""
  run = jax.jit(lambda *args: model.model.apply({"params": model.params}, *args))
  tokens, _ = tiny.batch(rows=1, length=24)
  short, long = tokens[:, :5], tokens[:, 5:]
  alone = run(short), run(long)
  for side in ("left", "right"):
    pad = [(0, 14), (0, 0)] if side == "right" else [(14, 0), (0, 0)]
    rows = np.concatenate([np.pad(x, [(0, 0), p]) for x, p in zip((short, long), pad, strict=True)])
    mask = np.concatenate([np.pad(np.ones_like(x, bool), [(0, 0), p])
                           for x, p in zip((short, long), pad, strict=True)])  # fmt: skip
    made = np.asarray(run(rows, mask))
    for row in range(2):
      np.testing.assert_allclose(made[row][mask[row]], alone[row][0], atol=2e-5, rtol=0)
  segments = np.repeat([[1, 2]], [5, 19], axis=1)
  packed = run(tokens, np.ones_like(tokens, bool), segments)
  np.testing.assert_allclose(packed, jnp.concatenate(alone, 1), atol=2e-5, rtol=0)


@pytest.mark.parametrize(
  ("model", "method"), [("longrope", "prefix"), ("dynamic", "prompt")], indirect=["model"]
)
def test_decoding_equals_teacher_forcing(model, method):
  """At the length of the prompt and of all that may follow; what a method puts before it counts."""
  laid = tiny.lay(model, METHODS[method], noise=0.3)
  tokens, mask = tiny.batch(rows=2, length=14, side="left")
  expected = tiny.forward(model, laid, tokens, mask)  # 14 and 12, and three before them
  call = lambda method: jax.jit(lambda *args: peft.apply(model.model, laid, *args, method=method))
  begin = call(lambda model, *prompts: model.prefill(*prompts, 4))
  made, cache = begin(tokens[:, :10], jnp.asarray(mask[:, :10]))
  decode = call(model.model.decode)
  for i in range(10, 14):
    np.testing.assert_allclose(made, expected[:, i - 1], atol=2e-5, rtol=0)
    made, cache = decode(tokens[:, i], cache)
  np.testing.assert_allclose(made, expected[:, 13], atol=2e-5, rtol=0)


def test_whole_heads_turn_as_halves_do():
  """What a TPU computes, and other devices: the same bits, and the same gradients."""
  x = jax.random.normal(jax.random.key(0), (2, 7, 3, 16))
  tables = rope.rope_tables(rope.Rope(), 16, jnp.arange(14).reshape(2, 7))
  measure = lambda turn: jax.value_and_grad(lambda x: jnp.sin(turn(x, *tables)).sum())(x)
  jax.tree.map(
    np.testing.assert_array_equal, measure(rope._rotate_heads), measure(rope._rotate_halves)
  )
