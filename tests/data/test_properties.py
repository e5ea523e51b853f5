"""What holds of any data: against plain Python that does the same one example at a time."""

from __future__ import annotations

import math
from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import example as case
from hypothesis import strategies as st

from jaxtune import data
from jaxtune.data import EncodeOptions, divide, mix, padding
from jaxtune.data.batches import arrange, batch, batches, join, sample
from jaxtune.data.encode import text
from jaxtune.data.encode.text import SHORTEST_TAIL
from jaxtune.data.pack import pack
from jaxtune.data.prompts import encode_prompts
from jaxtune.data.split import Split
from jaxtune.data.templates import Example
from jaxtune.errors import UserError

PAD, BOS, EOS = 0, 1, 2
texts = st.text(st.sampled_from("ab \né猫"), max_size=12)
seeds = st.integers(-(2**31), 2**31 - 1)


def example(prompt, answers, number=0):
  return Example(prompt, answers, {"n": number}, f"f:{number}")


# Tokenising: what is trained is what inference sees, and nothing but the answer.


@case(
  pairs=[("abcdef", "a"), ("é", "b")],
  around=(True, True), start=(0,), most=5, too_long="truncate",
)  # fmt: skip
@given(
  pairs=st.lists(st.tuples(st.none() | texts, texts), max_size=8),
  around=st.tuples(st.booleans(), st.booleans()),
  start=st.sampled_from([(), (0,), (0, 5)]),
  most=st.none() | st.integers(2, 40),
  too_long=st.sampled_from(["skip", "truncate"]),
)
def test_tokens_masks_and_weights(make_tokenizer, pairs, around, start, most, too_long):
  pairs = [(prompt or "", answer) if start else (prompt, answer) for prompt, answer in pairs]
  tokenizer = make_tokenizer(*around)
  some = [example(prompt, [answer, "other"], n) for n, (prompt, answer) in enumerate(pairs)]
  split, counts = text.encode(
    tokenizer,
    some,
    EncodeOptions(decoder_start=start, max_length=most, too_long=too_long, no_target="skip"),
  )
  plain = lambda text: tokenizer(text, add_special_tokens=False).input_ids
  front, behind = [BOS] * around[0], [EOS] * around[1]
  expected, cut, skipped = [], 0, Counter()
  for n, (prompt, answer) in enumerate(pairs):
    assert len(plain(answer)) == len(answer.encode()), "a token is a byte"
    asked = front + plain(prompt or "") + (behind if start else [])
    ids = [*(start or asked), *plain(answer), EOS]
    first = 1 if prompt is None else max(len(start or asked), 1)
    long = most is not None and max(len(ids), len(asked) if start else 0) > most
    cut += long and too_long == "truncate"
    if long and too_long == "skip":
      skipped["too_long"] += 1
      continue
    if start and most is not None and len(asked) > most:
      asked = asked[: most - 1] + asked[-1:]
    if not answer.strip() or first >= len(ids[:most]):
      skipped["no_target"] += 1
      continue
    expected.append((n, asked, ids[:most], first))
  assert (counts["kept"], counts["truncated"], counts["skipped"]) == (len(expected), cut, skipped)
  _padded(split, "tokens", "mask", [ids for _, _, ids, _ in expected], most)
  if start:
    _padded(split, "inputs", "inputs_mask", [asked for _, asked, _, _ in expected], most)
  for row, (n, asked, ids, first) in enumerate(expected):
    trained = [0.0] * first + [1.0] * (len(ids) - first)
    weights = split.arrays["weights"][row]
    assert weights[: len(ids)].tolist() == trained and not weights[len(ids) :].any()
    is_plain = pairs[n][0] is None
    assert split.prompts[row] == ([] if is_plain else asked)
    assert split.references[row] == ([] if is_plain else [pairs[n][1], "other"])
    assert split.where[row] == f"f:{n}" and split.rows[row] == {"n": n}
    if not is_plain and most is None:
      assert encode_prompts(tokenizer, [pairs[n][0]], whole=bool(start)) == [asked]
      assert start or ids[: len(asked)] == asked, "training begins as generation will"
  assert counts["tokens"] == sum(len(ids) for _, _, ids, _ in expected)
  assert counts["trained_tokens"] == sum(len(ids) - first for _, _, ids, first in expected)
  assert counts["longest"] == max((len(ids) for _, _, ids, _ in expected), default=0)


def _padded(split, name, mask, rows, most):
  longest = math.ceil(max(map(len, rows), default=0) / 8) * 8
  width = longest if most is None else min(longest, most)
  array = split.arrays[name]
  assert array.shape == split.arrays[mask].shape == (len(rows), width) and array.dtype == np.int32
  for row, real, ids in zip(array.tolist(), split.arrays[mask].tolist(), rows, strict=True):
    assert row == ids + [PAD] * (width - len(ids))
    assert real == [True] * len(ids) + [False] * (width - len(ids))


@given(st.lists(st.integers(1, 90), min_size=1, max_size=4), st.integers(2, 40))
def test_chunks(tokenizer, lengths, most):
  """Windows follow each other without a gap; only a tail that is too short is left out."""
  written = ["".join(chr(97 + i % 26) for i in range(n)) for n in lengths]
  windows = [  # a line break stands for the stop token
    ((text + "\n")[first : first + most], len(text) < most)
    for text in written
    for first in range(0, len(text) + 1, most)
  ]
  shortest = min(SHORTEST_TAIL, most)
  kept = [window for window, whole in windows if whole or len(window) >= shortest]
  assume(all(len(window) > 1 for window in kept))
  documents = [example(None, [text]) for text in written]
  split, counts = text.encode(
    tokenizer, documents, EncodeOptions(max_length=most, too_long="chunk")
  )
  rows = zip(split.arrays["tokens"], split.arrays["mask"], strict=True)
  found = [tokenizer.decode(row[real]) for row, real in rows]
  assert found == [window.replace("\n", "</s>") for window in kept]
  assert counts["skipped"].get("short_tail", 0) == len(windows) - len(kept)
  assert (split.arrays["weights"][:, 0] == 0).all()
  assert split.arrays["weights"].sum() == split.arrays["mask"].sum() - len(kept)


# Splits: a row's place hangs on the row.


cell = st.sampled_from(["x", " X", "x  y", "z", "", None, 1, 2.5, ["x", "y"], ["x y"], {"a": "x"}])
tables = st.lists(st.fixed_dictionaries({"a": cell, "b": cell}), min_size=2, max_size=30)
sizes = st.floats(0.05, 0.95) | st.integers(1, 12)


def _examples(rows):
  return [Example(f"p{n}", ["a"], row, f"f:{n}") for n, row in enumerate(rows)]


def _key(value):
  """Says which cells count as equal."""
  if isinstance(value, list):
    return tuple(map(_key, value))
  if isinstance(value, dict):
    return "{}", tuple(sorted((key, _key(one)) for key, one in value.items()))
  return None if value is None else " ".join(str(value).casefold().split())


def _content(row):
  return tuple(sorted((name, _key(one)) for name, one in row.items() if one is not None))


@given(tables, sizes, seeds, st.randoms(use_true_random=False))
def test_splits(rows, size, seed, random):
  some = _examples(rows)
  try:
    rest, drawn = divide.draw(some, size, "test", seed)
  except UserError:
    assume(False)
  side = {one.where: True for one in drawn} | {one.where: False for one in rest}
  assert len(side) == len(rest) + len(drawn) == len(rows), "each is in one of the two"
  for part in (rest, drawn):
    assert [one for one in some if one in part] == part, "in the order of the file"
  places = defaultdict(set)
  for one in some:
    places[_content(one.row)].add(side[one.where])
  assert all(len(found) == 1 for found in places.values()), "equal rows stay together"
  # In another order, by another template, with the columns in another order, beside other rows.
  other = [
    one._replace(prompt=None, answers=[], row={"c": 1}, source=dict(reversed(one.row.items())))
    for one in random.sample(some, len(some))
  ]
  again = divide.draw(other, size, "test", seed)[1]
  assert {one.where for one in again} == {one.where for one in drawn}
  if size < 1:
    more = divide.draw([*some, *_examples([{"new": n} for n in range(5)])], size, "test", seed)[1]
    assert [one.where for one in more if "new" not in one.row] == [one.where for one in drawn]
  else:
    copies = Counter(_content(one.row) for one in drawn)
    assert size <= len(drawn) and any(len(drawn) - count < size for count in copies.values())


@given(tables, st.integers(1, 40), seeds)
def test_limits(rows, limit, seed):
  some = _examples(rows)
  kept = divide.limited(some, limit, seed)
  assert len(kept) == min(limit, len(some)) and [one for one in some if one in kept] == kept
  fewer = divide.limited(some, max(1, limit - 1), seed)
  assert all(one in kept for one in fewer), "a smaller limit keeps some of them"
  contents = lambda part: Counter(_content(one.row) for one in part)
  assert contents(divide.limited(some[::-1], limit, seed)) == contents(kept)


words = st.sampled_from(["p", " P ", "q", "", "ｐ"])
parts = st.lists(st.tuples(words, st.lists(words, min_size=1, max_size=2)), max_size=6)


@given(st.fixed_dictionaries({"train": parts, "validation": parts, "test": parts}))
def test_overlap(given_parts):
  made = {
    name: [Example(prompt, answers, {}, f"{name}:{n}") for n, (prompt, answers) in enumerate(part)]
    for name, part in given_parts.items()
  }
  fold = lambda text: text.strip().lower().replace("ｐ", "p")
  twins = lambda a, b: (
    fold(a.prompt) == fold(b.prompt) and {*map(fold, a.answers)} & {*map(fold, b.answers)}
  )
  shared = lambda left, right: [a for a in left if any(twins(a, b) for b in right)]
  pairs = [("train", "validation"), ("train", "test"), ("validation", "test")]
  found = {f"{left}/{right}": shared(made[left], made[right]) for left, right in pairs}
  kept, report = divide.separate(made, "allow")
  assert kept == made
  assert {pair: one["shared"] for pair, one in report.items()} == {
    pair: len(some) for pair, some in found.items()
  }
  if any(found.values()):
    with pytest.raises(UserError, match=r"examples of \w+ are in \w+ too"):
      divide.separate(made, "error")
  try:
    kept, report = divide.separate(made, "drop")
  except UserError:
    return  # all of one is in another
  assert not any(shared(kept[left], kept[right]) for left, right in pairs)
  assert kept["test"] == made["test"]
  lost = sum(len(made[name]) - len(kept[name]) for name in made)
  assert lost == sum(one["dropped"] for one in report.values())


# Packing: every token once, nothing crosses.


def ragged(lengths, width, seed=0, tasks=None):
  """Right-padded rows of random tokens and weights."""
  rng, lengths = np.random.default_rng(seed), np.array(lengths, int)
  mask = np.arange(width) < lengths[:, None]
  tokens = np.where(mask, rng.integers(1, 1000, mask.shape), 0).astype(np.int32)
  weights = (mask & (rng.random(mask.shape) < 0.7)).astype(np.float32)
  count, where = len(lengths), [f"f:{n}" for n in range(len(lengths))]
  arrays = {"tokens": tokens, "mask": mask, "weights": weights}
  references = [[f"a{n}", "other"] for n in range(count)]
  return Split(arrays, [[n] for n in range(count)], references, [{}] * count, where, tasks)


def two_sided(pairs, width):
  """Rows of an encoder-decoder: (tokens of the output, tokens of the input)."""
  split, other = (ragged([pair[side] for pair in pairs], width) for side in (0, 1))
  inputs = {"inputs": other.arrays["tokens"], "inputs_mask": other.arrays["mask"]}
  return split._replace(arrays=split.arrays | inputs)


@given(
  st.lists(st.tuples(st.integers(1, 16), st.sampled_from("xy")), min_size=1, max_size=25),
  st.integers(16, 40),
  st.booleans(),
)
def test_packing(rows, width, mixed):
  lengths, tasks = [length for length, _ in rows], [task for _, task in rows]
  split = ragged(lengths, 16, tasks=tasks if mixed else None)
  packed, report = pack(split, width)
  tasks = tasks if mixed else [None] * len(rows)
  seen, filled = [], defaultdict(list)
  for row in range(packed.examples):
    one = {name: array[row] for name, array in packed.arrays.items()}
    members = packed.rows[row]["examples"]
    seen += members
    expected = {"tokens": [], "weights": [], "segments": []}
    for segment, n in enumerate(members, 1):
      real = split.arrays["mask"][n]
      expected["tokens"] += split.arrays["tokens"][n][real].tolist()
      expected["weights"] += [0.0, *split.arrays["weights"][n][real][1:].tolist()]
      expected["segments"] += [segment] * lengths[n]
    used = len(expected["tokens"])
    assert used <= width
    for name, values in expected.items():
      assert one[name].tolist() == values + [0] * (width - used), name
    assert one["mask"].tolist() == [True] * used + [False] * (width - used)
    (task,) = {tasks[n] for n in members}
    assert not mixed or packed.tasks[row] == task
    filled[task].append(used)
    assert packed.references[row] == [f"a{n}" for n in members]
    assert packed.where[row] == " + ".join(f"f:{n}" for n in members)
  assert sorted(seen) == list(range(len(rows))), "every example once"
  assert report["rows"] == packed.examples and report["tokens"] == sum(lengths)
  assert report["efficiency"] == pytest.approx(sum(lengths) / (packed.examples * width))
  for task, used in filled.items():
    own = [length for length, one in zip(lengths, tasks, strict=True) if one == task]
    assert sorted(used) == sorted(_best_fit(own, width))


def _best_fit(lengths, width):
  """Best fit, decreasing: the longest first, where the least room is left."""
  rows = []
  for length in sorted(lengths, reverse=True):
    fits = [row for row in rows if sum(row) + length <= width]
    best = max(fits, key=sum, default=None)
    if best is None:
      rows.append([length])
    else:
      best.append(length)
  return map(sum, rows)


# Mixtures: shares hold at any time, each example comes once an epoch, (seed, step) decides all.


weights = st.lists(st.integers(0, 100), min_size=1, max_size=6).filter(any)


@given(weights, st.integers(0, 400), st.integers(1, 60))
def test_turns(given_weights, start, count):
  shares = tuple(one / sum(given_weights) for one in given_weights)
  whose, before = mix.assign_turns(shares, start, count)
  had = Counter()
  for turn in range(start + count):
    ((one,), (times,)) = mix.assign_turns(shares, turn, 1)
    assert times == had[one], "the turns before, counted"
    if turn >= start:
      assert (whose[turn - start], before[turn - start]) == (one, times)
    had[one] += 1
    for k, share in enumerate(shares):
      assert abs(had[k] - (turn + 1) * share) < 3 and (share or not had[k])


@given(
  st.dictionaries(st.sampled_from("uvwx"), st.integers(1, 50), min_size=1),
  st.floats(0.2, 20),
  st.integers(1, 60),
)
def test_shares(counts, temperature, cap):
  def normal(values):
    total = sum(values.values())
    return pytest.approx({task: value / total for task, value in values.items()})

  power = lambda n: n ** (1 / temperature)
  given_counts = {task: power(n) for task, n in counts.items()}
  assert mix.shares(counts, temperature=temperature) == normal(given_counts)
  capped = {task: power(min(n, cap)) for task, n in counts.items()}
  assert mix.shares(counts, "capped", temperature, cap) == normal(capped)
  assert mix.shares(counts, "equal") == normal(dict.fromkeys(counts, 1))
  weights = counts | {"left out": 0}
  assert mix.shares(counts | {"left out": 5}, weights) == normal(weights)


@given(
  st.dictionaries(st.sampled_from("uvw"), st.integers(1, 9), min_size=1),
  st.sampled_from(["proportional", "equal"]),
  st.sampled_from(["mixed", "task"]),
  st.integers(1, 3),
  st.integers(1, 3),
  st.integers(1, 5),
  seeds,
)
def test_mixtures(counts, mixture, how, buckets, variants, size, seed):
  tasks = [task for task, count in counts.items() for _ in range(count * variants)]
  lengths = np.random.default_rng(len(tasks)).integers(1, 30, len(tasks))
  split = ragged(lengths, 32, tasks=tasks)
  forms_NK = np.arange(len(tasks)).reshape(-1, variants)
  split = arrange(split, mixture=mixture, mixture_batches=how, buckets=buckets, variants=forms_NK)
  steps, drawn = 40, []
  for step in range(steps):
    part, rows_B = mix.draw(split.order, seed, step, size)
    drawn.append(rows_B)
    taken = batch(split, seed, step, size)
    for name in ("tokens", "mask", "weights"):
      width = part.widths.get("tokens", 32)
      np.testing.assert_array_equal(taken[name], split.arrays[name][rows_B, :width])
      assert not split.arrays["mask"][rows_B, width:].any(), "nothing real is cut off"
    assert how == "mixed" or len({tasks[row] for row in rows_B}) == 1
    there = mix.draw(split.order, seed + 1, step, size)
    assert there[0] is part and [tasks[n] for n in there[1]] == [tasks[n] for n in rows_B]
  mix.permutation.cache_clear()
  for step in reversed(range(steps)):
    np.testing.assert_array_equal(mix.draw(split.order, seed, step, size)[1], drawn[step])
  flat, report = np.concatenate(drawn), mix.counts(split.order, steps, size)
  for pool in (pool for part in split.order for pool in part.pools):
    own = [row for row in flat if row in pool.rows]
    examples = [int(np.argwhere(pool.rows == row)[0, 0]) for row in own]
    epochs = [examples[at : at + len(pool.rows)] for at in range(0, len(own), len(pool.rows))]
    for epoch in epochs:
      assert len(set(epoch)) == len(epoch), "each example once an epoch"
    for n in range(len(pool.rows)):
      forms = [row for row, one in zip(own, examples, strict=True) if one == n]
      for at in range(len(forms) - variants + 1):
        assert len(set(forms[at : at + variants])) == variants, "all forms before one returns"
  times = Counter(tasks[row] for row in flat)
  for task, count in counts.items():
    assert report[task]["drawn"] == times[task] and report[task]["examples"] == count
    assert report[task]["epochs"] == times[task] / count


# Padding and cropping: the same examples, whatever the shapes.


@given(
  st.lists(st.lists(st.integers(1, 9), max_size=20), max_size=6), st.none() | st.integers(20, 30)
)
def test_padding(rows, most):
  longest = max(map(len, rows), default=0)
  width = padding.width(longest, most)
  assert longest <= width < longest + 8 and (width % 8 == 0 or width == most)
  made = padding.pad(rows, width, fill=-1)
  assert made.shape == (len(rows), width) and made.dtype == np.int32
  assert made.tolist() == [row + [-1] * (width - len(row)) for row in rows]
  pairs = padding.pad([[(one, -one) for one in row] for row in rows], width)
  assert pairs.shape[:2] == (len(rows), width)
  if any(rows):
    np.testing.assert_array_equal(pairs[..., 0], -pairs[..., 1])
    np.testing.assert_array_equal(pairs[..., 0], padding.pad(rows, width))


@given(st.lists(st.integers(1, 40), min_size=1, max_size=30), st.integers(1, 7))
def test_a_walk_through_a_split(lengths, size):
  split, row = ragged(lengths, 40), 0
  for taken in batches(split, size):
    assert taken["tokens"].shape == (size, 40)
    for n in range(size):
      if row == len(lengths):
        assert not taken["weights"][n].any() and taken["mask"][n].any()
        continue
      for name, array in taken.items():
        np.testing.assert_array_equal(array[n], split.arrays[name][row])
      row += 1
  assert row == len(lengths)


sides = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=30)


@given(sides, st.integers(1, 4), st.integers(2, 4))
def test_both_sides_are_cropped(pairs, size, buckets):
  """To the longest of either side in a bucket; the longest in sum come first."""
  split = two_sided(pairs, 40)
  last = 999
  for part in arrange(split, buckets=buckets).order:
    own = [pairs[n] for pool in part.pools for n in pool.rows.ravel()]
    eights = [math.ceil(sum(pair) / 8) for pair in own]
    assert max(eights) < last
    last = min(eights)
    for side, name in enumerate(("tokens", "inputs")):
      assert part.widths[name] == math.ceil(max(pair[side] for pair in own) / 8) * 8
  taken = batch(arrange(split, buckets=buckets), 0, 0, size)
  for name, mask in (("tokens", "mask"), ("inputs", "inputs_mask")):
    assert taken[name].shape == taken[mask].shape


@given(st.lists(st.integers(1, 40), min_size=1, max_size=30), st.integers(1, 4))
def test_buckets(lengths, buckets):
  """A bucket is as wide as its longest example needs, and the buckets divide the examples."""
  split = arrange(ragged(lengths, 40), buckets=buckets)
  rows = [np.concatenate([pool.rows.ravel() for pool in part.pools]) for part in split.order]
  assert sorted(np.concatenate(rows)) == list(range(len(lengths))) and len(rows) <= buckets
  assert sum(part.share for part in split.order) == pytest.approx(1)
  widths = [part.widths["tokens"] for part in split.order if buckets > 1]
  assert widths == sorted({*widths}, reverse=True), "the widest first, each width once"
  for part, own in zip(split.order, rows, strict=True):
    lengths_here = [lengths[n] for n in own]
    width = part.widths.get("tokens", math.ceil(max(lengths) / 8) * 8)
    assert width == math.ceil(max(lengths_here if buckets > 1 else lengths) / 8) * 8
    assert part.share == pytest.approx(len(own) / len(lengths))


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 20)), min_size=1, max_size=4))
def test_joined_and_aligned(given_shapes):
  parts = {
    f"t{n}": ragged(np.arange(count) % width + 1, width, seed=n)
    for n, (count, width) in enumerate(given_shapes)
  }
  widest = max(width for _, width in given_shapes)
  joined = join(parts)
  assert joined.tasks == [name for name, split in parts.items() for _ in range(split.examples)]
  aligned = data.align([data.Data(split, None, split, {}) for split in parts.values()])
  at = 0
  for (name, split), grown in zip(parts.items(), aligned, strict=True):
    here = slice(at, at := at + split.examples)
    for field in ("prompts", "references", "rows", "where"):
      assert getattr(joined, field)[here] == getattr(split, field), (name, field)
    for key, array in split.arrays.items():
      more = np.pad(array, [(0, 0), (0, widest - split.width)])
      for found in (joined.arrays[key][here], grown.train.arrays[key], grown.test.arrays[key]):
        np.testing.assert_array_equal(found, more)
        assert found.dtype == array.dtype


@given(st.integers(1, 40), st.integers(1, 50))
def test_samples(examples, count):
  split = ragged([3] * examples, 4)
  rows = sample(split, count).arrays["tokens"]
  at = [int(np.flatnonzero((split.arrays["tokens"] == row).all(1))[0]) for row in rows]
  assert len(at) == min(count, examples) and at == sorted(set(at))
  assert count == 1 or (at[0], at[-1]) == (0, examples - 1)
  gaps = np.diff(at)
  assert not len(gaps) or gaps.max() - gaps.min() <= 1
