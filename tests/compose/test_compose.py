"""Adapters composed after training: every result equals what its parts say it must be."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import made_trials, tiny
from support.random_runs import LORA, TOKENS, logits, make

from jaxtune import compose, peft, tree
from jaxtune.api.export import export
from jaxtune.compose import deltas, knockout, low_rank
from jaxtune.errors import UserError
from jaxtune.models import hf
from jaxtune.runs.finished import Run, keep
from jaxtune.runs.trial import make_methods


def close(one, other, atol=1e-4):
  np.testing.assert_allclose(one, other, atol=atol, rtol=0)


def changed(run: Run, delta: dict) -> np.ndarray:
  """Logits of the base with weights changed by hand."""
  flat = dict(tree.flatten(run.pretrained.params))
  flat |= {path: flat[path] + x for path, x in delta.items()}
  return np.asarray(run.pretrained.model.apply({"params": tree.unflatten(flat)}, TOKENS))


def test_stacked_loras_add_up(llama):
  runs = [make(llama, LORA, seed) for seed in (0, 1)]
  both = compose.stack(runs)
  assert list(compose.sections(both)) == ["lora", "lora_2"]
  sums = {path: x + deltas.of(runs[1])[path] for path, x in deltas.of(runs[0]).items()}
  close(logits(both), changed(runs[0], sums))


def test_a_stack_on_a_stack_keeps_every_part(llama):
  runs = [make(llama, LORA, seed) for seed in range(3)]
  every = compose.stack([compose.stack(runs[:2]), runs[2]])
  assert list(compose.sections(every)) == ["lora", "lora_2", "lora_3"]
  parts = list(map(deltas.of, runs))
  close(logits(every), changed(runs[0], {path: sum(x[path] for x in parts) for path in parts[0]}))


def test_noise_of_training_is_no_part_of_what_is_composed(llama):
  noisy = make(llama, LORA)
  full = made_trials.complete(LORA, {"regularize.dropout": 0.1})
  methods = make_methods(full, ())
  hyper = tree.combine(noisy.adapted.hyper, peft.init(
    jax.random.key(0), methods[1:], peft.find_sites(llama.model), llama.params).hyper)  # fmt: skip
  adapted = noisy.adapted._replace(methods=methods, hyper=hyper)
  noisy = noisy._replace(config=full, adapted=adapted)
  for made in (compose.average([noisy, noisy]), low_rank.concatenate([noisy, noisy], [0.5, 0.5])):
    assert [m.name for m in made.adapted.methods] == ["lora"]
    assert not any("regularize" in path for path in tree.flatten(made.adapted.hyper))
    close(logits(made), logits(noisy))


@pytest.mark.parametrize("name", ["dpo", "ppo"])
def test_what_an_objective_reads_stays_that_of_the_first(llama, name, tmp_path):
  numbers = {"dpo": {"beta": 0.5}, "ppo": {"kl": 0.25}}[name]
  runs = [make(llama, LORA, i, objective={"name": name} | numbers) for i in (0, 1)]
  plain = make(llama, LORA, 2)
  own = {p: x for p, x in flat(runs[0]).items() if "/objective/" in p}
  assert len(own) > (0 if name == "dpo" else 1)
  made = [
    compose.stack(runs),
    compose.average([runs[0], plain]),
    low_rank.concatenate([runs[0], plain]),
    low_rank.truncate(runs[0], 2)[0],
  ]
  for i, run in enumerate(made):
    keep(run, tmp_path / str(i))
    assert {p: x.tolist() for p, x in flat(run).items() if p in own} == {
      p: x.tolist() for p, x in own.items()
    }
  assert not any("/objective/" in p for p in flat(compose.average([plain, runs[0]])))


def flat(run: Run) -> dict:
  return tree.flatten({**run.adapted.tuned, "hyper": run.adapted.hyper})


def scaled(run: Run, factor: float) -> Run:
  tuned = jax.tree.map(lambda x: x * factor, run.adapted.tuned)
  return run._replace(adapted=run.adapted._replace(tuned=tuned))


def classifier(seed: int, fresh: tuple[str, ...] = ("head/out/kernel",)) -> Run:
  pretrained = tiny.make("llama", head="classify", labels=3)
  pretrained = pretrained._replace(fresh=fresh)
  full = made_trials.complete(LORA) | {"objective": {"name": "classify"}}
  methods = make_methods(full, pretrained.fresh)
  sites = peft.find_sites(pretrained.model)
  adapted = peft.init(jax.random.key(0), methods, sites, pretrained.params)
  adapted = adapted._replace(tuned=tiny.perturb(adapted.tuned, seed, 0.1))
  return Run(Path(f"c{seed}"), full, pretrained, adapted, ("a", "b", "c"), ())


@pytest.mark.parametrize("how", ["cat", "linear"])
@pytest.mark.parametrize("fresh", [("head/out/kernel",), ()], ids=["new", "the folder's own"])
def test_heads_are_added_as_deltas_are(how, fresh):
  runs = [classifier(1, fresh), classifier(2, fresh)]
  if how == "cat":
    made = low_rank.concatenate(runs, [0.5, 0.25])
  else:
    made, _ = deltas.merge(runs, 32, [0.5, 0.25])
  parts = list(map(deltas.of, runs))
  sums = {path: 0.5 * parts[0][path] + 0.25 * parts[1][path] for path in parts[0]}
  assert "head/out/kernel" in sums and "lora" in compose.sections(made)
  for path in fresh:  # what a new head was drawn as is no part of the sum
    sums[path] = sums[path] - tree.flatten(runs[0].pretrained.params)[path]
  assert not any("head" in path for path in tree.flatten(made.adapted.tuned["peft"]))
  close(logits(made), changed(made, sums), 2e-4)


def test_a_reference_that_is_lost_is_told(llama, capsys):
  run = make(llama, LORA | {"start": "runs/sft"})
  run.config["objective"] = made_trials.complete(LORA, objective={"name": "dpo"})["objective"]
  low_rank.truncate(run, 1)
  assert "compares with runs/sft, from which its training" in capsys.readouterr().err
  low_rank.truncate(run._replace(config=run.config | {"objective": {"name": "sft"}}), 1)
  assert capsys.readouterr().err == ""


def test_a_change_of_tied_embeddings_is_no_lora(llama3, tmp_path):
  assert llama3.model.config.tied
  flat = tree.flatten(llama3.params)
  flat["embed/embedding"] = flat["embed/embedding"] + 0.1
  hf.save(llama3, tree.unflatten(flat), tmp_path)
  run = make(llama3, LORA)
  run.config["model"]["path"] = str(tmp_path)
  with pytest.raises(UserError, match="score the logits too"):
    low_rank.extract(run, str(tmp_path), 2)
  with pytest.raises(UserError, match="score the logits too"):
    deltas.of(make(llama3, {"name": "full"}))
  deltas.of(make(llama3, LORA | {"targets": ["embed"]}))  # of the lookup alone


def test_a_gated_lora_is_not_cut(llama):
  with pytest.raises(UserError, match="no plain LoRA"):
    low_rank.truncate(make(llama, LORA | {"gate": True}), 1)


def test_a_sum_of_more_ranks_than_a_weight_has_is_exact(llama):
  wide = {"name": "lora", "rank": 16, "targets": ["k_proj"]}
  runs = [make(llama, wide, 0), make(llama, wide, 1)]
  made = low_rank.concatenate(runs, [1, 1])
  parts = list(map(deltas.of, runs))
  assert compose.sections(made)["lora"]["rank"] == 16
  close(logits(made), changed(made, {path: parts[0][path] + parts[1][path] for path in parts[0]}))


def test_how_adapters_were_trained_does_not_keep_them_from_an_average(llama):
  one, two = make(llama, LORA), make(llama, LORA | {"b_rate": 4.0, "dropout": 0.1}, 1)
  made = compose.average([one, two])
  jax.tree.map(
    lambda x, a, b: close(x, (a + b) / 2, 1e-6),
    made.adapted.tuned,
    one.adapted.tuned,
    two.adapted.tuned,
  )


def test_an_average_has_weights_of_sum_one(llama):
  with pytest.raises(UserError, match="whose sum is 2: expected 1"):
    compose.average([make(llama, LORA), make(llama, LORA, 1)], [1, 1])


def test_adapters_that_compute_something_else_are_kept_apart(llama):
  runs = [make(llama, {"name": "adapter", "width": 4, "placement": placement})
          for placement in ("pfeiffer", "parallel")]  # fmt: skip
  with pytest.raises(UserError, match="options of one"):
    compose.average(runs)


def test_ties_with_an_adapter_that_changes_nothing(llama):
  still = make(llama, LORA)
  still = scaled(still, 0.0)
  other = make(llama, LORA, 1)
  found = deltas.combine([still, other], [1, 1], "ties", density=1.0)
  for path, x in deltas.of(other).items():
    close(found[path], x, 1e-6)


def test_a_lora_over_a_prefix_is_their_stack(llama):
  prefix, lora = make(llama, {"name": "prefix", "length": 3}), make(llama, LORA)
  made = compose.stack([prefix, lora])
  laid = tiny.lay(llama, {"name": "stack", "prefix": {"length": 3}, "lora": LORA})
  deltas_ = tree.combine(prefix.adapted.tuned["peft"], lora.adapted.tuned["peft"])
  expected = tiny.forward(
    llama, (laid[0], {"params": {}, "peft": deltas_}, laid[2], laid[3]), TOKENS
  )
  close(logits(made), expected, 1e-6)


def test_a_stack_of_two_full_models_is_refused(gpt2):
  runs = [make(gpt2, {"name": "bitfit"}, seed) for seed in (0, 1)]
  with pytest.raises(UserError, match="both trained .*bias"):
    compose.stack(runs)
  last = {"name": "last_layers"}
  for first, second in ((last, last), ({"name": "full"}, last), (last, {"name": "norms"})):
    with pytest.raises(UserError, match="both trained trunk/layers/"):
      compose.stack([make(gpt2, first, 0), make(gpt2, second, 1)])
  with pytest.raises(UserError, match="two methods train trunk/layers/.*, one without effect"):
    make(gpt2, {"name": "stack", "a": last, "b": last})


@pytest.mark.parametrize("section", [{"name": "prefix", "length": 3}, {"name": "bitfit"}])
def test_an_average_is_of_every_array(gpt2, section):
  one, two = (make(gpt2, section, seed) for seed in (0, 1))
  made = compose.average([one, two], [0.25, 0.75])
  mean = jax.tree.map(lambda x, y: 0.25 * x + 0.75 * y, one.adapted.tuned, two.adapted.tuned)
  jax.tree.map(lambda a, b: close(a, b, 1e-6), made.adapted.tuned, mean)


@pytest.mark.parametrize(
  ("other", "words"),
  [
    (LORA | {"rank": 2}, "expected the same shape"),
    (LORA | {"alpha": 7.0}, "scale differs"),
    ({"name": "prefix"}, "different methods"),
  ],
)
def test_unlike_adapters_have_no_average(llama, other, words):
  with pytest.raises(UserError, match=words):
    compose.average([make(llama, LORA), make(llama, other, 1)])


def test_other_bases_are_refused(llama):
  other = llama._replace(params=tiny.perturb(llama.params, 5))
  with pytest.raises(UserError, match="another base"):
    compose.stack([make(llama, LORA), make(other, LORA, 1)])
  with pytest.raises(UserError, match=r"has the labels \['a'\], run0 has \[\]: expected the same"):
    compose.stack([make(llama, LORA), make(llama, LORA, 1)._replace(labels=("a",))])
  with pytest.raises(UserError, match="at least two"):
    compose.stack([make(llama, LORA)])
  with pytest.raises(UserError, match="3 weights for 2"):
    low_rank.concatenate([make(llama, LORA), make(llama, LORA, 1)], [1, 2, 3])


def test_concatenation_is_the_exact_sum(llama):
  """Of LoRAs with other ranks, scales, targets and starts."""
  runs = [make(llama, LORA), make(llama, {"name": "lora", "rank": 2, "initialise": "pissa"}, 1)]
  made = low_rank.concatenate(runs, [0.5, -2.0])
  assert compose.sections(made)["lora"]["ranks"]
  one, two = map(deltas.of, runs)
  sums = {p: 0.5 * one.get(p, 0) - 2.0 * two.get(p, 0) for p in one.keys() | two.keys()}
  close(logits(made), changed(made, sums))


def test_a_linear_merge_of_full_rank_is_task_arithmetic(llama):
  runs = [make(llama, LORA), make(llama, {"name": "loha", "rank": 2}, 1)]
  made, kept = deltas.merge(runs, 32, [0.7, 0.4])
  sums = deltas.combine(runs, [0.7, 0.4])
  close(logits(made), changed(made, sums), 2e-4)
  assert min(kept.values()) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (0.3, 2.0, -1.1)])
def test_ties_against_peft(weights):
  """Trim, elect, disjoint merge, on flat vectors.

  PEFT elects by the plain sum and divides by a count; given vectors that are multiplied by their
  weights already, it elects by the weighted sum, as the paper's generalisation and ours do.
  """
  import torch
  from peft.utils import merge_utils

  rng = np.random.default_rng(0)
  vectors = [rng.standard_normal((7, 9)).astype(np.float32) for _ in range(3)]
  trimmed = [deltas.trim({"x": x}, 0.4)["x"] for x in vectors]
  weighted = [torch.tensor(w * x) for w, x in zip(weights, vectors, strict=True)]
  theirs = merge_utils.ties(weighted, torch.ones(3), 0.4)
  kept = torch.stack([merge_utils.prune(x, 0.4, "magnitude") for x in weighted])
  agree = merge_utils.calculate_majority_sign_mask(kept) & (kept != 0)
  total = (agree * torch.tensor(weights).abs()[:, None, None]).sum(0)
  expected = theirs * agree.sum(0) / total.clamp(min=1e-12)
  close(deltas.elect_signs(weights, trimmed), expected.numpy(), 1e-6)


def test_cat_is_the_sum_that_peft_makes(llama, tmp_path):
  """By default every weight is 1; PEFT adds the same adapters with weights of 1."""
  import transformers
  from peft import PeftModel

  base = hf.load(str(hf.save(llama, llama.params, tmp_path / "base")))
  runs = [make(base, LORA | {"alpha": alpha}, i) for i, alpha in enumerate((5.0, 2.0))]
  for run, name in zip(runs, "ab", strict=True):
    export(base, run.adapted, tmp_path / name)
  model = transformers.AutoModelForCausalLM.from_pretrained(base.folder)
  model = PeftModel.from_pretrained(model, tmp_path / "a", adapter_name="a")
  model.load_adapter(tmp_path / "b", "b")
  model.add_weighted_adapter(["a", "b"], [1.0, 1.0], "both", combination_type="cat")
  model.set_adapter("both")
  made = low_rank.concatenate(runs)
  close(logits(made), tiny.torch_logits(model.eval(), TOKENS))
  one, two = map(deltas.of, runs)
  means = deltas.combine(runs)  # task arithmetic is a mean unless weights are given
  for path, x in deltas.of(made).items():
    close(x, one[path] + two[path], 1e-5)
    close(means[path], (one[path] + two[path]) / 2, 1e-6)


def test_dare_keeps_the_mean():
  vector = {"x": np.ones((300, 300), np.float32)}
  dropped = deltas.drop(vector, 0.3, 0)["x"]
  assert dropped.mean() == pytest.approx(1, abs=0.02)
  assert (dropped != 0).mean() == pytest.approx(0.3, abs=0.01)


def test_dare_drops_other_entries_of_every_run_and_tensor(llama):
  run, other = make(llama, LORA), make(llama, LORA, 1)
  found, whole = deltas.combine([run, run], how="dare", density=0.5), deltas.of(run)
  for path, x in found.items():  # by no run, by one of them, by both
    times, shares = np.unique(np.round(x / whole[path]), return_counts=True)
    np.testing.assert_array_equal(times, [0, 1, 2])
    np.testing.assert_allclose(shares / x.size, [0.25, 0.5, 0.25], atol=0.03)
  ones = deltas.drop({"a": np.ones((9, 9)), "b": np.ones((9, 9))}, 0.5, 0)
  assert (ones["a"] != ones["b"]).any()
  ways = ("linear", "ties", "dare", "dare_ties")
  every = [deltas.combine([run, other], [2.0, 1.0], how, density=1.0) for how in ways]
  linear, ties, dare, dare_ties = every
  for path in linear:  # nothing is trimmed or dropped
    close(dare_ties[path], ties[path], 1e-6)
    close(dare[path], linear[path], 1e-6)
    assert np.abs(ties[path] - linear[path]).max() > 1e-3


def test_truncation_is_the_best_of_its_rank(llama):
  run = make(llama, LORA)
  same, kept = low_rank.truncate(run, 3)
  close(logits(same), logits(run))
  assert min(kept.values()) == pytest.approx(1, abs=1e-6)
  cut, kept = low_rank.truncate(run, 1)
  whole, part = deltas.of(run), deltas.of(cut)
  for path, x in whole.items():
    u, s, v = np.linalg.svd(x)
    best = s[:, :1, None] * u[:, :, :1] @ v[:, :1]
    close(part[path], best, 1e-5)
    assert kept[path.rsplit("/", 1)[0]] == pytest.approx((s[:, 0] ** 2).sum() / (s**2).sum(), 1e-4)
  with pytest.raises(UserError, match="rank is 4, expected 1 to 3"):
    low_rank.truncate(run, 4)
  with pytest.raises(UserError, match="rank is 3, expected 1 to 2"):
    low_rank.truncate(make(llama, LORA | {"rank": 2}), 3)


def test_a_sum_of_factors_is_cut_where_weights_are_smaller_than_its_rank(llama):
  """PiSSA's change is a product of twice its rank."""
  run = make(llama, {"name": "lora", "rank": 16, "initialise": "pissa"})
  most = max(a.shape[-1] for a, _ in low_rank.factors(run).values())
  made, _ = low_rank.truncate(run, most)
  close(logits(made), logits(run), 1e-3)


def test_a_site_of_a_lower_rank_keeps_its_own(llama):
  run = make(llama, LORA | {"ranks": {"down_proj": 1}})
  cut, kept = low_rank.truncate(run, 2)
  whole, part = deltas.of(run), deltas.of(cut)
  for path in (path for path in whole if "down_proj" in path):
    close(part[path], whole[path], 1e-5)
    assert kept[path.rsplit("/", 1)[0]] == pytest.approx(1, abs=1e-6)


def test_loras_of_positions_are_added(gpt2):
  runs = [make(gpt2, LORA | {"targets": ("positions", "q_proj")}, seed) for seed in (0, 1)]
  made, parts = low_rank.concatenate(runs, [0.5, 1.0]), list(map(deltas.of, runs))
  for path, x in deltas.of(made).items():
    close(x, 0.5 * parts[0][path] + parts[1][path], 1e-5)


def test_a_lora_is_extracted_from_two_checkpoints(llama, tmp_path):
  run = make(llama, LORA)
  params = peft.merge(run.adapted)
  folder = hf.save(llama, params, tmp_path / "tuned")
  run.config["model"] = {"path": str(folder)}
  made, kept = low_rank.extract(run, str(folder), 3)
  close(logits(made), logits(run), 3e-4)
  assert min(kept.values()) > 0.999
  with pytest.raises(UserError, match="no plain LoRA"):
    low_rank.factors(make(llama, {"name": "prefix"}))
  path = "trunk/layers/mlp/up_proj/kernel"
  broken = tree.combine(params, {"trunk": {"layers": {"mlp": {"up_proj": {"kernel": tree.flatten(
    params)[path].at[0, 0, 0].set(jnp.nan)}}}}})  # fmt: skip
  with pytest.raises(UserError, match="NaN|finite"):
    low_rank.extract(run, str(hf.save(llama, broken, tmp_path / "broken")), 3)


def test_a_lora_is_extracted_from_two_classifiers(tmp_path):
  run = classifier(1)
  params = peft.merge(run.adapted)
  folder = hf.save(run.pretrained, params, tmp_path / "tuned")
  run.config["model"] = {"path": str(folder)}
  made, _ = low_rank.extract(run, str(folder), 3)
  close(logits(made), logits(run), 3e-4)


def test_a_checkpoint_is_not_rounded_to_the_type_of_the_base(llama, tmp_path):
  """And leaves that differ from the base by its rounding alone have not changed."""
  place = str(hf.save(llama, llama.params, tmp_path / "base"))
  run = make(hf.load(place, dtype="bfloat16"), LORA)
  run.config["model"] = {"path": place, "dtype": "bfloat16"}
  delta, params = deltas.of(run), tree.flatten(llama.params)
  params |= {path: params[path] + x for path, x in delta.items()}
  folder = hf.save(llama, tree.unflatten(params), tmp_path / "tuned")
  made, _ = low_rank.extract(run, str(folder), 32)
  base, found = tree.flatten(run.pretrained.params), deltas.of(made)
  assert found.keys() == delta.keys()
  for path, x in found.items():
    close(x, params[path] - base[path].astype(jnp.float32), 1e-5)


def test_a_checkpoint_has_the_head(tmp_path):
  run = classifier(1)
  plain = tiny.make("llama")
  folder = hf.save(plain, plain.params, tmp_path / "plain")
  run.config["model"] = {"path": str(folder)}
  with pytest.raises(UserError, match="no head 'classify', as it lacks head/out/kernel"):
    low_rank.extract(run, str(folder), 3)


@pytest.mark.parametrize("combine", [low_rank.concatenate, deltas.combine, compose.average])
def test_weights_are_finite_numbers(llama, combine):
  runs = [make(llama, LORA), make(llama, LORA, 1)]
  for weights in ([np.nan, 1.0], [np.inf, 1.0], ["1", 1.0], [1e31, 1.0]):
    with pytest.raises(UserError, match=r"weights\[0\] is .*, expected"):
      combine(runs, weights)
  huge = [scaled(run, 1e12) for run in runs]
  if combine != compose.average:
    with pytest.raises(UserError, match="sum of the adapters: .* holds NaN or infinity"):
      combine(huge, [1e30, 1.0])


def test_a_change_of_norms_is_no_lora(llama):
  run = make(llama, {"name": "norms"})
  with pytest.raises(UserError, match="no LoRA can hold"):
    low_rank.of_delta(run, deltas.of(run), 2)
  t5 = make(tiny.make("t5"), LORA | {"targets": ["q_proj"]})
  biases = {"encoder/relative/embedding": np.ones((8, 4))}
  with pytest.raises(UserError, match="encoder/relative/embedding has changed .* no LoRA can hold"):
    low_rank.of_delta(t5, biases, 2)


def test_a_change_of_the_head_alone_is_no_lora():
  run, head = classifier(1), {"head/out/kernel": np.ones((32, 3))}
  for delta, words in ((head, "only the head differs"), ({}, "they are equal")):
    with pytest.raises(UserError, match=words):
      low_rank.of_delta(run, delta, 2)


def test_a_part_knocked_out_is_not_there(gpt2):
  run = make(gpt2, {"name": "stack", "lora": LORA, "bitfit": {}, "prefix": {"length": 2}})
  assert knockout.removable(run) == ["bitfit", "lora", "prefix"]
  rest = knockout.without(run, "bitfit")
  assert not tree.flatten(rest.adapted.tuned["params"])
  stack = {"name": "stack", "lora": LORA, "prefix": {"length": 2}}
  methods, _, hyper, base = tiny.lay(gpt2, stack)
  laid = methods, {"params": {}, "peft": run.adapted.tuned["peft"]}, hyper, base
  close(logits(rest), tiny.forward(gpt2, laid, TOKENS), 1e-6)
  assert not np.allclose(logits(rest), logits(run), atol=1e-2)
  with pytest.raises(UserError, match="no method 'lorra'"):
    knockout.without(run, "lorra")
  with pytest.raises(UserError, match="one method"):
    knockout.removable(make(gpt2, LORA))
