"""Prompts equal PEFT's in PyTorch, wherever a row's padding is, alone and in a group of lengths."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import peft as theirs_
import pytest
import tiny
import torch
import transformers

from jaxtune import generate, peft, tree
from jaxtune.errors import UserError
from jaxtune.models import hf

P = 3
SECTIONS = {
  "prompt": {"name": "prompt", "length": P},
  "mlp": {"name": "p_tuning", "length": P, "hidden": 7},
  "lstm": {"name": "p_tuning", "length": P, "hidden": 7, "encoder": "lstm"},
}
make = cache(tiny.make)
INPUTS = *tiny.batch(length=6, side="right"), *tiny.batch(length=7, seed=1, side="right")


def prompt_of(laid):
  """The realised prompt (P, D) of a method laid over a model."""
  methods, tuned, *_ = laid
  (prompt,) = jax.tree.leaves(peft.realise(methods, tuned["peft"]))
  return np.asarray(prompt)


def program(pretrained, methods, base, *names):
  """Logits as a function of (tuned, hyper, *inputs), the further ones by name."""

  def run(tuned, hyper, tokens, mask, *others):
    more = dict(zip(names, others, strict=True))
    return peft.apply(pretrained.model, methods, base, tuned, hyper, tokens, mask, **more)

  return run


def compiled(*args):
  return jax.jit(program(*args))


def in_peft(pretrained, folder, auto, kind, prompt):
  """PEFT's model around a saved one of ours, with a prompt of its own."""
  hf.save(pretrained, pretrained.params, folder)
  base = auto.from_pretrained(folder, attn_implementation="eager").eval()
  options = {"num_transformer_submodules": 1, "num_virtual_tokens": len(prompt)}
  model = theirs_.get_peft_model(base, theirs_.PromptTuningConfig(task_type=kind, **options))
  with torch.no_grad():
    model.prompt_encoder["default"].embedding.weight.copy_(torch.tensor(prompt))
  return model.eval()


@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral", "gemma"])
def test_decoders_equal_peft(family, tmp_path):
  """Padded on the right, so that PyTorch has the same positions and windows."""
  pretrained = make(family)
  methods, tuned, hyper, base = laid = tiny.lay(pretrained, SECTIONS["prompt"], noise=0.5)
  theirs = in_peft(
    pretrained, tmp_path, transformers.AutoModelForCausalLM, "CAUSAL_LM", prompt_of(laid)
  )
  tokens, mask = tiny.batch(side="right")
  expected = tiny.torch_logits(theirs, tokens, mask)[:, P:]
  run = compiled(pretrained, methods, base)
  made = run(tuned, hyper, tokens, mask)
  np.testing.assert_allclose(made[mask], expected[mask], atol=2e-5, rtol=0)
  turn = lambda x: np.stack(
    [np.roll(row, (~real).sum()) for row, real in zip(x, mask, strict=True)]
  )
  rolled = turn(tokens), turn(mask)
  left = run(tuned, hyper, *rolled)
  np.testing.assert_allclose(left[rolled[1]], expected[mask], atol=2e-5, rtol=0)


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_encoder_decoders_equal_peft(family, tmp_path):
  pretrained = make(family)
  methods, tuned, hyper, base = laid = tiny.lay(pretrained, SECTIONS["prompt"], noise=0.5)
  theirs = in_peft(
    pretrained, tmp_path, transformers.AutoModelForSeq2SeqLM, "SEQ_2_SEQ_LM", prompt_of(laid)
  )
  tokens, mask, inputs, inputs_mask = (torch.tensor(np.asarray(x)).long() for x in INPUTS)
  with torch.no_grad():
    expected = theirs(
      input_ids=inputs, attention_mask=inputs_mask, decoder_input_ids=tokens,
      decoder_attention_mask=mask, use_cache=False,
    ).logits.numpy()  # fmt: skip
  made = compiled(pretrained, methods, base, "inputs", "inputs_mask")(tuned, hyper, *INPUTS)
  np.testing.assert_allclose(made[INPUTS[1]], expected[INPUTS[1]], atol=2e-5, rtol=0)


@pytest.mark.parametrize("family", ["bert", "roberta", "modernbert"])
def test_encoders_equal_peft(family, tmp_path):
  """BERT's second text of a pair has its own token type; the prompt has the first one's."""
  pretrained = make(family, head="tokens", labels=3)
  methods, tuned, hyper, base = laid = tiny.lay(pretrained, SECTIONS["prompt"], noise=0.5)
  auto = transformers.AutoModelForTokenClassification
  theirs = in_peft(pretrained, tmp_path, auto, "TOKEN_CLS", prompt_of(laid))
  tokens, mask = tiny.batch(side="right")
  tokens = np.where(mask, np.maximum(tokens, 5), 1 if family == "roberta" else 0)
  types = np.broadcast_to(np.arange(tokens.shape[1]) > 4, tokens.shape).astype(np.int32)
  extra = {"token_type_ids": torch.tensor(types).long()} if family == "bert" else {}
  expected = tiny.torch_logits(theirs, tokens, mask, **extra)[:, P:]
  run = compiled(pretrained, methods, base, *["types"] * bool(extra))
  made = run(tuned, hyper, tokens, mask, *[types] * bool(extra))
  np.testing.assert_allclose(made[mask], expected[mask], atol=2e-5, rtol=0)


@pytest.mark.parametrize("kind", ["mlp", "lstm"])
def test_p_tuning_equals_peft(llama, kind):
  """PyTorch's weights in our arrays: its LSTM has two biases, which are added."""
  theirs = theirs_.PromptEncoder(theirs_.PromptEncoderConfig(
    num_virtual_tokens=P, token_dim=32, num_transformer_submodules=1, encoder_hidden_size=7,
    encoder_reparameterization_type=kind.upper(), encoder_dropout=0.0,
  ))  # fmt: skip
  numpy = lambda x: jnp.asarray(x.detach().numpy())
  made = {"embedding": numpy(theirs.embedding.weight)}
  linear = [layer for layer in theirs.mlp_head if hasattr(layer, "weight")]
  for i, layer in enumerate(linear, 1):
    made |= {f"w{i}": numpy(layer.weight).T, f"b{i}": numpy(layer.bias)}
  for i in range(2 if kind == "lstm" else 0):
    both = lambda name, i=i: jnp.stack(
      [numpy(getattr(theirs.lstm_head, f"{name}_l{i}{way}")) for way in ("", "_reverse")]
    )
    made[f"lstm{i}_input"] = both("weight_ih").swapaxes(1, 2)
    made[f"lstm{i}_state"] = both("weight_hh").swapaxes(1, 2)
    made[f"lstm{i}_bias"] = both("bias_ih") + both("bias_hh")
  methods, tuned, *_ = tiny.lay(llama, SECTIONS[kind])
  arrays = peft.own(methods[0], tuned["peft"])["trunk"]
  assert jax.tree.map(jnp.shape, arrays) == jax.tree.map(jnp.shape, made)
  tuned = {"params": {}, "peft": tree.unflatten(peft.placed(methods[0], {"trunk": made}))}
  expected = theirs(torch.arange(P)[None])[0].detach().numpy()
  np.testing.assert_allclose(prompt_of((methods, tuned)), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("section", ["prompt", "lstm"])
def test_every_trained_number_has_a_gradient(section):
  """Also through rematerialised blocks; the MLP's in the test below."""
  pretrained = make("llama", remat=True)
  methods, tuned, hyper, base = tiny.lay(pretrained, SECTIONS[section], noise=0.05)
  gradient = jax.jit(jax.grad(loss_of(pretrained, methods, base, INPUTS[:2])))(tuned, hyper)
  live(gradient, f"peft/trunk/{methods[0].name}/")


def loss_of(pretrained, methods, base, inputs):
  """A loss of (tuned, hyper) that all of a prompt matters to."""
  names = ("inputs", "inputs_mask")[: len(inputs) - 2]
  run = program(pretrained, methods, base, *names)
  pick = jnp.asarray(np.random.default_rng(0).standard_normal(tiny.VOCABULARY), jnp.float32)
  real = INPUTS[1]
  return lambda *pair: jnp.sum(jnp.where(real, jnp.tanh(run(*pair, *inputs) @ pick), 0))


def live(gradient, where):
  """Says that every array has a gradient, and every number but behind a relu."""
  for path, leaf in tree.flatten(gradient).items():
    assert path.startswith(where)
    dead = np.mean(np.asarray(leaf) == 0)
    assert dead == 0 if path.endswith(("prompt", "embedding")) else dead < 0.7, (path, dead)


@pytest.mark.parametrize(("family", "section"), [("mistral", "prompt"), ("t5", "mlp")])
def test_grouped_lengths_equal_solo_ones(family, section):
  """Loss and gradient of a shorter prompt; windows and relative biases count slots."""
  pretrained, inputs = make(family), INPUTS if family == "t5" else INPUTS[:2]
  laid = [tiny.lay(pretrained, SECTIONS[section] | {"length": n}, noise=0.3) for n in (1, 4)]
  methods, short, fixed, base = laid[0]
  assert methods[0].numbers[0] == "length"
  tuned, hyper = (tree.stack([one[i] for one in laid]) for i in (1, 2))
  gradients = jax.value_and_grad(loss_of(pretrained, methods, base, inputs))
  losses, together = jax.jit(jax.vmap(gradients))(tuned, hyper)
  loss, alone = jax.jit(gradients)(short, fixed)
  live(alone, "peft/encoder/" if family == "t5" else "peft/trunk/")
  np.testing.assert_allclose(losses[0], loss, rtol=1e-5)
  mine = jax.tree.map(lambda x: x[0], together)
  close = lambda a, b: np.testing.assert_allclose(a, b, atol=5e-5, rtol=1e-4)
  jax.tree.map(close, tree.crop(mine, alone), alone)
  name = "prompt" if section == "prompt" else "embedding"
  (padding,) = (x[1:] for path, x in tree.flatten(mine).items() if path.endswith(name))
  np.testing.assert_array_equal(padding, np.zeros_like(padding))


@pytest.mark.parametrize("family", ["mistral", "t5"])
def test_grouped_decoding_equals_teacher_forcing(family):
  """Prompts padded on the left, lengths of the trained one padded too; and against full passes."""
  pretrained, new = make(family), 5
  model, sections = pretrained.model, [SECTIONS["prompt"] | {"length": n} for n in (1, 4)]
  laid = [tiny.lay(pretrained, section, noise=0.5) for section in sections]
  methods, *_, base = laid[0]
  tuned, hyper = (tree.stack([one[i] for one in laid]) for i in (1, 2))
  texts, mask = generate.pad_left([[5, 9, 2], [7], [11, 3, 8, 1, 30]], 0, 5)

  @jax.jit
  @jax.vmap
  def both(tuned, hyper):
    made = generate.generate(
      model, methods, base, tuned, hyper, texts, mask, max_new_tokens=new, stop_tokens=(-1,)
    )
    if family == "t5":
      first = jnp.zeros((len(made), 1), jnp.int32)
      inputs, rest = {"inputs": texts, "inputs_mask": mask}, None
    else:
      first, inputs, rest = texts, {}, jnp.pad(mask, ((0, 0), (0, new)), constant_values=True)
    tokens = jnp.concatenate([first, made], 1)
    logits = peft.apply(model, methods, base, tuned, hyper, tokens, rest, **inputs)
    return made, logits[:, -new - 1 : -1].argmax(-1)

  made, forced = both(tuned, hyper)
  np.testing.assert_array_equal(made, forced)
  assert len({tuple(row) for row in made.reshape(-1, new).tolist()}) > 3


def test_packed_examples_see_the_prompt_as_alone(llama):
  methods, tuned, hyper, base = tiny.lay(llama, SECTIONS["prompt"], noise=0.5)
  tokens, _ = tiny.batch(1, 9)
  segments = np.array([[1] * 4 + [2] * 3 + [0] * 2], np.int32)
  packed = compiled(llama, methods, base, "segments")(tuned, hyper, tokens, segments > 0, segments)
  run = compiled(llama, methods, base)
  for start, end in ((0, 4), (4, 7)):
    row = np.zeros((1, 4), np.int32)
    row[0, : end - start] = tokens[0, start:end]
    alone = run(tuned, hyper, row, np.arange(4)[None] < end - start)
    np.testing.assert_allclose(
      packed[0, start:end], alone[0, : end - start], atol=2e-5, rtol=0
    )  # fmt: skip


def test_the_base_in_bf16_reads_the_prompt_in_bf16(llama):
  methods, tuned, hyper, base = tiny.lay(llama, SECTIONS["prompt"], noise=0.5)
  half = hf.load(architecture=tiny.ARCHITECTURES["llama"], dtype="bfloat16")
  rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16), base)
  made = compiled(half, methods, rounded)(tuned, hyper, *INPUTS[:2])
  whole = compiled(llama, methods, base)(tuned, hyper, *INPUTS[:2])
  assert np.abs(made - whole)[INPUTS[1]].max() < 0.1 * np.abs(whole).max()


@pytest.mark.parametrize("family", ["llama", "gemma", "bart"])
def test_starts_from_embeddings(family):
  """As the model reads them: where it scales embeddings, so is the prompt."""
  pretrained = make(family)
  sites, ids = peft.find_sites(pretrained.model), {"a b": [7, 3]}
  scale = pretrained.model.config.embed_scale
  assert (scale == 1) == (family == "llama")
  rows = np.asarray(pretrained.params["embed"]["embedding"]) * scale

  def start(seed=0, **options):
    methods = peft.build({"name": "prompt"} | options)
    key = jax.random.key(seed)
    return prompt_of((methods, *peft.init(key, methods, sites, pretrained.params, ids.get)))

  for length in (1, 2, 5):
    text = start(length=length, initialise="text", text="a b")
    np.testing.assert_allclose(text, rows[[7, 3, 7, 3, 7][:length]], rtol=1e-6)
  drawn, other = (start(seed, length=8, initialise="vocabulary") for seed in (0, 1))
  index = [int(np.abs(rows - row).sum(1).argmin()) for row in drawn]
  np.testing.assert_allclose(drawn, rows[index], rtol=1e-6)
  assert len(set(index)) > 3 and not np.allclose(drawn, other)
  uniform = start(length=8, init_scale=0.1)
  assert 0.08 < np.abs(uniform).max() < 0.1
  for start_as in ("vocabulary", "random"):
    few, many = (start(length=n, initialise=start_as) for n in (2, 5))
    np.testing.assert_array_equal(few, many[:2])


def test_positions_and_merging(llama):
  methods, tuned, hyper, base = tiny.lay(llama, SECTIONS["mlp"])
  assert methods[0].positions == P
  with pytest.raises(UserError, match="cannot be merged"):
    peft.merge(methods, base, tuned, hyper)


@pytest.mark.parametrize(
  ("section", "words"),
  [
    ({"name": "prompt", "length": 0}, ("length is 0",)),
    ({"name": "p_tuning", "length": 0}, ("length is 0",)),
    ({"name": "p_tuning", "hidden": 0}, ("hidden is 0",)),
    ({"name": "p_tuning", "layers": 0}, ("layers is 0",)),
    ({"name": "p_tuning", "encoder": "lsmt"}, ("lsmt", "lstm")),
    ({"name": "prompt", "initialise": "vocab"}, ("vocab", "vocabulary")),
    ({"name": "prompt", "initialise": "text"}, ("text", "None")),
    ({"name": "prompt", "text": "a b"}, ("initialise is 'random'", "a b")),
    ({"name": "prompt", "initialise": "text", "text": "a b"}, ("no tokenizer",)),
    ({"name": "stack", "prompt": {}, "p_tuning": {}}, ("two prompts", "prompt and p_tuning")),
  ],
)
def test_refused(llama, section, words):
  with pytest.raises(UserError) as caught:
    tiny.lay(llama, section)
  message = str(caught.value)
  assert all(word in message for word in words) and "\n" not in message, message


def test_a_text_without_tokens_is_refused(llama):
  methods = peft.build({"name": "prompt", "initialise": "text", "text": " "})
  sites = peft.find_sites(llama.model)
  with pytest.raises(UserError, match="has no tokens"):
    peft.init(jax.random.key(0), methods, sites, llama.params, lambda text: [])
