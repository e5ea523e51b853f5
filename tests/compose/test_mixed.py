"""Several adapters in one batch: each row is what its adapter gives alone, or it is refused."""

import inspect
import pkgutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import made_trials
from support.methods import NEEDED, OTHER
from support.random_runs import LORA, TOKENS, logits, make

from jaxtune import peft, tree
from jaxtune.compose import mixed
from jaxtune.errors import UserError
from jaxtune.evaluation import decoding, generate
from jaxtune.peft import methods
from jaxtune.runs.finished import Run
from jaxtune.runs.trial import make_methods
from jaxtune.sweeps import groups

# Every method that has an axis to pad, at its size in one run and in the other.
PADDED = [
  {
    "pissa": ({"name": "lora", "initialise": "pissa", "dora": True}, {"rank": 3}, {"rank": 1}),
    "loha": ({"name": "loha", "targets": ["k_proj"]}, {"rank": 1}, {"rank": 2}),
    "vera": ({"name": "vera", "targets": ["o_proj", "head"]}, {"rank": 5}, {"rank": 2}),
    "adalora": ({"name": "adalora", "target_rank": 1, "targets": ["up_proj"]},
                {"init_rank": 2}, {"init_rank": 3}),
    "adapter": ({"name": "adapter"}, {"width": [3, 1, 4]}, {"width": 2}),
    "prefix": ({"name": "prefix"}, {"lengths": [2, 0, 1]}, {"length": 4}),
    "prompt": ({"name": "prompt"}, {"length": 3}, {"length": 1}),
    "reft": ({"name": "reft"}, {"rank": 2, "first": 3}, {"rank": 3}),
  },
  {
    "compacter": ({"name": "compacter", "n": 2}, {"width": 4, "rank": 2}, {"width": 8, "rank": 1}),
    "prefix": ({"name": "prefix", "projection": 5}, {"length": 2}, {"length": 3}),
    "p_tuning": ({"name": "p_tuning", "hidden": 6}, {"length": 3}, {"length": 2}),
  },
]  # fmt: skip


@pytest.mark.full
@pytest.mark.parametrize("parts", PADDED)
def test_a_mixed_batch_equals_separate_runs(llama, parts):
  section = lambda i: {"name": "stack"} | {name: p[0] | p[i] for name, p in parts.items()}
  runs = [make(llama, section(i), seed=i) for i in (1, 2)]
  which = np.array([1, 0, 1])
  adapted = mixed.together(runs)

  @jax.jit
  def go(overlay, which):
    one = peft.Adapted(adapted.methods, *overlay, adapted.base)
    calls = decoding.calls(llama.model, one, 1, which)
    numbers, texts = jnp.arange(3), jnp.asarray(TOKENS)
    _, cache = calls.prefill(numbers, texts[:, :-1], jnp.ones(texts[:, :-1].shape, bool))
    return calls.decode(numbers, texts[:, -1], cache)[0]

  made = go(adapted.overlay, jnp.asarray(which))
  assert np.abs(logits(runs[0]) - logits(runs[1])).max() > 0.1
  for row, i in enumerate(which):
    np.testing.assert_allclose(made[row], logits(runs[i])[row, -1], atol=5e-5, rtol=0)


@pytest.mark.full
def test_each_prompt_is_continued_by_its_own_adapter(llama):
  runs = [make(llama, {"name": "lora", "rank": i}, seed=i) for i in (1, 3)]
  options = dict(max_new_tokens=4, stop_tokens=(-1,), key=jax.random.key(0))
  texts = jnp.asarray(TOKENS), jnp.ones(TOKENS.shape, bool)
  alone = [generate.generate(llama.model, run.adapted, *texts, **options) for run in runs]
  assert (alone[0] != alone[1]).any(-1).all()
  which = jnp.asarray([1, 0, 1])
  adapted = mixed.together(runs)
  made = generate.generate(llama.model, adapted, *texts, which_N=which, rows=2, **options)
  for row, i in enumerate([1, 0, 1]):
    np.testing.assert_array_equal(made[row], alone[i][row])


def test_weights_trained_in_place_have_their_own_row(llama, monkeypatch):
  """Where layers run in a row, and there are more adapters than layers."""
  monkeypatch.setattr(decoding, "LARGE", 0)
  runs = [make(llama, {"name": "norms"}, seed=i) for i in range(5)]
  options = dict(max_new_tokens=4, stop_tokens=(-1,), key=jax.random.key(0))
  texts = jnp.asarray(TOKENS), jnp.ones(TOKENS.shape, bool)
  alone = [generate.generate(llama.model, run.adapted, *texts, **options) for run in runs]
  adapted = mixed.together(runs)
  made = generate.generate(llama.model, adapted, *texts, which_N=jnp.asarray([4, 0, 3]), **options)
  for row, i in enumerate([4, 0, 3]):
    np.testing.assert_array_equal(made[row], alone[i][row])
  assert (alone[4][0] != alone[2][0]).any()


def test_how_adapters_were_trained_does_not_keep_them_from_one_batch(llama):
  dpo = {"objective": {"name": "dpo"}, "regularize": {"dropout": 0.1}}
  runs = [make(llama, LORA), make(llama, LORA, 1, **dpo)]
  assert [m.name for m in mixed.together(runs).methods] == ["lora"]


def outlined(pretrained, section: dict) -> Run:
  """A run with the shapes of arrays in their place."""
  full = made_trials.complete(section)
  methods, sites = make_methods(full), peft.find_sites(pretrained.model)
  start = lambda params: (
    peft.init(jax.random.key(0), methods, sites, params, lambda text: [1, 2]).overlay
  )
  tuned, hyper = jax.eval_shape(start, pretrained.params)
  return Run(
    None, full, pretrained, peft.Adapted(methods, {"params": {}, "peft": {}} | tuned, hyper, None)
  )


METHODS = {m.name for m in pkgutil.iter_modules(methods.__path__)}


@pytest.mark.parametrize("name", sorted(METHODS - {"bitfit", "head"}))  # of which Llama has none
def test_what_shares_a_program_differs_along_padded_axes_alone(llama, name):
  """The options that trials of one program may differ in, and the axes that are padded, agree."""
  plain = {"name": name}
  run = outlined(llama, plain)
  for option in run.adapted.methods[0].groupable:
    other = outlined(llama, plain | {option: OTHER[option]} | NEEDED.get(option, {}))
    assert groups.groups([run.config, other.config]) == [[0, 1]]
    assert mixed.apart(run, other) == ""


@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_method_says_what_it_is_made_of(llama, name):
  (method,) = peft.build({"name": name})
  known = inspect.signature(peft.constructor(name)).parameters.keys()
  assert method.name == name and {*method.options, *method.groupable} <= known
  sizes = {"rank", "width", "length", "init_rank"} & {*method.groupable}
  if not sizes:
    return
  runs = [outlined(llama, {"name": name} | {o: OTHER[o] for o in some}) for some in ((), sizes)]
  shapes = [
    tree.flatten({"tuned": run.adapted.tuned["peft"], "hyper": run.adapted.hyper}) for run in runs
  ]
  grown = {path for path, x in shapes[0].items() if x.shape != shapes[1][path].shape}
  assert {path.rsplit("/", 1)[1] for path in grown} <= method.padded_axes.keys()


REFUSED = [
  ({"name": "last_layers", "layers": 1}, {"layers": 2}),
  ({"name": "p_tuning", "encoder": "lstm", "length": 3}, {"length": 2}),
  ({"name": "p_tuning", "length": 3}, {"hidden": 5}),
  ({"name": "prefix", "projection": 4}, {"projection": 5}),
  ({"name": "compacter", "n": 2, "width": 4}, {"n": 4}),
  ({"name": "lokr", "rank": 1}, {"rank": 2}),
  ({"name": "lora"}, {"targets": ["k_proj"]}),
  ({"name": "lora"}, {"dora": True}),
  ({"name": "adapter", "width": 4}, {"placement": "parallel"}),
  ({"name": "adapter", "width": 4}, {"activation": "tanh"}),
  ({"name": "reft"}, {"variant": "direft"}),
  ({"name": "lora"}, {"name": "prefix"}),
]


@pytest.mark.parametrize(("section", "change"), REFUSED)
def test_what_cannot_be_padded_is_refused(llama, section, change):
  runs = [outlined(llama, section), outlined(llama, section | change)]
  runs = [run._replace(folder=f"run{i}") for i, run in enumerate(runs)]
  with pytest.raises(UserError, match="different methods, options or targets"):
    mixed.together(runs)
  if "name" not in change:
    assert groups.groups([run.config for run in runs]) == [[0], [1]]
