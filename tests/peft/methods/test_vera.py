"""VeRA: PEFT's function, one frozen pair for all sites, and padding without effect."""

import jax.numpy as jnp
import numpy as np
import pytest
from support import deltas, tiny

from jaxtune.errors import UserError

TARGETS = ("q_proj", "down_proj")


def test_equals_peft():
  import torch
  from peft import VeraConfig

  section = {"name": "vera", "rank": 6}
  config = VeraConfig(r=6, target_modules=["q_proj", "v_proj"], save_projection=True)
  fixed = deltas.start(section)[2]

  def share(model):
    """Gives PEFT's only pair, as large as the largest layer, our numbers."""
    pair = model.base_model
    pair.vera_A["default"].copy_(torch.tensor(np.asarray(fixed["q_proj"]["shared:a"]).T))
    pair.vera_B["default"].copy_(torch.tensor(np.asarray(fixed["v_proj"]["shared:b"]).T))

  names = {"d": "vera_lambda_d", "b": "vera_lambda_b"}
  deltas.check_against_torch(section, config, names, share)


def test_sites_read_slices_of_one_pair_drawn_as_peft_does():
  from peft import VeraConfig

  start = lambda rank: deltas.start({"name": "vera", "rank": rank}, 2)[1:]
  trained, fixed = start(64)
  for name, (inputs, outputs) in deltas.SIZES.items():
    a, b = fixed[name]["shared:a"], fixed[name]["shared:b"]
    assert a.shape == (inputs, 64) and b.shape == (64, outputs)
    np.testing.assert_array_equal(a, fixed["q_proj"]["shared:a"][:inputs])
    np.testing.assert_array_equal(b, fixed["v_proj"]["shared:b"][:, :outputs])
    assert np.all(trained[name]["d"] == np.float32(0.1)) and not np.any(trained[name]["b"])
  model = deltas.torch_layers(VeraConfig(r=64, target_modules=["q_proj", "v_proj"]))
  theirs = model.base_model.vera_A["default"], model.base_model.vera_B["default"]
  for made, drawn in zip((fixed["q_proj"]["shared:a"], fixed["v_proj"]["shared:b"]), theirs,
                         strict=True):  # fmt: skip
    assert float(jnp.abs(made).max()) == pytest.approx(float(drawn.abs().max()), rel=0.02)
    assert float(made.std()) == pytest.approx(float(drawn.std()), rel=0.05)
  few = start(4)[1]["q_proj"]
  np.testing.assert_array_equal(few["shared:a"], fixed["q_proj"]["shared:a"][:, :4])
  np.testing.assert_allclose(few["shared:b"], 4 * fixed["q_proj"]["shared:b"][:4], rtol=1e-6)


def test_merge_equals_intercept(llama):
  deltas.check_merge(llama, {"name": "vera", "rank": 40, "targets": TARGETS})


@pytest.mark.parametrize(
  "section, words",
  [({"rank": 0}, ("rank is 0",)), ({"targets": ["q_porj"]}, ("q_porj", "q_proj"))],
)
def test_refused(llama, section, words):
  with pytest.raises(UserError) as caught:
    tiny.lay(llama, {"name": "vera"} | section)
  assert all(word in str(caught.value) for word in words)
