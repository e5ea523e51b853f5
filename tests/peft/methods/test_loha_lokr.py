"""LoHa and LoKr: PEFT's functions, shapes and draws, merging, and padding without effect."""

import numpy as np
import pytest
from support import deltas, tiny

from jaxtune.errors import UserError
from jaxtune.peft.methods import lokr

HADA = {"w1_a": "hada_w1_b", "w1_b": "hada_w1_a", "w2_a": "hada_w2_b", "w2_b": "hada_w2_a"}
LOKR = {"w1": "lokr_w1", "w1_a": "lokr_w1_b", "w1_b": "lokr_w1_a",
        "w2": "lokr_w2", "w2_a": "lokr_w2_b", "w2_b": "lokr_w2_a"}  # fmt: skip
# options, PEFT's, and the arrays at q_proj (24 x 16)
KINDS = {
  "whole": ({"rank": 3}, {}, {"w1", "w2"}),
  "low": ({"rank": 2, "factor": 3}, {"decompose_factor": 3}, {"w1", "w2_a", "w2_b"}),
  "both": (
    {"rank": 1, "factor": 4, "decompose_both": True},
    {"decompose_factor": 4, "decompose_both": True},
    {"w1_a", "w1_b", "w2_a", "w2_b"},
  ),
}
TARGETS = ("q_proj", "down_proj")


def test_loha_equals_peft():
  from peft import LoHaConfig

  section = {"name": "loha", "rank": 3, "alpha": 5}
  config = LoHaConfig(r=3, alpha=5, target_modules=["q_proj", "v_proj"])
  deltas.check_against_torch(section, config, HADA)


@pytest.mark.parametrize("kind", KINDS)
def test_lokr_equals_peft(kind):
  from peft import LoKrConfig

  options, theirs, arrays = KINDS[kind]
  section = {"name": "lokr", "alpha": 5} | options
  config = LoKrConfig(r=options["rank"], alpha=5, target_modules=["q_proj", "v_proj"], **theirs)
  deltas.check_against_torch(section, config, LOKR)
  assert set(deltas.start(section)[1]["q_proj"]) == arrays


@pytest.mark.parametrize("name, options, names", [
  ("loha", {"rank": 8}, HADA),
  ("lokr", {"rank": 2, "factor": 3, "decompose_both": True}, LOKR),
  ("lokr", {"rank": 8}, LOKR),
])  # fmt: skip
def test_draws_are_as_wide_as_peft_draws(name, options, names):
  """Many layers' draws against many of PEFT's: the same largest value, or zero in both."""
  from peft import LoHaConfig, LoKrConfig

  trained = deltas.start({"name": name} | options, 50)[1]
  theirs = {"r": options["rank"], "target_modules": ["q_proj", "v_proj"]}
  if "factor" in options:
    theirs |= {"decompose_factor": options["factor"], "decompose_both": True}
  model = deltas.torch_layers((LoHaConfig if name == "loha" else LoKrConfig)(**theirs))
  for site, arrays in trained.items():
    layer = model.base_model.model[site]
    largest = dict.fromkeys(arrays, 0.0)
    for _ in range(50):
      layer.reset_adapter_parameters("default")
      for array in arrays:
        drawn = getattr(layer, names[array])["default"].detach()
        largest[array] = max(largest[array], float(drawn.abs().max()))
        assert drawn.T.shape == arrays[array].shape[1:]
    for array, x in arrays.items():
      assert np.abs(x).max() == pytest.approx(largest[array], rel=0.05), array


def test_sizes_are_split_as_in_peft():
  from peft.tuners.lokr.layer import factorization

  for size in (*range(1, 130), 768, 1000, 3072, 4096):
    for factor in (None, 1, 2, 3, 8, 16):
      assert lokr.split(size, factor) == factorization(size, -1 if factor is None else factor)


def test_small_loha_draws_start_large_ones():
  few, many = (deltas.start({"name": "loha", "rank": r}, 2)[1]["v_proj"] for r in (3, 12))
  np.testing.assert_array_equal(few["w1_a"], many["w1_a"][..., :3])
  np.testing.assert_allclose(few["w1_b"], 2 * many["w1_b"][:, :3], rtol=1e-6)
  assert not np.allclose(many["w1_b"], many["w2_b"])
  assert not np.allclose(many["w1_a"][0], many["w1_a"][1])


@pytest.mark.parametrize("section", [
  {"name": "loha", "rank": 4},
  {"name": "lokr", "rank": 4, "factor": 4, "scale": 2},  # W2 is whole at q_proj alone
])  # fmt: skip
def test_merge_equals_intercept(llama, section):
  deltas.check_merge(llama, section | {"targets": TARGETS})


@pytest.mark.parametrize("section, words", [
  ({"name": "loha", "rank": 0}, ("rank is 0",)),
  ({"name": "loha", "rank": 33}, ("rank is 33", "32")),
  ({"name": "lokr", "rank": 0}, ("rank is 0",)),
  ({"name": "lokr", "factor": 0}, ("factor is 0", "None")),
  ({"name": "lokr", "targets": ["q_porj"]}, ("q_porj", "q_proj")),
])  # fmt: skip
def test_refused(llama, section, words):
  with pytest.raises(UserError) as caught:
    tiny.lay(llama, {"targets": ["q_proj"]} | section)
  assert all(word in str(caught.value) for word in words)
