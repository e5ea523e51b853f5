"""Bottleneck adapters and Compacter: formulas, widths by layer, padding, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from scipy.special import erf, expit
from support import deltas, tiny

from jaxtune import peft, tree
from jaxtune.errors import UserError
from jaxtune.peft.methods import compacter
from jaxtune.runs import folder

D = 6
SITE = "trunk/layers/mlp_residual"
WIDTHS = (2, 5, 3)
EVERYTHING = {"ln_before": True, "ln_after": True, "gate": True, "channel_scale": True}


def draw(seed, *shape):
  return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def gelu(x):
  return x * 0.5 * (1 + erf(x / 2**0.5))


def layer_norm(x, scale=1.0, bias=0.0):
  x = x - x.mean(-1, keepdims=True)
  return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * scale + bias


def site(layers=3):
  return {SITE: peft.Site(SITE, "Residual", ((1, 4, D),) * 2, D, layers)}


def one_layer(section):
  """A method and its arrays at one layer, moved off their start."""
  (method,) = peft.build({"targets": ("mlp_residual",)} | section)
  trained, fixed = method.init(jax.random.key(0), site(), None)
  trained = method.reparametrise({path: tiny.perturb(w, 1, 0.5) for path, w in trained.items()})
  return method, *jax.tree.map(lambda x: x[1], (trained[SITE], fixed[SITE]))


def call(method, trained, fixed, residual):
  x, f = draw(1, 2, 4, D), draw(2, 2, 4, D)
  wrapped = peft.Call(deltas.Evaluation, fixed | trained, residual)
  made = method.intercept(wrapped, jnp.array(x), jnp.array(f))
  return x, f, made


@pytest.mark.parametrize("placement", ["pfeiffer", "houlsby", "parallel", "plus"])
def test_every_part_of_an_adapter(placement):
  """LN'(g(h) * c * s * (W_up act(W_down LN(h) + b) + b')), where h and the sum are by placement."""
  section = {"name": "adapter", "placement": placement, "activation": "gelu", "scale": 1.5}
  method, w, fixed = one_layer(section | EVERYTHING | {"width": 3})
  x, f, made = call(method, w, fixed, lambda x, f: layer_norm(x + f))
  h = {"pfeiffer": layer_norm(x + f), "houlsby": f, "parallel": x, "plus": layer_norm(x + f)}
  h, w = h[placement], jax.tree.map(np.asarray, w)
  inner = layer_norm(h, w["norm_scale"], w["norm_bias"]) @ w["down_kernel"] + w["down_bias"]
  out = 1.5 * w["channel_scale"] * (gelu(inner) @ w["up_kernel"] + w["up_bias"])
  out = out * expit(h @ w["gate_kernel"] + w["gate_bias"])[..., None]
  out = layer_norm(out, w["norm_after_scale"], w["norm_after_bias"])
  expected = h + out if placement == "plus" else layer_norm(x + f + out)
  np.testing.assert_allclose(made, expected, atol=2e-5)


def test_adapter_plus_starts_as_published():
  method, fixed = one_layer({"name": "adapter", "placement": "plus", "width": 6})[::2]
  trained = method.init(jax.random.key(0), site(100), None)[0][SITE]
  for name in ("down_kernel", "up_kernel"):
    assert np.abs(trained[name]).max() <= 0.02 and 0.008 < np.std(trained[name]) < 0.0095
  np.testing.assert_array_equal(trained["channel_scale"], np.ones((100, D)))
  assert not np.any(trained["down_bias"]) and not np.any(trained["up_bias"])
  assert fixed["scale"] == 1 and method.options["activation"] == "gelu"


def test_a_gate_starts_at_one_half():
  plain, gated = ({"name": "adapter", "gate": gate, "width": 3} for gate in (False, True))
  made = []
  for section in (plain, gated):
    (method,) = peft.build(section)
    arrays = method.init(jax.random.key(0), site(), None)
    trained, fixed = (jax.tree.map(lambda a: a[1], t[SITE]) for t in arrays)
    x, f, y = call(method, trained, fixed, lambda x, f: x + f)
    made.append(y - x - f)
  np.testing.assert_allclose(made[1], made[0] / 2, atol=1e-6)


@pytest.mark.parametrize("placement", ["houlsby", "pfeiffer"])
@pytest.mark.parametrize("shared", [True, False])
def test_compacter_is_a_sum_of_kronecker_products(placement, shared):
  section = {"name": "compacter", "width": 4, "n": 2, "rank": 2, "shared": shared}
  method, w, fixed = one_layer(section | {"placement": placement, "scale": 0.5})
  x, f, made = call(method, w, fixed, lambda x, f: x + f)
  w = jax.tree.map(lambda a: torch.tensor(np.asarray(a)), w)
  matrix = lambda name: sum(
    torch.kron(w[f"{name}_rule"][i], w[f"{name}_left"][i] @ w[f"{name}_right"][i]) for i in range(2)
  )
  h = torch.tensor({"houlsby": f, "pfeiffer": x + f}[placement])
  inner = torch.nn.functional.gelu(h @ matrix("down") + w["down_bias"].flatten())
  expected = x + f + 0.5 * (inner @ matrix("up") + w["up_bias"]).numpy()
  assert matrix("down").shape == (D, 4) and matrix("up").shape == (4, D)
  assert shared == bool(torch.equal(w["down_rule"], w["up_rule"]))
  np.testing.assert_allclose(made, expected, atol=1e-5)


def test_compacter_keeps_one_rule_for_all_layers(gpt2):
  section = {"name": "compacter", "width": 8, "n": 4}
  trained = tree.flatten(tiny.lay(gpt2, section)[1]["peft"])
  assert trained["trunk/compacter/phm_rule"].shape == (4, 4, 4)
  shapes = {path.split("/")[-1]: x.shape for path, x in trained.items() if "attn_resid" in path}
  assert shapes == {
    "down_left": (3, 4, 8, 1), "down_right": (3, 4, 1, 2), "down_bias": (3, 4, 2),
    "up_left": (3, 4, 2, 1), "up_right": (3, 4, 1, 8), "up_bias": (3, 32),
  }  # fmt: skip
  left = trained["trunk/layers/attn_residual/compacter/down_left"]
  assert 0.8 < np.std(left) / (2 / 9) ** 0.5 < 1.2
  alone = tiny.lay(gpt2, section | {"shared": False})[1]["peft"]
  assert sum("rule" in path for path in tree.flatten(alone)) == 4
  assert compacter.method(**{k: v for k, v in section.items() if k != "name"}).options["n"] == 4


def test_widths_by_layer(gpt2):
  """Units of the padding count for nothing, in the outputs and in the number of parameters."""
  sections = {"width": WIDTHS}, {"reduction_factor": (16, 32 / 5.5, 10)}
  for section in sections:
    laid = tiny.lay(gpt2, {"name": "adapter", **section})
    methods, tuned, hyper, _ = laid
    w = tuned["peft"]["trunk"]["layers"]["mlp_residual"]["adapter"]
    assert w["down_kernel"].shape == (3, 32, 5)
    wide = tiny.lay(gpt2, {"name": "adapter", "width": 5})[1]["peft"]
    wide = wide["trunk"]["layers"]["mlp_residual"]["adapter"]
    for layer, width in enumerate(WIDTHS):
      down, up = w["down_kernel"][layer], w["up_kernel"][layer]
      assert not np.any(down[:, width:]) and not np.any(up[width:])
      np.testing.assert_array_equal(down[:, :width], wide["down_kernel"][layer, :, :width])
      np.testing.assert_array_equal(up[:width], wide["up_kernel"][layer, :width])
    assert folder.count_trained(methods, laid.overlay) == sum(65 * n + 32 for n in WIDTHS)
  assert tiny.lay(gpt2, {"name": "adapter", "reduction_factor": 100})[1]["peft"]["trunk"]["layers"][
    "mlp_residual"
  ]["adapter"]["down_kernel"].shape == (3, 32, 1)


GROUPS = {
  "adapter": [
    {"name": "adapter", "gate": True, "channel_scale": True, "ln_before": True} | numbers
    for numbers in ({"width": 6, "dropout": 0.2}, {"width": WIDTHS, "scale": 2.0})
  ],
  "compacter": [
    {"name": "compacter", "n": 2, "placement": "pfeiffer"} | numbers
    for numbers in ({"width": 8, "rank": 2}, {"width": 4, "scale": 3.0, "dropout": 0.2})
  ],
}


@pytest.mark.full
@pytest.mark.parametrize("group", GROUPS)
def test_grouped_equals_solo(gpt2, group):
  deltas.check_trials_equal_solo(gpt2, GROUPS[group], steps=2)


@pytest.mark.full
def test_every_layer_of_every_array_has_a_gradient(gpt2):
  """Except the units of the padding, whose gradient is exactly zero."""
  section = {
    "plus": {"name": "adapter", "placement": "plus", "width": WIDTHS} | EVERYTHING,
    "compacter": {"width": 4, "n": 2},
    "own": {"name": "compacter", "width": 4, "n": 2, "shared": False, "placement": "pfeiffer"},
  }
  methods, tuned, hyper, base = tiny.lay(gpt2, {"name": "stack", **section}, noise=0.1)
  live_LF = np.arange(max(WIDTHS))[None] < np.array(WIDTHS)[:, None]
  real = {"down_kernel": live_LF[:, None], "up_kernel": live_LF[:, :, None], "down_bias": live_LF}
  padding = lambda path: ~real.get(path.partition("/plus/")[2], np.True_)
  flat = tree.flatten(tuned["peft"])
  tuned = tree.unflatten({path: jnp.where(padding(path), 0, x) for path, x in flat.items()})
  tokens, _ = tiny.batch(2, 5)

  @jax.jit
  @jax.grad
  def gradient(deltas):
    tuned = {"params": {}, "peft": deltas}
    logits = peft.apply(gpt2.model, peft.Adapted(methods, tuned, hyper, base), tokens)
    return jnp.sum(jax.nn.log_softmax(logits)[..., :2])

  for path, leaf in tree.flatten(gradient(tuned)).items():
    largest = np.abs(leaf).reshape(1 if path.endswith("phm_rule") else 3, -1).max(1)
    assert np.all(largest > 1e-7), (path, largest)
    assert not np.any(np.where(padding(path), leaf, 0)), path


@pytest.mark.parametrize(
  "section, words",
  [
    ({"name": "adapter", "width": (4, 4)}, ("width has 2", "3 layers")),
    ({"name": "adapter", "width": (4, 33, 4)}, ("width is 33", "32")),
    ({"name": "adapter", "width": (4, 0, 4)}, ("width[1] is 0",)),
    ({"name": "adapter", "reduction_factor": (2.0,) * 4}, ("reduction_factor has 4", "3 layers")),
    ({"name": "adapter", "reduction_factor": 0.5}, ("width is 64", "reduction_factor 0.5", "32")),
    ({"name": "adapter", "reduction_factor": 1e-30}, ("reduction_factor 1e-30", "32")),
    ({"name": "adapter", "reduction_factor": 0}, ("reduction_factor is 0",)),
    (
      {"name": "adapter", "width": 8, "reduction_factor": 4},
      ("width is 8", "4, expected one alone"),
    ),
    ({"name": "adapter", "placement": "plsu"}, ("plsu", "plus")),
    ({"name": "compacter", "width": 6}, ("width is 6", "multiple", "4")),
    ({"name": "compacter", "width": 36}, ("width is 36", "32")),
    ({"name": "compacter", "width": 6, "n": 3}, ("n is 3", "32")),
    ({"name": "compacter", "rank": 0}, ("rank is 0",)),
    ({"name": "compacter", "activation": "gellu"}, ("gellu", "gelu")),
    ({"name": "compacter", "dropout": 1.0}, ("dropout",)),
  ],
)
def test_refused(gpt2, section, words):
  with pytest.raises(UserError) as caught:
    tiny.lay(gpt2, section)
  assert all(word in str(caught.value) for word in words), str(caught.value)
