"""Prompts equal PEFT's in PyTorch, wherever a row's padding is, alone and in a group of lengths."""

from functools import cache
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import peft as theirs_
import pytest
import torch
import transformers
from support import tiny

from jaxtune import peft, tree
from jaxtune.errors import UserError
from jaxtune.evaluation import generate, texts
from jaxtune.models import hf, layers
from jaxtune.models.context import row_context
from jaxtune.peft.methods import prompt

P = 3
SECTIONS = {
  "prompt": {"name": "prompt", "length": P},
  "mlp": {"name": "p_tuning", "length": P, "hidden": 7},
  "lstm": {"name": "p_tuning", "length": P, "hidden": 7, "encoder": "lstm"},
}
make = cache(tiny.make)
INPUTS = (
  *tiny.batch(length=6, side="right"),
  *tiny.batch(length=7, seed=1, side="right"),
)


def prompt_of(laid):
  """The reparametrised prompt (P, D) of a method laid over a model."""
  methods, tuned, *_ = laid
  (prompt,) = jax.tree.leaves(peft.reparametrise(methods, tuned["peft"]))
  return np.asarray(prompt)


def program(pretrained, methods, base, *names):
  """Logits as a function of (tuned, hyper, *inputs), the further ones by name."""

  def run(tuned, hyper, tokens, mask, *others):
    more = dict(zip(names, others, strict=True))
    return peft.apply(
      pretrained.model, peft.Adapted(methods, tuned, hyper, base), tokens, mask, **more
    )

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
    weight = model.get_parameter("prompt_encoder.default.embedding.weight")
    weight.copy_(torch.tensor(prompt))
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
    made |= {f"w{i}": numpy(layer.weight).T, f"bias{i}": numpy(layer.bias)}
  for i in range(2 if kind == "lstm" else 0):
    both = lambda name, i=i: jnp.stack(
      [numpy(getattr(theirs.lstm_head, f"{name}_l{i}{way}")) for way in ("", "_reverse")]
    )
    made[f"lstm{i}_input"] = both("weight_ih").swapaxes(1, 2)
    made[f"lstm{i}_state"] = both("weight_hh").swapaxes(1, 2)
    made[f"lstm{i}_bias"] = both("bias_ih") + both("bias_hh")
  methods, tuned, *_ = tiny.lay(llama, SECTIONS[kind])
  arrays = peft.arrays_of(methods[0], tuned["peft"])["trunk"]
  assert jax.tree.map(jnp.shape, arrays) == jax.tree.map(jnp.shape, made)
  tuned = {"params": {}, "peft": tree.unflatten(peft.by_path(methods[0], {"trunk": made}))}
  expected = theirs(torch.arange(P)[None])[0].detach().numpy()
  np.testing.assert_allclose(prompt_of((methods, tuned)), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("section", ["mlp", "lstm"])
def test_every_weight_of_the_network_has_a_gradient(llama, section):
  """Of most numbers: a relu passes half of its gradients on."""
  methods, tuned, *_ = tiny.lay(llama, SECTIONS[section], noise=0.05)
  pick = jnp.asarray(np.random.default_rng(0).standard_normal((P, 32)), jnp.float32)
  loss = lambda deltas: sum(
    jnp.sum(x * pick) for x in jax.tree.leaves(peft.reparametrise(methods, deltas))
  )
  for path, gradient in tree.flatten(jax.jit(jax.grad(loss))(tuned["peft"])).items():
    assert np.mean(np.asarray(gradient) == 0) < 0.7, path


@pytest.mark.full
def test_grouped_lengths_equal_solo_ones():
  """Loss and gradient of a shorter prompt, before a window and through rematerialised blocks."""
  pretrained = make("mistral", remat=True)
  laid = [tiny.lay(pretrained, SECTIONS["prompt"] | {"length": n}, noise=0.3) for n in (1, 4)]
  methods, short, fixed, base = laid[0]
  assert methods[0].groupable[0] == "length"
  run, (tokens, mask) = program(pretrained, methods, base), INPUTS[:2]
  pick = jnp.asarray(np.random.default_rng(0).standard_normal(tiny.VOCABULARY), jnp.float32)

  def loss(tuned, hyper):
    return jnp.sum(jnp.where(mask, jnp.tanh(run(tuned, hyper, tokens, mask) @ pick), 0))

  tuned, hyper = (tree.stack([one[i] for one in laid]) for i in (1, 2))
  losses, together = jax.jit(jax.vmap(jax.value_and_grad(loss)))(tuned, hyper)
  value, alone = jax.jit(jax.value_and_grad(loss))(short, fixed)
  np.testing.assert_allclose(losses[0], value, rtol=1e-5)
  (mine,), (alone,) = jax.tree.leaves(together), jax.tree.leaves(alone)
  np.testing.assert_allclose(mine[0, :1], alone, atol=5e-5, rtol=1e-4)
  np.testing.assert_array_equal(mine[0, 1:], np.zeros_like(mine[0, 1:]))
  assert np.all(mine[1] != 0)


@pytest.mark.full
@pytest.mark.parametrize("family", ["mistral", "t5"])
def test_grouped_decoding_equals_teacher_forcing(family):
  """Texts padded on the left, of prompts the shorter one too; against full passes, and alone."""
  pretrained, new = make(family), 5
  model, sections = pretrained.model, [SECTIONS["prompt"] | {"length": n} for n in (1, 4)]
  laid = [tiny.lay(pretrained, section, noise=0.5) for section in sections]
  methods, short, fixed, base = laid[0]
  tuned, hyper = (tree.stack([one[i] for one in laid]) for i in (1, 2))
  prompts, mask = texts.pad_left([[5, 9, 2], [7], [11, 3, 8, 1, 30]], 0, 5)

  @jax.jit
  def scored(tuned, hyper, made):
    if family == "t5":
      tokens = jnp.concatenate([jnp.zeros((len(made), 1), jnp.int32), made], 1)
      inputs = {"inputs": prompts, "inputs_mask": mask}
    else:
      tokens = jnp.concatenate([prompts, made], 1)
      inputs = {"mask": jnp.pad(mask, ((0, 0), (0, new)), constant_values=True)}
    return peft.apply(model, peft.Adapted(methods, tuned, hyper, base), tokens, **inputs)[
      :, -new - 1 : -1
    ]

  @jax.jit
  @jax.vmap
  def both(tuned, hyper):
    made = generate.generate(
      model,
      peft.Adapted(methods, tuned, hyper, base),
      prompts,
      mask,
      max_new_tokens=new,
      stop_tokens=(-1,),
    )
    return made, scored(tuned, hyper, made)

  made, logits = both(tuned, hyper)
  np.testing.assert_array_equal(made, logits.argmax(-1))
  np.testing.assert_allclose(scored(short, fixed, made[0]), logits[0], atol=2e-5, rtol=0)
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
  half = tiny.make("llama", dtype="bfloat16")
  rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16), base)
  made = compiled(half, methods, rounded)(tuned, hyper, *INPUTS[:2])
  whole = compiled(llama, methods, base)(tuned, hyper, *INPUTS[:2])
  assert np.abs(made - whole)[INPUTS[1]].max() < 0.1 * np.abs(whole).max()


def test_gradients_of_what_many_rows_read_are_summed_in_fp32():
  """Of an embedding and of a prompt: in bf16, ones add up to 256 and no further."""
  keys = jnp.ones((600, 1), bool)

  def looked_up(table_VD):
    embed = layers.Embed(1, 2, jnp.bfloat16)
    return embed.apply({"params": {"embedding": table_VD}}, jnp.zeros(600, int))

  def prompted(prompt_PD):
    arrays = {"prompt": prompt_PD, "mask": jnp.ones(1, bool)}
    trunk = SimpleNamespace(name="encoder", parent=None)
    call = peft.Call(trunk, arrays, lambda x_BTD, _: (x_BTD, None))
    states_BTD = jnp.zeros((600, 1, 2), jnp.bfloat16)
    return prompt.intercept(call, states_BTD, row_context(keys, causal=False))[0]

  for read in (looked_up, prompted):
    gradient = jax.grad(lambda x, read=read: read(x).astype(jnp.float32).sum())
    assert gradient(jnp.ones((1, 2))).tolist() == [[600, 600]], read


@pytest.mark.full
@pytest.mark.parametrize("family", ["llama", "bart"])
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
    return prompt_of(peft.init(key, methods, sites, pretrained.params, ids.get))

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
    peft.merge(peft.Adapted(methods, tuned, hyper, base))


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
  with pytest.raises(UserError, match="expected a text of one token or more"):
    peft.init(jax.random.key(0), methods, sites, llama.params, lambda text: [])
