"""A quantised base computes exactly what its dequantised weights do, and never holds them whole."""

import dataclasses
import re
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from support import made_trials, tiny

from jaxtune import peft, sharding, tree
from jaxtune.errors import UserError
from jaxtune.evaluation import generate
from jaxtune.models import hf, quantize
from jaxtune.preflight import cost
from jaxtune.runs.trial import with_config

FORMS = quantize.FORMS
# As bitsandbytes 0.39 tabulates it (get_4bit_type("nf4")).
PUBLISHED = [
  -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
  -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
  0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
  0.7229568362236023, 1.0,
]  # fmt: skip
SECTIONS = {
  "llama": {"name": "lora", "rank": 2, "dora": True},
  "gpt2": {"name": "stack", "lora": {"rank": 2, "targets": (".*_proj",)}, "bitfit": {}},
  "t5": {"name": "lora", "rank": 2, "targets": (".*_proj",)},
  "bert": {"name": "lora", "rank": 2, "targets": ("down_proj",)},
}


def kernels(*shape, seed=0):
  return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


@cache
def plain(name: str) -> hf.Pretrained:
  return tiny.make(name, **({"head": "classify", "labels": 3} if name == "bert" else {}))


def as_form(pretrained, form: str | None, **changes) -> hf.Pretrained:
  """Quantises a model in memory, or changes how it is computed."""
  change = lambda c: dataclasses.replace(c, quantize=form, **changes)
  config = change(pretrained.model.config)
  if config.encoder is not None:
    config = dataclasses.replace(config, encoder=change(config.encoder))
  model = pretrained.model.clone(config=config)
  return pretrained._replace(model=model, params=quantize.quantised(pretrained.params, form))


def whole(pretrained) -> hf.Pretrained:
  """The same weights as plain fp32 arrays."""
  return as_form(pretrained._replace(params=quantize.dequantised(pretrained.params)), None)


PROGRAMS = {}  # one for the weights of both forms, made whole


def measure(pretrained, section: dict, gradient: bool = True):
  """Logits with a method laid over the model, and the gradient of their mean square."""
  methods, tuned, hyper, base = tiny.lay(pretrained, section, noise=0.1)
  model, (tokens, mask) = pretrained.model, tiny.batch(side="right")
  inputs = {"inputs": tokens[:, ::-1]} if model.config.encoder else {}

  def run(base, tuned, hyper):
    def loss(tuned):
      logits = peft.apply(model, peft.Adapted(methods, tuned, hyper, base), tokens, mask, **inputs)
      return jnp.square(logits.astype(jnp.float32)).mean(), logits

    return jax.grad(loss, has_aux=True)(tuned) if gradient else loss(tuned)

  program = PROGRAMS.setdefault((model, str(section), gradient), jax.jit(run))
  return program(base, tuned, hyper)


def same(found, expected, atol=5e-6):
  close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=atol)
  jax.tree.map(close, found, expected)


def test_levels_are_the_published_ones():
  np.testing.assert_allclose(quantize.LEVELS, PUBLISHED, rtol=0, atol=3e-7)


@pytest.mark.parametrize("inputs", [64, 200])
def test_int8_is_within_half_a_step_of_each_channel(inputs):
  w = kernels(2, inputs, 24)
  parts = quantize.store("layers/x/kernel", w, "int8")
  assert parts["int8"].dtype == jnp.int8
  absmax = np.abs(w).max(1, keepdims=True)
  error = np.abs(quantize.dequantised(parts) - w)
  assert (error <= absmax / 254 * 1.0001).all()


@pytest.mark.parametrize("inputs", [64, 200])
def test_nf4_takes_the_nearest_level_of_each_block(inputs):
  w = np.asarray(kernels(2, inputs, 24))
  parts = quantize.store("layers/x/kernel", jnp.asarray(w), "nf4")
  assert parts["nf4"].shape == (2, inputs // 2, 24) and parts["nf4"].dtype == jnp.uint8
  found = np.asarray(quantize.dequantised(parts))
  for layer in range(2):
    for start in range(0, inputs, 64):
      block = w[layer, start : start + 64]
      absmax = np.abs(block).max(0)
      nearest = np.abs((block / absmax)[..., None] - quantize.LEVELS).argmin(-1)
      exact = quantize.LEVELS[nearest] * absmax
      restored = found[layer, start : start + 64]
      # What the 8 bits of the scales add: half a step of (largest - mean) / 127, below 1 %.
      assert np.abs(restored - exact).max() < 0.01 * absmax.max()
      assert np.linalg.norm(restored - block) < 0.11 * np.linalg.norm(block)


def test_double_quantisation_costs_an_eighth_of_a_byte_and_next_to_nothing_else():
  w = kernels(1, 1024, 128)
  parts = quantize.store("layers/x/kernel", w, "nf4")
  assert quantize.bits({"kernel": parts}) == pytest.approx(4.127, abs=1e-3)
  absmax = np.abs(np.asarray(w[0]).reshape(16, 64, 128)).max(1)
  groups = (absmax - absmax.mean()).reshape(-1, 256)
  found = parts["scale_mean"][0] + parts["scale_step"][0][:, None] * parts["scale"].reshape(-1, 256)
  bound = np.abs(groups).max(1, keepdims=True) / 254
  assert (np.abs(found - absmax.reshape(-1, 256)) <= bound * 1.001).all()


@pytest.mark.parametrize("form", FORMS)
def test_zeros_stay_zeros_and_other_leaves_stay_as_they_are(form):
  params = {"layers": {"up": {"kernel": jnp.zeros((1, 64, 3)), "bias": kernels(1, 3)}}}
  params = {"trunk": params, "head": {"kernel": kernels(4, 3)}}
  stored = quantize.quantised(params, form)
  assert quantize.find(tree.flatten(stored)) == ["trunk/layers/up/kernel"]
  same(quantize.dequantised(stored), params, 0)
  odd = {"layers": {"up": {"kernel": kernels(1, 63, 4)}}}
  assert quantize.quantised(odd, form) == odd


@pytest.mark.parametrize(
  ("name", "form"),
  [("llama", "nf4"), ("gpt2", "int8"), ("t5", "nf4"), ("bert", "int8")],
)
def test_it_computes_what_the_dequantised_weights_do(name, form):
  model, gradient = as_form(plain(name), form), name in ("llama", "gpt2")
  found, expected = (measure(m, SECTIONS[name], gradient) for m in (model, whole(model)))
  same(found, expected)


def test_unrolled_and_rematerialised_are_the_same():
  other = as_form(plain("llama"), "nf4", unroll=3, remat=True)
  found = measure(as_form(plain("llama"), "nf4"), SECTIONS["llama"])
  same(measure(other, SECTIONS["llama"]), found)


def test_bfloat16_computes_with_weights_rounded_once():
  bf16 = as_form(plain("llama"), "int8", dtype=jnp.bfloat16)
  cast = quantize.dequantised(bf16.params, jnp.bfloat16)
  rounded = as_form(bf16._replace(params=cast), None, dtype=jnp.bfloat16)
  section = {"name": "lora", "rank": 2}
  (_, found), (_, expected) = (measure(m, section, False) for m in (bf16, rounded))
  apart = (found - expected).astype(jnp.float32)  # XLA may leave a rounding out
  assert jnp.square(apart).mean() ** 0.5 < 0.02


@pytest.mark.full
def test_grouped_trials_share_one_kernel_and_no_stack_of_them_is_made():
  model, ranks = as_form(plain("llama"), "nf4"), (1, 3)
  laid = [tiny.lay(model, {"name": "lora", "rank": r}, seed=r, noise=0.1) for r in ranks]
  methods, _, _, base = laid[0]
  tuned, hyper = (tree.stack([one[i] for one in laid]) for i in (1, 2))
  tokens, _ = tiny.batch(2)

  def gradient(base, tuned, hyper):
    def loss(tuned):
      return jnp.square(
        peft.apply(model.model, peft.Adapted(methods, tuned, hyper, base), tokens)
      ).mean()

    return jax.grad(loss)(tuned)

  program = jax.jit(jax.vmap(gradient, (None, 0, 0))).lower(base, tuned, hyper).compile()
  together = program(base, tuned, hyper)
  alone = jax.jit(gradient)(base, *laid[0][1:3])
  same(tree.crop(jax.tree.map(lambda x: x[0], together), alone), alone)
  # 3 layers, or 2 trials, of a kernel as floats (or as codes) at once.
  sizes = "32,48|48,32|32,32|32,16"
  assert not re.search(rf"(f32|bf16)\[3,({sizes})\]|[fsu]\d+\[(2,3|3,2|2),({sizes})\]",
                       program.as_text())  # fmt: skip


def test_cached_decoding_gives_the_same_tokens():
  model = as_form(plain("llama"), "nf4")
  prompts = np.random.default_rng(0).integers(1, tiny.VOCABULARY, (2, 4))

  def complete(model):
    methods, tuned, hyper, base = tiny.lay(model, {"name": "lora", "rank": 2}, noise=0.1)
    run = lambda base, *overlay: generate.generate(
      model.model, peft.Adapted(methods, *overlay, base), prompts, np.ones_like(prompts, bool),
      max_new_tokens=4,
      stop_tokens=(0,), key=jax.random.key(0),
    )  # fmt: skip
    return jax.jit(run)(base, tuned, hyper)

  jax.tree.map(np.testing.assert_array_equal, complete(model), complete(whole(model)))


@pytest.mark.parametrize("form", FORMS)
def test_merging_starts_from_the_dequantised_weights(form):
  model = as_form(plain("gpt2"), form)
  merged = [
    peft.merge(peft.Adapted(methods, tuned, hyper, base))
    for methods, tuned, hyper, base in (
      tiny.lay(m, SECTIONS["gpt2"], noise=0.1) for m in (model, whole(model))
    )
  ]
  same(*merged)
  flat, dense = tree.flatten(model.params), tree.flatten(whole(model).params)
  for path in dense:
    np.testing.assert_allclose(quantize.weight(flat, path), dense[path], rtol=1e-6)
  with pytest.raises(KeyError):
    quantize.weight(flat, "trunk/nothing")


@pytest.mark.parametrize("form", FORMS)
def test_a_folder_is_quantised_layer_by_layer_as_outlined(form, tmp_path, monkeypatch):
  llama, put, sizes = plain("llama"), jax.device_put, []
  folder = str(hf.save(llama, llama.params, tmp_path / "llama"))

  def counted(x, *args, **options):
    sizes.extend(leaf.size for leaf in jax.tree.leaves(x) if leaf.dtype == jnp.float32)
    return put(x, *args, **options)

  monkeypatch.setattr(jax, "device_put", counted)
  found = hf.load(folder, quantize=form, dtype="bfloat16")
  monkeypatch.undo()
  c = llama.model.config
  assert max(sizes) == c.width * c.ffn, "a layer of the largest kernel"
  expected = quantize.quantised(llama.params, form)
  shapes = lambda t: jax.tree.map(lambda x: (x.shape, x.dtype), t)
  assert shapes(hf.outline(folder, quantize=form, dtype="bfloat16").params) == shapes(found.params)
  flat, wanted = tree.flatten(found.params), tree.flatten(expected)
  for path in flat:
    np.testing.assert_array_equal(flat[path], wanted[path].astype(flat[path].dtype))
  tree.fingerprint(found.params)


def test_both_halves_of_an_encoder_decoder_are_quantised():
  model = hf.outline(architecture=tiny.ARCHITECTURES["t5"], quantize="int8")
  found = quantize.find(tree.flatten(model.params))
  assert any(p.startswith("encoder/layers") for p in found)
  assert any(p.startswith("decoder/layers/cross") for p in found)
  assert model.model.config.encoder.quantize == "int8"


@pytest.mark.parametrize("method", ["full", "last_layers"])
def test_quantised_kernels_are_not_trained_in_place(method):
  with pytest.raises(UserError, match=f"{method}.*quantised"):
    tiny.lay(as_form(plain("llama"), "int8"), {"name": method})


@pytest.mark.parametrize("form", FORMS)
def test_shardings_cover_every_array(form):
  mesh = jax.make_mesh((1, 1, 2, 1, 2), sharding.AXES, (AxisType.Auto,) * 5)
  placed = tree.flatten(sharding.shardings(mesh, as_form(plain("llama"), form).params))
  assert placed[f"trunk/layers/attn/q_proj/kernel/{form}"].spec == P(None, "fsdp", "tensor")
  assert placed[f"trunk/layers/attn/o_proj/kernel/{form}"].spec == P(None, "tensor", "fsdp")
  assert not any(placed["trunk/layers/attn/q_proj/kernel/scale"].spec)


@pytest.mark.full
def test_the_cost_of_a_run_shows_what_is_saved():
  wide = tiny.ARCHITECTURES["llama"] | dict(hidden_size=128, intermediate_size=512)
  config, frozen, outside = (
    made_trials.complete({"name": "lora"}),
    {},
    4 * 2 * 61 * 128 + 4 * 7 * 128,
  )
  for form in (None, "int8"):
    params = hf.outline(architecture=wide, quantize=form).params
    frozen[form] = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(params)) - outside
  figures = cost.cost([with_config(made_trials.make(tiny.random(wide, quantize="nf4")), config)])
  frozen["nf4"] = figures["frozen_MB"] * 1e6 - outside
  assert frozen[None] / frozen["int8"] == pytest.approx(3.9, abs=0.1)
  assert frozen[None] / frozen["nf4"] == pytest.approx(7.75, abs=0.15)
  assert figures["quantised_base"].startswith("nf4, 4.1")
