"""Training that starts from an adapter computes what the adapter does."""

from functools import partial

import jax
import numpy as np
import pytest
from support import made_trials, tiny

from jaxtune import peft, tree
from jaxtune.api.export import export
from jaxtune.errors import UserError
from jaxtune.models import hf
from jaxtune.preflight import lowered
from jaxtune.runs import finished, sources
from jaxtune.runs.first_state import first_state
from jaxtune.runs.trial import with_config

ARCHITECTURE = tiny.ARCHITECTURES["llama"] | {"num_hidden_layers": 2}


@pytest.fixture(scope="module")
def model():
  return hf.load(architecture=ARCHITECTURE)


def started(model, folder, section, changes, numbers=None):
  """Returns a run of a section, and the overlay of a trial that starts from it with changes.

  Args:
    numbers: {the end of a path: (the run's number for each layer)}.
  """
  config = made_trials.complete(section, model={"path": None, "architecture": ARCHITECTURE})
  adapted = tiny.lay(model, config["method"], noise=0.1)
  adapted = adapted._replace(tuned={"params": {}} | adapted.tuned)
  hyper = tree.flatten(adapted.hyper)
  for path in hyper:
    hyper[path] = np.asarray(
      (numbers or {}).get(path.rpartition("/")[2], hyper[path]), hyper[path].dtype
    )
  adapted = adapted._replace(hyper=tree.unflatten(hyper))
  run = finished.Run(None, config, model, adapted, (), (0,))
  finished.keep(run, folder / "run")
  method = section | {"start": str(folder / "run")} | changes
  trial = with_config(made_trials.make(model), made_trials.complete(method))
  lowered.outline([trial])  # as a plan does, of shapes alone
  state, _ = first_state(trial)
  return run.adapted, peft.Overlay(state.tuned, state.hyper)


ADAPTER = {"name": "adapter", "width": 2, "scale": 1.0}
COMPACTER = {"name": "compacter", "width": 4, "n": 2}
LORA, REFT = {"name": "lora", "rank": 2, "alpha": 4.0}, {"name": "reft", "rank": 2}
DIFFERENT = [
  (ADAPTER, {"placement": "parallel"}, "method.placement is 'parallel', expected 'pfeiffer', as "),
  (ADAPTER, {"activation": "gelu"}, "method.activation is 'gelu', expected 'relu', as .*run has"),
  (ADAPTER, {"scale": 2.0}, r"adapter/scale is not the same .* \[1.\] and \[2.\]; .* own alpha or"),
  (COMPACTER, {"activation": "relu"}, "method.activation is 'relu', expected 'gelu'"),
  (REFT, {"variant": "direft"}, "method.variant is 'direft', expected 'loreft'"),
  (REFT, {"first": 3}, "reft/first is not the same .* the adapter's own first"),
  (REFT, {"layers": (1,)}, "reft/edited is not the same .* the adapter's own layers"),
  (
    LORA,
    {"alpha": 8.0},
    r"lora/scale is not the same .*: \[2.\] and \[4.\]; give the adapter's own",
  ),
  ({"name": "prefix", "length": 2}, {"shift": False}, "offset is not the same .* own shift"),
]


@pytest.mark.parametrize(("section", "changes", "says"), DIFFERENT)
def test_options_that_no_shape_tells_are_those_of_the_adapter(
  model, tmp_path, section, changes, says
):
  with pytest.raises(UserError, match=says):
    started(model, tmp_path, section, changes)


@pytest.mark.parametrize("section", [ADAPTER, LORA])
def test_scales_that_no_config_can_say_are_the_adapters(model, tmp_path, section):
  """As of PEFT's patterns by layer, and scales that AdapterHub has trained."""
  _, overlay = started(model, tmp_path, section, {}, {"scale": (3.0, 5.0)})
  scales = [x for path, x in tree.flatten(overlay.hyper).items() if path.endswith("/scale")]
  assert all(x.tolist() == [3.0, 5.0] for x in scales) and scales


@pytest.mark.parametrize(
  ("section", "changes"),
  [
    (LORA, {"alpha": 1.0, "scale": 2.0, "initialise": "gaussian", "dropout": 0.5, "b_rate": 4.0}),
    ({"name": "adalora"}, {"orth_weight": 0.25, "beta1": 0.5, "interval": 2, "dropout": 0.5}),
  ],
)
def test_what_concerns_training_alone_is_the_configs(model, tmp_path, section, changes):
  run, overlay = started(model, tmp_path, section, changes)
  found, expected = tree.flatten(overlay.tuned["peft"]), tree.flatten(run.tuned["peft"])
  for path, leaf in expected.items():
    np.testing.assert_array_equal(found[path], leaf)
  for path, leaf in tree.flatten(overlay.hyper).items():
    option = {"rate:b": "b_rate"}.get(name := path.rpartition("/")[2], name)
    assert option not in changes or np.all(leaf == changes[option]), path


def test_a_plan_starts_from_an_adapter_of_another_library(model, tmp_path):
  """It has shapes in place of the weights beside which such an adapter is read."""
  export(model, tiny.lay(model, LORA, noise=0.1), tmp_path / "theirs")
  method = LORA | {"start": str(tmp_path / "theirs")}
  trial = with_config(made_trials.make(model), made_trials.complete(method))
  planned = lowered.outline([trial]).states.tuned
  state, _ = first_state(trial)
  assert jax.tree.map(np.shape, state.tuned) == jax.tree.map(lambda x: x.shape[1:], planned)


def test_a_head_is_not_taken_over_by_other_labels(tmp_path):
  model = tiny.make("llama", head="classify", labels=2)
  complete = partial(made_trials.complete, objective={"name": "classify"})
  made = made_trials.make(model)
  trial = with_config(made, complete(LORA))
  state, base = first_state(trial)
  adapted = peft.Adapted(trial.methods, state.tuned, state.hyper, base)
  finished.keep(finished.Run(None, trial.config, model, adapted, ("neg", "pos")), tmp_path / "run")
  start = complete(LORA | {"start": str(tmp_path / "run")})
  for labels in ((), ("neg", "pos"), ("pos", "neg")):
    trial = with_config(made._replace(dataset=made.dataset._replace(labels=labels)), start)
    if labels[:1] != ("pos",):
      first_state(trial)
  with pytest.raises(
    UserError, match="run has the labels neg, pos, expected .* pos, neg, in their"
  ):
    first_state(trial)


def test_a_head_of_another_library_needs_its_labels_in_order(tmp_path):
  model = tiny.make("llama", head="classify", labels=2)
  both = {"name": "stack", "lora": LORA, "head": {"name": "head"}}
  export(model, tiny.lay(model, both, noise=0.1), tmp_path / "theirs")
  start = made_trials.complete(
    LORA | {"start": str(tmp_path / "theirs")}, objective={"name": "classify"}
  )
  made = made_trials.make(model)
  made = made._replace(dataset=made.dataset._replace(labels=("neg", "pos")))
  with pytest.raises(UserError, match="theirs names no labels, expected data.labels in the order"):
    first_state(with_config(made, start))
  named = start | {"data": start["data"] | {"labels": ("neg", "pos")}}
  first_state(with_config(made, named))


def test_a_start_of_a_user_that_is_not_there(model):
  method = LORA | {"start": "~nobody-of-this-name/run"}
  says = "method.start: ~nobody-of-this-name/run holds no finished run: it is not there, and the"
  with pytest.raises(UserError, match=says):
    first_state(with_config(made_trials.make(model), made_trials.complete(method)))
  assert sources.digests(made_trials.complete(method)) == {}
