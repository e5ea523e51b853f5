"""A fresh head is drawn by the trial's seed, trained beside every method, and is itself a probe."""

import jax
import numpy as np
import pytest
from support import made_trials, tiny
from sweeps.test_groups import grouped, solo

from jaxtune import tree
from jaxtune.errors import UserError
from jaxtune.models import hf
from jaxtune.preflight import targets
from jaxtune.runs import programs, trial
from jaxtune.runs.first_state import first_state
from jaxtune.runs.trial import with_config
from jaxtune.sweeps import groups
from jaxtune.training import step as update

LORA, PROBE = {"name": "lora", "rank": 2}, {"name": "head"}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  """A classifier on a folder that has neither head nor pooler, and data with classes."""
  folder = tmp_path_factory.mktemp("headless")
  whole = tiny.make("bert", head="mlm")
  hf.save(whole, whole.params, folder / "bert")
  found = made_trials.make(hf.load(str(folder / "bert"), head="classify", labels=3))
  rows = found.dataset.train
  labels = (rows.arrays["tokens"][:, 0] % 3).astype(np.int32)
  weights = np.ones(rows.examples, np.float32)
  train = rows._replace(arrays=rows.arrays | {"labels": labels, "weights": weights})
  return found._replace(dataset=found.dataset._replace(train=train))


def complete(method, **changes):
  section = {"objective": {"name": "classify"}, "train.steps": 4, "train.batch_size": 8}
  return made_trials.complete(method, section | changes)


def moved(made, method, **changes):
  state, base = first_state(with_config(made, complete(method, **changes)))
  return tree.flatten(state.tuned["params"]), tree.flatten(base)


def test_a_model_without_a_head_has_nothing_to_probe(llama3):
  says = "method 'head' finds nothing to train: no leaf of this model is a head"
  with pytest.raises(UserError, match=says):
    tiny.lay(llama3, PROBE)


def test_what_is_trained(made):
  head = {"head/out/kernel", "head/out/bias", "pooler/dense/kernel", "pooler/dense/bias"}
  assert {*made.pretrained.fresh} == head
  for method in (LORA, PROBE, {"name": "bitfit"}):
    flat, base = moved(made, method)
    assert head <= {*flat} and not head & {*base}
    assert ({*flat} == head) == (method["name"] != "bitfit")
  methods = trial.make_methods(complete(PROBE), made.pretrained.fresh)
  rows = targets.targets(methods, made.sites, made.pretrained.params)
  assert sorted(row[2] for row in rows) == sorted(head), "each leaf is counted once"
  assert trial.make_methods(made_trials.complete(LORA))[-1].name == "lora", (
    "no head for language models"
  )


def test_seeds_draw_heads(made):
  one, again, other = (moved(made, LORA, seed=seed)[0] for seed in (1, 1, 2))
  for path, leaf in one.items():
    np.testing.assert_array_equal(leaf, again[path])
    if path.endswith("kernel"):
      assert np.abs(leaf - other[path]).max() > 1e-3
      given = tree.flatten(made.pretrained.params)[path]
      assert float(np.std(leaf)) == pytest.approx(float(np.std(given)), rel=0.2)
    else:
      np.testing.assert_array_equal(leaf, other[path])


@pytest.mark.full
def test_two_seeds_in_a_group_are_as_alone(made):
  configs = [complete(LORA, seed=seed) for seed in (0, 7)]
  assert groups.groups(configs) == [[0, 1]]
  members = [with_config(made, config) for config in configs]
  losses, tuned, step, _ = grouped(members, [first_state(one) for one in members], 1)
  alone = jax.jit(lambda *args: update.update(programs.make_program(members[0]), *args))
  for e, one in enumerate(members):
    expected, weights = solo(one, *first_state(one), alone)
    np.testing.assert_allclose(losses[e], expected, atol=1e-5)
    close = lambda x, y: np.testing.assert_allclose(x, y, atol=1e-4)
    jax.tree.map(close, tuned[e], weights)
  assert np.abs(losses[0] - losses[1]).max() > 1e-3 and step._cache_size() == 1
