"""Before a run, everything that is to be trained is seen to reach the loss."""

import jax.numpy as jnp
import pytest
from support import folders, made_trials

import jaxtune
from jaxtune import peft, sharding, tree
from jaxtune.errors import UserError
from jaxtune.preflight import checks, gradients
from jaxtune.runs.trial import with_config

STACK = {"name": "stack", "lora": {}, "prefix": {"length": 3}, "adapter": {"width": 4}}


@pytest.mark.full
@pytest.mark.parametrize("mesh", [{"data": 1}, {"data": 2, "sequence": 2}])
def test_a_stack_passes(llama, mesh):
  config = made_trials.complete(STACK, {"train.mesh": mesh})
  gradients.check([with_config(made_trials.make(llama), config)])


def test_it_runs_on_the_mesh_of_the_run(llama, monkeypatch):
  """There alone a fused kernel knows how it is split, and a base that fills all devices fits."""
  config = made_trials.complete({"name": "ia3"}, {"train.mesh": {"data": 4}})
  trial, seen, constrain = with_config(made_trials.make(llama), config), set(), sharding.constrain

  def noted(x, *axes):
    seen.add(sharding.size("data"))
    return constrain(x, *axes)

  monkeypatch.setattr(sharding, "constrain", noted)
  gradients.check([trial])
  assert seen == {4}


def test_an_array_that_is_not_read_is_named(llama, monkeypatch):
  """A site that the model does not call in this way, as a misspelt one would be."""
  setup, config = made_trials.make(llama), made_trials.complete({"name": "lora"})
  lora = peft.build({"name": "lora"})[0]

  def stray(*args):
    trained, fixed = lora.init(*args)
    return trained | {"trunk/nowhere": {"a": jnp.ones(3)}}, fixed

  methods = (lora._replace(init=stray),)
  with pytest.raises(UserError, match="trunk/nowhere/lora/a: it would be trained in vain"):
    gradients.check([with_config(setup, config)._replace(methods=methods)])


def test_noise_at_the_head_is_refused(llama):
  """Of training alone: a run that has it can be judged."""
  config = made_trials.complete({"name": "lora", "targets": ["head"], "dropout": 0.1})
  trial = with_config(made_trials.make(llama), config)
  checks.check(trial)
  with pytest.raises(UserError, match="method.dropout is 0.1, expected 0 at the vocabulary's head"):
    gradients.check([trial])


def test_every_method_of_a_group_is_probed(tmp_path):
  rows = [{"prompt": f"a{i} :", "completion": f"b{i}"} for i in range(8)]
  files = {name: folders.write(tmp_path, f"{name}.jsonl", rows) for name in ("train", "test")}
  config = folders.config(folders.base(tmp_path, "llama"), files | {"overlap": "allow"})
  config["sweep"] = ({"method.alpha": [16.0, 0.0]},)
  with pytest.raises(UserError, match="no gradient reaches"):
    jaxtune.sweep(config, tmp_path / "sweep")
  assert not list((tmp_path / "sweep").glob("trials/*/metrics.jsonl"))


def test_weights_that_are_not_finite_are_named(llama):
  flat = dict(tree.flatten(llama.params))
  flat["trunk/norm/scale"] = flat["trunk/norm/scale"] * jnp.nan
  setup = made_trials.make(llama._replace(params=tree.unflatten(flat)))
  with pytest.raises(UserError, match="not finite in trunk/norm/scale"):
    gradients.check([with_config(setup, made_trials.complete({"name": "lora"}))])
