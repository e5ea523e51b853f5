"""Properties of the tree functions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtune import tree


def sample(seed=0, rank=2):
  rng = np.random.default_rng(seed)
  make = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)
  return {"x": {"a": make(3, rank), "b": make(rank, 5)}, "y": {"scale": make()}}


def equal(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  jax.tree.map(np.testing.assert_array_equal, a, b)


def test_unflatten_undoes_flatten():
  assert set(tree.flatten(sample())) == {"x/a", "x/b", "y/scale"}
  equal(tree.unflatten(tree.flatten(sample())), sample())


@pytest.mark.parametrize("chosen", [lambda p: p == "x/a", lambda p: True, lambda p: False])
def test_combine_undoes_partition(chosen):
  inside, outside = tree.partition(sample(), chosen)
  assert not set(tree.flatten(inside)) & set(tree.flatten(outside))
  assert all(map(chosen, tree.flatten(inside)))
  equal(tree.combine(inside, outside), sample())
  equal(tree.combine(outside, inside), sample())


def test_combine_keeps_the_last_leaf():
  equal(tree.combine(sample(0), sample(1)), sample(1))
  assert tree.combine() == {} and tree.combine({}, {}) == {}


def test_size():
  assert tree.size(sample(rank=2)) == 3 * 2 + 2 * 5 + 1
  assert tree.size(jax.eval_shape(sample)) == 17 and tree.size({}) == 0


def test_crop_undoes_stack():
  trees = [sample(rank, rank) for rank in (1, 4, 2)]
  stacked = tree.stack(trees)
  assert {p: x.shape for p, x in tree.flatten(stacked).items()} == {
    "x/a": (3, 3, 4), "x/b": (3, 4, 5), "y/scale": (3,),
  }  # fmt: skip
  for i, one in enumerate(trees):
    equal(tree.crop(jax.tree.map(lambda x, i=i: x[i], stacked), one), one)
  assert not stacked["x"]["a"][0, :, 1:].any() and not stacked["x"]["b"][0, 1:].any()


def test_stack_pads_masks_with_false():
  stacked = tree.stack([{"mask": jnp.ones((2, n), bool)} for n in (1, 3)])["mask"]
  assert stacked.dtype == bool and stacked.sum() == 2 * 1 + 2 * 3


def test_stack_refuses_other_ranks_and_structures():
  with pytest.raises(ValueError):
    tree.stack([{"a": jnp.ones(2)}, {"a": jnp.ones((2, 2))}])
  with pytest.raises(ValueError):
    tree.stack([{"a": jnp.ones(2)}, {"b": jnp.ones(2)}])


def test_fingerprint_is_of_names_types_shapes_and_values():
  base = tree.fingerprint(sample())
  assert tree.fingerprint(sample()) == base
  assert tree.fingerprint(jax.tree.map(np.asarray, sample())) == base
  reordered = dict(reversed(sample().items()))
  assert tree.fingerprint(reordered) == base
  others = [
    sample(1),
    {"z" if k == "x" else k: v for k, v in sample().items()},
    jax.tree.map(lambda x: x.astype(jnp.bfloat16), sample()),
    jax.tree.map(lambda x: x.T, sample()),
    jax.tree.map(lambda x: x[..., None], sample()),
  ]
  assert len({base, *map(tree.fingerprint, others)}) == len(others) + 1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int32", "int8", "bool"])
def test_fingerprint_sees_every_element(dtype):
  """A change of one element, of its sign alone, and a swap of two are all seen."""
  values = np.arange(8).reshape(2, 4)
  leaf = jnp.asarray(values % 2 == 0 if dtype == "bool" else values + 1, dtype)
  seen = [tree.fingerprint({"a": leaf})]
  flips = [~leaf if dtype == "bool" else -leaf]
  for i in np.ndindex(*leaf.shape):
    seen += [tree.fingerprint({"a": leaf.at[i].set(flip[i])}) for flip in flips]
  seen.append(tree.fingerprint({"a": leaf.at[0, 0].set(leaf[0, 1]).at[0, 1].set(leaf[0, 0])}))
  swap = jnp.flip(leaf, 0)
  seen.append(tree.fingerprint({"a": swap}))
  assert len(set(seen)) == len(seen) - (dtype == "bool")  # bool: both rows are the same


def test_fingerprint_sees_two_signs_at_once():
  leaf = jnp.arange(1.0, 65.0)
  pairs = [leaf.at[i].multiply(-1).at[j].multiply(-1) for i in range(16) for j in range(i)]
  assert len({tree.fingerprint({"a": x}) for x in pairs}) == len(pairs)


@pytest.mark.parametrize("shape", [(8, 4), (8, 2**10, 2**6)], ids=["small", "large"])
def test_fingerprint_of_a_sharded_array_is_the_same(shape):
  """Also of large ones, which the devices hash where they are."""
  mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
  leaf = jax.random.normal(jax.random.key(0), shape)
  spec = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "data"))
  flat = np.asarray(leaf).ravel()
  expected = tree._hashes(flat, np.arange(flat.size, dtype=np.uint32))
  assert tree._digest(jax.device_put(leaf, spec)) == tree._digest(leaf) == expected
