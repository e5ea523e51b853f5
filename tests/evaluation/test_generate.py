"""Cached decoding equals teacher forcing, sampling follows the distribution, rows stay apart."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from scipy import stats
from support import tiny
from support.shapes import checked
from transformers import BartConfig, T5Config

from jaxtune import peft, tree
from jaxtune.errors import UserError
from jaxtune.evaluation import decoding, generate, sampling, texts
from jaxtune.models import hf

PROMPTS = [[5, 9, 2], [7], [11, 3, 8, 1, 30], [4, 4]]
LENGTH, NEW = 5, 6
METHODS = {
  "lora": {"name": "lora", "rank": 2},
  "prefix": {"name": "prefix", "length": 3},
  "unshifted": {"name": "prefix", "length": 3, "shift": False},
  "stack": {"name": "stack", "lora": {"rank": 2}, "prefix": {"length": 2}, "adapter": {"width": 3}},
  "prompts": {"name": "stack", "prompt": {"length": 2}, "prefix": {"length": 3}},
}


@pytest.fixture(autouse=True, scope="module")
def shapes():
  """Checks the shapes that the parts of generation state, in every test."""
  with pytest.MonkeyPatch.context() as patch:
    for module, name in ((sampling, "draw"), (sampling, "restrict"), (generate, "_advance")):
      patch.setattr(module, name, checked(getattr(module, name)))
    yield


def compiled(pretrained, methods, stops=(0,), **options):
  def go(base, tuned, hyper, tokens, mask, key, count):
    return checked(generate.generate)(
      pretrained.model, peft.Adapted(methods, tuned, hyper, base), tokens, mask, max_new_tokens=NEW,
      stop_tokens=stops, key=key, count=count, **options,
    )  # fmt: skip

  return jax.jit(go)


def run(pretrained, laid, prompts=PROMPTS, seed=0, go=None, count=None, **options):
  methods, tuned, hyper, base = laid
  tokens, mask = checked(texts.pad_left)(prompts, 0, LENGTH)
  go = go or compiled(pretrained, methods, **options)
  return np.asarray(go(base, tuned, hyper, tokens, mask, jax.random.key(seed), count))


def forced(pretrained, laid, prompts, stops):
  """Feeds each row, unpadded but for the right, to the whole model again for every token."""
  rows = []
  for prompt in prompts:
    ids, done = list(prompt), False
    for _ in range(NEW):
      padded = np.zeros((1, LENGTH + NEW), np.int32)
      padded[0, : len(ids)] = ids
      mask = np.arange(LENGTH + NEW)[None] < len(ids)
      logits = tiny.forward(pretrained, laid, padded, mask)
      ids.append(ids[-1] if done else int(logits[0, len(ids) - 1].argmax()))
      done = done or ids[-1] in stops
    rows.append(ids[len(prompt) :])
  return np.array(rows)


@pytest.mark.parametrize(
  ("family", "method"),
  [("llama", "prompts"), ("llama", "unshifted"), ("gpt2", "stack"), ("llama3", "lora")],
)
def test_greedy_equals_teacher_forcing(request, family, method):
  pretrained = request.getfixturevalue(family)
  laid = tiny.lay(pretrained, METHODS[method], noise=0.3)
  free = run(pretrained, laid, stops=(tiny.VOCABULARY,))
  np.testing.assert_array_equal(free, forced(pretrained, laid, PROMPTS, ()))
  stop = int(free[0, 2])  # now with a token that some row does draw
  stopped = run(pretrained, laid, stops=(stop, tiny.VOCABULARY))
  np.testing.assert_array_equal(stopped, forced(pretrained, laid, PROMPTS, (stop,)))
  at = free[0].tolist().index(stop)
  assert (stopped[0, at:] == stop).all()
  assert texts.until_stop(stopped[0], (stop,)) == free[0, :at].tolist()


@pytest.mark.full
@pytest.mark.parametrize("family", ["t5", "bart"])
def test_greedy_equals_transformers(family, tmp_path):
  """The first token that BART is made to say is a part of what its decoder begins with.

  transformers has that token in its output; here as there, tokens after the stop token are filled.
  """
  fields = {k: v for k, v in tiny.ARCHITECTURES[family].items() if k != "model_type"}
  if family == "t5":
    fields["num_layers"] = fields["num_decoder_layers"]  # its cache there is as deep as the encoder
  theirs = tiny.torch_twin({"t5": T5Config, "bart": BartConfig}[family](**fields), tmp_path)
  with torch.no_grad():  # away from repeating its last token
    for name, weight in theirs.named_parameters():
      if family == "t5" and weight.ndim > 1 and "shared" not in name:
        weight.add_(0.4 * torch.randn_like(weight))
      elif re.search(r"fc\d\.weight|embed_positions", name):
        weight.mul_(9)
  theirs.generation_config.update(
    eos_token_id=None, forced_eos_token_id=None, pad_token_id=1,
    forced_bos_token_id=fields.get("forced_bos_token_id"),
  )  # fmt: skip
  theirs.save_pretrained(tmp_path)
  ours = hf.load(str(tmp_path))
  start = ours.model.config.decoder_start
  assert start == {"t5": (0,), "bart": (2, 3)}[family]
  tokens, mask = texts.pad_left(PROMPTS, 1, LENGTH)
  if family == "bart":  # whose positions count padding on the left, there
    tokens, mask = (np.stack([np.roll(r, k.sum()) for r, k in zip(x, mask, strict=True)])
                    for x in (tokens, mask))  # fmt: skip
  laid = (), {"params": {}, "peft": {}}, {}, ours.params
  free = run(ours, laid, stops=(tiny.VOCABULARY,))
  assert len({tuple(row) for row in free.tolist()}) > 1 and len(set(free.ravel())) > 4
  for stop in (None, int(free[0, 2])):
    expected = theirs.generate(
      input_ids=torch.tensor(tokens).long(), attention_mask=torch.tensor(mask).long(),
      max_new_tokens=NEW + len(start) - 1, do_sample=False, num_beams=1, eos_token_id=stop,
    )[:, len(start) :]  # fmt: skip
    made = free if stop is None else run(ours, laid, stops=(stop,))
    for row, other in zip(made, expected.tolist(), strict=True):
      n = other.index(stop) + 1 if stop in other else NEW
      assert row[:n].tolist() == other[:n] and (stop not in other or (row[n:] == stop).all())


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_greedy_answers_equal_teacher_forcing(family):
  pretrained = tiny.make(family)
  methods, tuned, hyper, base = laid = tiny.lay(pretrained, METHODS["stack"], noise=0.3)
  made = run(pretrained, laid, stops=(tiny.VOCABULARY,))
  model, start = pretrained.model, pretrained.model.config.decoder_start
  prompts, mask = texts.pad_left(PROMPTS, 0, LENGTH)
  tokens = np.concatenate([np.repeat([start], len(made), 0), made], 1).astype(np.int32)
  call = jax.jit(lambda *args: peft.apply(model, peft.Adapted(methods, tuned, hyper, base), *args))
  logits = call(tokens, np.ones(tokens.shape, bool), prompts, mask)
  np.testing.assert_array_equal(logits.argmax(-1)[:, len(start) - 1 : -1], made)
  assert len({tuple(row) for row in made.tolist()}) > 1


CONTINUED = [
  ("mistral", "prompts"),  # windows of 4 slots, in a circle of 11 and more
  pytest.param(("gemma3_text", "lora"), marks=pytest.mark.full),
  pytest.param(("t5", "stack"), marks=pytest.mark.full),
]
WAITING = [[5, 9, 2], [7], [11, 3, 8, 1, 30], [4, 4], [1, 2], [60], [8, 8, 9], [3], [20, 1, 7, 2]]


@pytest.fixture(scope="module", params=CONTINUED, ids="-".join)
def continued(request):
  """A model with a method, stop tokens, and the nine texts as each is with all rows to itself."""
  family, method = request.param
  pretrained = tiny.make(family)
  laid = tiny.lay(pretrained, METHODS[method], noise=0.3)
  whole = run(pretrained, laid, prompts=WAITING, stops=(tiny.VOCABULARY,)).copy()
  stops = int(whole[3, 0]), int(whole[4, 3])
  for row in whole:
    length = len(texts.until_stop(row, stops))
    row[length:] = row[min(length, NEW - 1)]
  lengths = {len(texts.until_stop(row, stops)) for row in whole}
  assert {0, NEW} < lengths and len(lengths) > 2
  return pretrained, laid, stops, whole


@pytest.mark.parametrize("in_a_row", [False, True])
def test_waiting_texts_take_the_places_of_those_that_end(continued, in_a_row, monkeypatch):
  """Nine texts by five rows, of which some stop early, two begun at a time.

  Also with the layers in a row, as a large model's are on a CPU.
  """
  pretrained, laid, stops, whole = continued
  if in_a_row:
    monkeypatch.setattr(decoding, "LARGE", 0)
    assert isinstance(jax.eval_shape(partial(layers_of_a_cache, pretrained, laid)), list)
  go = compiled(pretrained, laid.methods, stops=stops, rows=5)
  made = run(pretrained, laid, prompts=WAITING, go=go, count=len(WAITING))
  np.testing.assert_array_equal(made, whole)
  made = run(pretrained, laid, prompts=WAITING, go=go, count=3)
  np.testing.assert_array_equal(made[:3], whole[:3])
  assert not made[3:].any(), "texts that do not count are not begun"


def layers_of_a_cache(pretrained, laid):
  """The keys and values of the layers, in the form in which tokens are decoded."""
  calls = decoding.calls(pretrained.model, laid, 1)
  tokens, mask = jnp.zeros((2, 3), jnp.int32), jnp.ones((2, 3), bool)
  return calls.unstack(calls.prefill(jnp.arange(2), tokens, mask)[1]).layers


def test_one_token_and_a_prompt_that_stops_at_once(llama):
  laid = tiny.lay(llama, METHODS["lora"])
  first = run(llama, laid, stops=(tiny.VOCABULARY,))[:, 0]
  rows = run(llama, laid, stops=tuple(set(first.tolist())))
  np.testing.assert_array_equal(rows, np.repeat(first[:, None], NEW, 1))


@pytest.fixture(scope="module")
def sampler(llama):
  laid = tiny.lay(llama, METHODS["stack"], noise=0.3)
  go = compiled(llama, laid[0], stops=(tiny.VOCABULARY,), temperature=1.3, top_k=40, top_p=0.95)
  return partial(run, llama, laid, go=go)


def test_other_seeds_and_other_texts_draw_apart(sampler):
  assert (sampler(seed=1) != sampler()).any(1).all()
  rows = sampler(prompts=[PROMPTS[0]] * 4)
  assert len({tuple(row) for row in rows.tolist()}) == 4, "equal prompts are drawn apart"


def test_neighbours_do_not_matter(sampler):
  other = [PROMPTS[0], [40, 41, 42, 43, 44], PROMPTS[2], [1]]
  np.testing.assert_array_equal(sampler()[[0, 2]], sampler(prompts=other)[[0, 2]])


def test_the_narrowest_draw_is_greedy(llama):
  laid = tiny.lay(llama, METHODS["lora"], noise=0.3)
  drawn = run(llama, laid, temperature=2.0, top_k=5, top_p=1e-6)
  np.testing.assert_array_equal(run(llama, laid), drawn)


def kept(p, top_k=None, top_p=None):
  logits = np.asarray(jnp.log(jnp.asarray([p])))
  found = np.asarray(sampling.restrict(jnp.asarray(logits), top_k, top_p))
  inside = np.isfinite(found[0])
  np.testing.assert_array_equal(found[0][inside], logits[0][inside])
  return np.flatnonzero(inside).tolist()


@pytest.mark.parametrize(
  ("top_k", "top_p", "expected"),
  [
    (None, None, [0, 1, 2, 3, 4]),
    (1, None, [3]),
    (2, None, [1, 3]),
    (3, None, [0, 1, 3]),
    (5, None, [0, 1, 2, 3, 4]),
    (None, 0.3, [3]),
    (None, 0.41, [1, 3]),
    (None, 0.71, [0, 1, 3]),
    (None, 0.86, [0, 1, 3, 4]),
    (None, 0.96, [0, 1, 2, 3, 4]),
    (None, 1.0, [0, 1, 2, 3, 4]),
    (2, 0.5, [3]),  # 0.4 / 0.7 of the two likeliest is more than half
    (2, 0.6, [1, 3]),
    (3, 0.99, [0, 1, 3]),
  ],
)
def test_what_a_restricted_draw_keeps(top_k, top_p, expected):
  assert kept([0.15, 0.3, 0.05, 0.4, 0.1], top_k, top_p) == expected


def test_of_ties_the_first_stay():
  ties = [0.1, 0.3, 0.3, 0.2, 0.1]
  assert kept(ties, top_k=1) == [1]
  assert kept(ties, top_k=4) == [0, 1, 2, 3]
  assert kept(ties, top_p=0.2) == [1]
  assert kept(ties, top_p=0.5) == [1, 2]
  assert kept(ties, top_p=0.85) == [0, 1, 2, 3]
  assert kept([0.5, 0.5, 0.0, 0.0], top_k=3, top_p=0.9) == [0, 1]


@pytest.fixture(scope="module")
def asked(llama):
  """A method, a prompt, and the logits of what follows it, by the full forward pass."""
  laid, prompt = tiny.lay(llama, {"name": "lora"}), np.array([[5, 9, 2]], np.int32)
  return laid, prompt, tiny.forward(llama, laid, prompt, np.ones((1, 3), bool))[:, -1]


@pytest.mark.parametrize(("top_k", "top_p"), [(None, None), (4, None), (None, 0.7)])
def test_frequencies_follow_the_softmax(llama, asked, top_k, top_p):
  """2,000 draws of one token, against the softmax of the full forward pass."""
  (methods, tuned, hyper, base), prompt, logits = asked
  rows = 2000
  tokens, mask = np.repeat(prompt, rows, 0), np.ones((rows, 3), bool)
  found = jax.jit(
    lambda base, tuned, hyper: generate.generate(
      llama.model, peft.Adapted(methods, tuned, hyper, base),
      jnp.asarray(tokens), jnp.asarray(mask),
      max_new_tokens=1, stop_tokens=(0,), temperature=0.5, top_k=top_k, top_p=top_p,
      key=jax.random.key(3),
    )
  )(base, tuned, hyper)  # fmt: skip
  p = np.asarray(jax.nn.softmax(sampling.restrict(logits / 0.5, top_k, top_p)), np.float64)[0]
  counts = np.bincount(np.asarray(found)[:, 0], minlength=len(p))
  assert counts[p == 0].sum() == 0
  rare = (p > 0) & (p * rows < 5)
  observed = [*counts[p * rows >= 5], *[counts[rare].sum()] * bool(rare.any())]
  expected = np.array([*p[p * rows >= 5], *[p[rare].sum()] * bool(rare.any())])
  assert stats.chisquare(observed, expected / expected.sum() * rows).pvalue > 0.01


@pytest.mark.parametrize(("name", "chunks"), [("lora", (1, 2)), ("prefix", (2,))])
def test_grouped_equals_solo(llama, name, chunks):
  key = "rank" if name == "lora" else "length"
  laid = [tiny.lay(llama, METHODS[name] | {key: n}, noise=0.3) for n in (1, 4)]
  alone = [run(llama, one) for one in laid]
  pairs = tree.stack([one.overlay for one in laid])
  tokens, mask = texts.pad_left(PROMPTS, 0, LENGTH)
  batch = {k: np.broadcast_to(x, (2, *x.shape)) for k, x in (("t", tokens), ("m", mask))}
  one = lambda pair, base, batch: generate.generate(
    llama.model, peft.Adapted(laid[0].methods, *pair, base), batch["t"], batch["m"],
    max_new_tokens=NEW, stop_tokens=(0,), rows=2,
  )  # fmt: skip
  for chunk in chunks:
    together = jax.jit(tree.over_trials(one, chunk))(pairs, laid[0][3], batch)
    np.testing.assert_array_equal(together, alone)


def test_texts_with_one_prompt_stay_with_it_in_a_group(llama):
  """Two to a prompt, begun two at a time, by trials whose texts end at other times."""
  laid = [tiny.lay(llama, METHODS["lora"] | {"rank": n}, noise=0.3) for n in (1, 4)]
  prompts = np.repeat(np.arange(1, 55).reshape(18, 3), 2, 0)
  one = lambda pair, base, prompts: generate.generate(
    llama.model, peft.Adapted(laid[0].methods, *pair, base), prompts, prompts > 0, share=2, rows=8,
    max_new_tokens=NEW, stop_tokens=tuple(range(0, tiny.VOCABULARY, 4)), temperature=1.0,
    key=jax.random.key(0),
  )  # fmt: skip
  pairs, both = tree.stack([one.overlay for one in laid]), np.broadcast_to(prompts, (2, 36, 3))
  alone, together = (
    jax.jit(tree.over_trials(one, chunk))(pairs, laid[0][3], both) for chunk in (1, 2)
  )
  np.testing.assert_array_equal(together, alone)


@pytest.mark.parametrize(
  ("options", "says"),
  [
    ({"max_new_tokens": 0}, "max_new_tokens is 0"),
    ({"temperature": -1.0}, "temperature is -1.0"),
    ({"top_k": 0}, "top_k is 0 (int), expected at least 1"),
    ({"top_k": 62}, "top_k is 62, expected at most the vocabulary's 61"),
    ({"top_p": 0.0}, "top_p is 0.0"),
    ({"top_p": 1.1}, "top_p is 1.1"),
    ({"temperature": float("nan")}, "temperature is nan"),
    ({"temperature": 1e400}, "temperature is inf"),
    ({"max_new_tokens": 2**31}, "max_new_tokens is 2147483648"),
  ],
)
def test_options_out_of_range_are_refused(options, says):
  plain = dict(max_new_tokens=1, temperature=1.0, top_k=None, top_p=None)
  sampling.check_options(61, **plain)
  with pytest.raises(UserError) as error:
    sampling.check_options(61, **plain | options)
  assert says in str(error.value)
