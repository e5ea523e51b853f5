"""Fused attention gives what plain matrix products give, for every rule of a mask."""

import dataclasses
import itertools
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from support import tiny

from jaxtune import peft, sharding, tree
from jaxtune.errors import UserError
from jaxtune.models import cudnn, hf, splash
from jaxtune.models.context import ANY, Mask
from jaxtune.models.layers import Attend

B, T, N, K, H, P = 2, 150, 4, 2, 16, 3
SCALE = 0.251  # half way between two numbers of bfloat16
REAL = np.arange(T)[None] < np.array([[T], [100]])
ALL = np.ones((B, T), bool)
SEGMENTS = np.where(np.arange(T)[None] < np.array([[40], [90]]), 1, 2)
FRONT = np.array([True, False, True])
MASKS = {
  "causal": Mask(REAL, causal=True),
  "padded on the left": Mask(REAL[:, ::-1], causal=True),
  "both ways": Mask(REAL),
  "a window": Mask(REAL, causal=True, window=20),
  "a window both ways": Mask(REAL, window=20),
  "a local layer": Mask(REAL, causal=True, window=20, local=jnp.asarray(True)),
  "a global layer": Mask(REAL, causal=True, window=20, local=jnp.asarray(False)),
  "segments": Mask(ALL, causal=True, segments=SEGMENTS),
  "a prefix": Mask(REAL, causal=True, front=FRONT),
  "a prefix and a window": Mask(REAL, causal=True, window=20, front=FRONT),
  "a prefix and a window both ways": Mask(REAL, window=20, front=FRONT),
  "a prefix both ways": Mask(REAL, front=FRONT),
  "a window and segments": Mask(ALL, causal=True, window=20, segments=SEGMENTS),
}
# What the TPUs' kernel has no rules for.
OTHERS = {
  "a cache": Mask(REAL, causal=True, start=jnp.asarray(0)),
  "a prompt of all segments": Mask(
    ALL, causal=True, segments=np.where(np.arange(T) < 3, ANY, SEGMENTS), open=True
  ),
  "a prefix and segments": Mask(ALL, causal=True, segments=SEGMENTS, front=FRONT),
}


def arrays(mask, dtype=jnp.float32):
  rng, keys = np.random.default_rng(0), T + (0 if mask.front is None else P)
  normal = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.bfloat16).astype(dtype)
  draw = lambda length, heads: normal(B, length, heads, H)
  return draw(T, N), draw(keys, K), draw(keys, K)


def attend(implementation, mask, softcap=None):
  """Returns (q, k, v) -> the outputs of real queries."""
  rest = dict(mask=mask, scale=SCALE, softcap=softcap)
  calls = {
    "plain": lambda q, k, v: Attend("plain", SCALE, softcap).apply({}, q, k, v, mask),
    "splash": partial(splash.attend, interpret=True, **rest),
    "cudnn": partial(cudnn.attend, implementation="xla", **rest),
  }
  call = calls[implementation]
  return lambda *qkv: jnp.where(mask.keys[..., None, None], call(*qkv), 0)


def measure(implementation, mask, softcap=None, dtype=jnp.float32):
  """Returns the outputs, and the gradients of a sum of them by queries, keys and values."""
  call = attend(implementation, mask, softcap)
  weights = np.random.default_rng(1).standard_normal((B, T, N, H))

  def run(qkv):
    y = call(*qkv).astype(jnp.float32)
    return (y * weights).sum(), y

  return jax.jit(jax.grad(run, has_aux=True))(arrays(mask, dtype))


@pytest.mark.parametrize("name", MASKS)
def test_splash_equals_plain(name, monkeypatch):
  """In four tiles of queries and keys, of which the kernel skips those that hold no pair."""
  monkeypatch.setattr(splash, "TILES", (128,))
  found, expected = (measure(kind, MASKS[name]) for kind in ("splash", "plain"))
  close = lambda x, y: np.testing.assert_allclose(x, y, atol=2e-5, rtol=1e-4)
  jax.tree.map(close, found, expected)


# What cuDNN's kernel knows by its rules; of other masks it is given an array. REAL has two lengths.
RULES = {
  "causal": dict(is_causal=True),
  "padded on the left": dict(is_causal=True),
  "both ways": {},
  "a window": dict(is_causal=True, local_window_size=(19, 0)),
  "a prefix": dict(is_causal=True),
  "a prefix both ways": {},
}


@pytest.mark.parametrize("name", sorted((MASKS | OTHERS).keys() - {"a cache"}))
def test_cudnn_equals_plain(name, monkeypatch):
  """By jax's own emulation of the kernel, which reads the same arguments."""
  real, calls, mask = jax.nn.dot_product_attention, [], (MASKS | OTHERS)[name]
  monkeypatch.setattr(
    jax.nn,
    "dot_product_attention",
    lambda *args, **given: calls.append(given) or real(*args, **given),
  )
  found, expected = (measure(kind, mask) for kind in ("cudnn", "plain"))
  close = lambda x, y: np.testing.assert_allclose(x, y, atol=2e-5, rtol=1e-4)
  jax.tree.map(close, found, expected)
  if name in RULES:
    given = {
      key: x for key, x in calls[0].items() if key in ("is_causal", "local_window_size", "mask")
    }
    assert {key: x for key, x in given.items() if x is not None} == RULES[name]
  elif mask.local is None:
    assert calls[0]["mask"].shape == (B, N, T, T + (0 if mask.front is None else P + 1))


def test_splash_bounds_scores_as_plain_does():
  found, expected, other = (
    measure(kind, MASKS["causal"], softcap)
    for kind, softcap in (("splash", 0.5), ("plain", 0.5), ("plain", None))
  )
  close = lambda x, y: np.testing.assert_allclose(x, y, atol=2e-5, rtol=1e-4)
  jax.tree.map(close, found, expected)
  assert np.abs(expected[1] - other[1]).max() > 1e-2


@pytest.mark.parametrize("name", ["causal", "a window and segments", "a prefix and a window"])
@pytest.mark.parametrize("kernel", ["splash", "cudnn"])
def test_bf16_is_as_near_as_plain(kernel, name):
  """Outputs and each gradient, to what plain products in fp32 give.

  Splash's scaled queries are rounded once more; a scale that is rounded too would nearly double it.
  """
  bound = {"splash": 1.3, "cudnn": 1.1}[kernel]
  exact, plain, found = (
    jax.tree.leaves(measure(kind, MASKS[name], dtype=dtype))
    for kind, dtype in (("plain", jnp.float32), ("plain", jnp.bfloat16), (kernel, jnp.bfloat16))
  )
  for x, y, z in zip(exact, plain, found, strict=True):
    near, far = (float(jnp.sqrt(jnp.square(a - x).mean())) for a in (z, y))
    assert near < bound * far < 0.02


@pytest.mark.parametrize("method", [{"name": "lora"}, {"name": "prefix", "length": 3}])
@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3_text"])
def test_cudnn_in_a_program_for_a_gpu(family, method, monkeypatch):
  """Forward, computed again and backward, in layers with a window and without; of two trials."""
  monkeypatch.setattr(cudnn.kernels, "check_cudnn_version", lambda: 91000)
  architecture = tiny.DECODERS.get(family) or tiny.ARCHITECTURES[family]
  pretrained = hf.load(architecture=architecture | {"head_dim": 16}, dtype="bfloat16", remat=True)
  config = dataclasses.replace(pretrained.model.config, attention="cudnn")
  laid, (tokens, mask) = tiny.lay(pretrained, method), tiny.batch(length=7, side="right")

  def loss(tuned, base, tokens):
    adapted = peft.Adapted(laid.methods, tuned, laid.hyper, base)
    return peft.apply(pretrained.model.clone(config=config), adapted, tokens, mask).sum()

  step = jax.jit(tree.over_trials(jax.grad(loss), 2))
  trials, rows = jax.tree.map(lambda x: jnp.stack([x, x]), (laid.tuned, tokens))
  with cudnn.on((9, 0)):
    traced = step.trace(trials, laid.base, rows)
  text = traced.lower(lowering_platforms=("cuda",)).as_text()
  found = re.findall(r"__cudnn\$(fmha\w+)", text)
  kinds = 1 if family == "llama" else 2  # of layers
  by_array = int(kinds == 2 and method["name"] == "prefix")
  assert found.count("fmhaSoftmax") == 2 * (kinds - by_array)
  assert found.count("fmhaSoftmaxBackward") == kinds - by_array
  assert found.count("fmhaScaleBiasSoftmax") == 2 * by_array
  assert found.count("fmhaScaleBiasSoftmaxBackward") == by_array
  results = re.findall(r"SoftmaxBackward.*-> \((.*)\)", text)
  assert [types.count("xbf16") for types in results] == kinds * [3]  # no gradient of an array


@pytest.mark.parametrize(
  ("change", "taken"),
  [
    ({}, True),
    ({"dtype": jnp.float32}, False),
    ({"size": 256}, True),
    ({"size": 256, "capability": (8, 9)}, False),
    ({"size": 20}, False),
    ({"capability": (7, 5)}, False),
    ({"softcap": 2.0}, False),
    ({"queries": 1}, False),
    ({"mask": Mask(ALL, start=jnp.asarray(0))}, False),
  ],
)
def test_what_cudnn_takes(change, taken, monkeypatch):
  """By jax's rules for types and sizes; everything else is left to plain products."""
  monkeypatch.setattr(cudnn.kernels, "check_cudnn_version", lambda: 91000)
  o = dict(dtype=jnp.bfloat16, size=64, capability=(9, 0), softcap=None, mask=Mask(ALL), queries=T)
  o |= change
  shape = lambda length, heads: jax.ShapeDtypeStruct((B, length, heads, o["size"]), o["dtype"])
  q, k = shape(o["queries"], N), shape(T, K)
  with cudnn.on(o["capability"]):
    attend = lambda q, k: cudnn.attend(q, k, k, o["mask"], 1.0, o["softcap"])
    assert (jax.eval_shape(attend, q, k) is not None) == taken


@pytest.mark.parametrize("name", OTHERS)
def test_other_masks_are_left_to_plain(name):
  mask = OTHERS[name]
  assert splash.attend(*arrays(mask), mask, 1.0, None, interpret=True) is None


@pytest.mark.parametrize("front", [0, 40])
@pytest.mark.parametrize("window", [None, 1, 20, 100])
@pytest.mark.parametrize("causal", [True, False])
def test_tiles_of_which_all_queries_see_the_same(causal, window, front):
  visible = splash.Visible((128, 160), front, causal, window)
  for top, left in itertools.product(range(0, 128, 16), range(0, 160, 16)):
    tile = slice(top, top + 16), slice(left, left + 16)
    computed = visible.mask_function(np.arange(128)[tile[0], None], np.arange(160)[None, tile[1]])
    np.testing.assert_array_equal(visible[tile], computed)


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("front", [0, 40])
@pytest.mark.parametrize("window", [None, 200])
@pytest.mark.parametrize("causal", [True, False])
def test_the_tiles_that_are_visited_are_those_of_the_kernel(causal, window, front, parts):
  visible = splash.Visible((1024, 640), front, causal, window)
  parts = parts if causal or window else 1  # as where all queries see the same keys
  kernel = kernels.make_splash_mha(
    masks.MultiHeadMask([visible]), block_sizes=splash._blocks(256, 128), head_shards=1,
    q_seq_shards=parts,
  )  # fmt: skip
  visits = kernel.fwd_mask_info.block_mask
  seen = np.ones((parts, 1)) if visits is None else np.asarray(visits).reshape(parts, -1) > 0
  tiles = (1024 // 256 // parts) * (640 // 128)
  share = (seen.sum(1) / (seen.shape[1] if visits is None else tiles)).max()
  assert visible.visited(256, 128, parts) == pytest.approx(share)


def test_tiles_are_large_where_little_is_padded():
  sizes = {512: 512, 600: 384, 1040: 384, 2048: 512, 32784: 512, 100: 128, 130: 256}
  assert {count: splash.tile(count) for count in sizes} == sizes


@pytest.mark.parametrize(
  ("kernel", "mesh"),
  [
    ("splash", {"fsdp": 2, "tensor": 2}),
    ("cudnn", {"fsdp": 2, "tensor": 2}),
    ("splash", {"sequence": 4}),  # queries, as there are two heads of keys
    pytest.param("splash", {"data": 2, "sequence": 2}, marks=pytest.mark.full),  # heads
    pytest.param("cudnn", {"data": 2, "sequence": 2}, marks=pytest.mark.full),
    pytest.param("cudnn", {"tensor": 2, "sequence": 2}, marks=pytest.mark.full),  # neither
  ],
  ids=str,
)
def test_a_model_on_a_mesh(kernel, mesh, monkeypatch):
  """Rows, heads and tokens are split over devices; of trials under vmap, and with remat."""
  monkeypatch.setattr(splash, "attend", partial(splash.attend, interpret=True))
  monkeypatch.setattr(cudnn, "attend", partial(cudnn.attend, implementation="xla"))
  section = {"name": "stack", "lora": {"rank": 2}, "prefix": {"length": 3}}
  tokens, mask = tiny.batch(rows=4, length=21, side="right")
  found = {}
  for kind in ("plain", kernel):
    pretrained = tiny.make("llama", remat=True)
    config = dataclasses.replace(pretrained.model.config, attention=kind)
    pretrained = pretrained._replace(model=pretrained.model.clone(config=config))
    laid = tiny.lay(pretrained, section, noise=0.1)

    def loss(tuned, base, batch, pretrained=pretrained, laid=laid):
      adapted = peft.Adapted(laid.methods, tuned, laid.hyper, base)
      logits = peft.apply(pretrained.model, adapted, batch["tokens"][0], batch["mask"][0])
      return jnp.where(batch["mask"][0][..., None], jnp.tanh(logits), 0).sum()

    trials = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), laid.tuned)
    batch = {"tokens": np.stack([tokens[None]] * 2), "mask": np.stack([mask[None]] * 2)}
    parallel = sharding.make("jit", mesh if kind != "plain" else {"data": 1})
    step = parallel.compile(tree.over_trials(jax.value_and_grad(loss), 2))
    place = parallel.put_batch(batch)
    found[kind] = jax.device_get(
      step(parallel.put(trials, "trial"), parallel.put(laid.base), place)
    )
  close = lambda x, y: np.testing.assert_allclose(x, y, atol=1e-3, rtol=1e-3)
  jax.tree.map(close, found[kernel], found["plain"])


def test_each_call_has_the_kernel_of_its_length_and_platform():
  """An encoder-decoder's long inputs have the TPUs' kernel, where its short outputs have none."""
  found = tiny.random(tiny.ARCHITECTURES["bart"] | {"max_position_embeddings": 600})
  kernels = {}
  for platform in (None, "tpu"):
    model = found.model.clone(config=found.model.config.changed(platform=platform))
    arrays = [np.ones((1, length), kind) for length in (20, 512) for kind in (np.int32, bool)]
    arrays = dict(zip(("tokens", "mask", "inputs", "inputs_mask"), arrays, strict=True))
    run = lambda arrays, model=model: model.apply({"params": found.params}, **arrays)
    kernels[platform] = str(jax.make_jaxpr(run)(arrays)).count("pallas_call")
  assert kernels == {None: 0, "tpu": 1}, "the layers are scanned"


def test_a_kernel_of_another_device_is_refused():
  with pytest.raises(UserError, match="model.attention is 'splash', expected a TPU"):
    hf.load(architecture=tiny.ARCHITECTURES["llama"], attention="splash")
