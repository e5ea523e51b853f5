"""IA3 against peft's on the same numbers, merged and not; T5's targets, decay and refusals."""

import jax
import numpy as np
import pytest
from support import tiny

from jaxtune import peft, tree
from jaxtune.errors import UserError
from jaxtune.models import hf
from jaxtune.training import optim

ONE = np.array([[3, 14, 15, 9, 26]], np.int32)
LLAMA = "model.layers.{}.self_attn.{}", "model.layers.{}.mlp.down_proj"
GPT2 = "transformer.h.{}.attn.c_attn", "transformer.h.{}.mlp.c_proj"


def theirs(pretrained, vectors, folder):
  """Returns peft's model with the same vectors; GPT-2's queries, which ours leave, get ones."""
  import torch
  from peft import IA3Config, get_peft_model
  from transformers import AutoModelForCausalLM

  hf.save(pretrained, pretrained.params, folder)
  base = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
  targets, feedforward = (
    (["c_attn", "mlp.c_proj"], ["mlp.c_proj"])
    if pretrained.family == "gpt2"
    else (["k_proj", "v_proj", "down_proj"], ["down_proj"])
  )
  config = IA3Config(target_modules=targets, feedforward_modules=feedforward)
  model = get_peft_model(base, config).eval()
  made = model.peft_config["default"]
  assert isinstance(made, IA3Config) and made.fan_in_fan_out == (pretrained.family == "gpt2")
  k, v, ff = (vectors[f"trunk/layers/{path}"] for path in (
    "attn/k_proj/ia3/l", "attn/v_proj/ia3/l", "mlp/down_proj/ia3/l_in"))  # fmt: skip
  numbers = {}
  for i in range(len(k)):
    if pretrained.family == "gpt2":
      numbers[GPT2[0].format(i)] = np.concatenate([np.ones_like(k[i]), k[i], v[i]])
      numbers[GPT2[1].format(i)] = ff[i]
    else:
      numbers |= {LLAMA[0].format(i, f"{n}_proj"): x[i] for n, x in (("k", k), ("v", v))}
      numbers[LLAMA[1].format(i)] = ff[i]
  scales = {n: p for n, p in model.named_parameters() if "ia3_l" in n}
  assert len(scales) == len(numbers)
  for name, parameter in scales.items():
    site = name.removeprefix("base_model.model.").removesuffix(".ia3_l.default")
    parameter.data = torch.tensor(np.asarray(numbers[site])).reshape(parameter.shape)
  return model


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_equals_peft(name, request, tmp_path):
  """The logits, and the merged weights and biases."""
  pretrained = request.getfixturevalue(name)
  laid = methods, tuned, hyper, base = tiny.lay(pretrained, {"name": "ia3"}, noise=0.3)
  model = theirs(pretrained, tree.flatten(tuned["peft"]), tmp_path / "base")
  made = np.asarray(tiny.forward(pretrained, laid, ONE))
  np.testing.assert_allclose(made, tiny.torch_logits(model, ONE), atol=1e-5, rtol=0)
  hf.save(pretrained, peft.merge(peft.Adapted(methods, tuned, hyper, base)), tmp_path / "merged")
  ours = hf.load(str(tmp_path / "merged"))
  model.merge_and_unload().save_pretrained(tmp_path / "theirs")
  merged = hf.load(str(tmp_path / "theirs"))
  close = lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6, rtol=1e-6)
  jax.tree.map(close, ours.params, merged.params)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_starts_at_the_base_with_a_gradient_for_every_element(name, request):
  pretrained = request.getfixturevalue(name)
  laid = methods, tuned, hyper, base = tiny.lay(pretrained, {"name": "ia3"})
  plain = jax.jit(pretrained.model.apply)({"params": pretrained.params}, ONE)
  np.testing.assert_allclose(tiny.forward(pretrained, laid, ONE), plain, atol=1e-6, rtol=0)

  def loss(tuned):
    logits = peft.apply(pretrained.model, peft.Adapted(methods, tuned, hyper, base), ONE)
    return -jax.nn.log_softmax(logits)[0, :-1, :2].sum()

  for path, leaf in tree.flatten(jax.jit(jax.grad(loss))(tuned)).items():
    assert np.mean(np.abs(leaf) > 1e-8) > 0.99, path


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_encoder_decoders_scale_cross_attention_too(name):
  trained = tiny.lay(tiny.make(name), {"name": "ia3"})[1]["peft"]
  places = {path.rsplit("/ia3/", 1)[0] for path in tree.flatten(trained)}
  blocks = ("encoder/layers/attn", "decoder/layers/attn", "decoder/layers/cross")
  expected = {f"{block}/{p}_proj" for block in blocks for p in "kv"}
  assert places == expected | {f"{part}/layers/mlp/down_proj" for part in ("encoder", "decoder")}


def test_weight_decay_leaves_the_ones(llama):
  tuned = tiny.lay(llama, {"name": "ia3"})[1]
  rule = optim.make(name="sgd", weight_decay=0.5, learning_rate=1.0, schedule="constant")
  zeros = jax.tree.map(np.zeros_like, tuned)
  changes, _ = rule.update(zeros, rule.init(tuned), tuned)
  assert not any(np.any(x) for x in jax.tree.leaves(changes))


def test_small_steps_count_in_bfloat16(llama):
  """1.0035 is one in bfloat16; the products are made in fp32, as PEFT's are."""
  narrow = tiny.make("llama", dtype="bfloat16")
  methods, tuned, hyper, base = tiny.lay(narrow, {"name": "ia3"})
  before = np.asarray(tiny.forward(narrow, (methods, tuned, hyper, base), ONE))
  tuned = jax.tree.map(lambda x: x * 1.0035, tuned)
  after = np.asarray(tiny.forward(narrow, (methods, tuned, hyper, base), ONE))
  assert (before != after).any()


def test_one_kind_of_vector_alone(llama):
  names = lambda **options: {
    path.rsplit("/", 1)[1]
    for path in tree.flatten(tiny.lay(llama, {"name": "ia3"} | options)[1]["peft"])
  }
  assert names(targets=()) == {"l_in"} and names(feedforward=()) == {"l"}


@pytest.mark.parametrize(
  "options, words",
  [
    ({"targets": ["k_porj"]}, ("k_porj", "k_proj")),
    ({"feedforward": ["down_porj"]}, ("down_porj", "down_proj")),
    ({"targets": (), "feedforward": ()}, ("targets", "feedforward")),
    ({"targets": ["down_proj"]}, ("mlp/down_proj", "targets", "feedforward")),
    ({"feedforward": "down_proj"}, ("down_proj", "list")),
  ],
)
def test_refused(llama, options, words):
  with pytest.raises(UserError) as caught:
    tiny.lay(llama, {"name": "ia3"} | options)
  assert all(word in str(caught.value) for word in words), caught.value
