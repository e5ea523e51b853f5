"""Losses equal PyTorch's on the same logits, and nothing without a weight counts."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jaxtyping import TypeCheckError
from support.shapes import checked
from torch.nn import functional

from jaxtune import config, metrics, objectives
from jaxtune.data.encode.choices import fold
from jaxtune.errors import UserError
from jaxtune.models import decoder
from jaxtune.objectives import choices, classify, qa, regression, sft, tokens


@pytest.mark.parametrize("objective", [choices, classify, qa, regression, sft, tokens])
def test_an_objective_is_judged_by_metrics_of_its_kind(objective):
  metrics.check(objective.METRICS, metrics.kind_of(objective.METRICS[0]))


ROWS, LENGTH, CLASSES = 5, 7, 6


def normal(*shape):
  return np.random.default_rng(sum(shape)).normal(0, 3, shape).astype(np.float32)


def integers(high, *shape):
  return np.random.default_rng(high).integers(0, high, shape).astype(np.int32)


def on_device(forward, batch):
  """Gives a loss arrays of jax, as the training step does."""

  def call(taken, score=lambda logits, targets: logits, targets=None, places=None):
    return score(decoder.at(jnp.asarray(forward(taken)), places), targets)

  return call, jax.tree.map(jnp.asarray, batch)


def loss(objective, forward, batch, *options, **named):
  compute = lambda: checked(objective.loss)(*on_device(forward, batch), *options, **named)
  return jax.jit(compute)()


def predict(objective, forward, batch, *options):
  return jax.jit(lambda: checked(objective.predict)(*on_device(forward, batch), *options))()


def torch_cross_entropy(logits, targets, smoothing=0.0):
  """Losses of logits (..., C), by PyTorch."""
  flat = torch.tensor(logits).reshape(-1, logits.shape[-1]), torch.tensor(targets).long().ravel()
  losses = functional.cross_entropy(*flat, reduction="none", label_smoothing=smoothing)
  return losses.reshape(targets.shape).numpy()


def token_weights():
  """Some tokens count, one of them by half, and one row has none."""
  weights = (integers(3, ROWS, LENGTH) > 0).astype(np.float32)
  weights[1, 3] = 0.5
  weights[2] = 0
  return weights


def check(found, losses, weights, right):
  """Compares with losses, weights and hits of the same shape."""
  sums, others = found
  total = lambda x: x.reshape(len(x), -1).sum(1)
  np.testing.assert_allclose(sums, total(losses * weights), rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(others["weight"], total(weights), rtol=1e-6)
  np.testing.assert_allclose(others["correct"], total(right * weights), rtol=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_next_tokens(smoothing):
  logits, ids = normal(ROWS, LENGTH, CLASSES), integers(CLASSES, ROWS, LENGTH)
  weights = token_weights()
  weights[:, 0] = 1  # the first token has nothing before it, so its weight must not matter
  batch = {"tokens": ids, "weights": weights}
  found = loss(sft, lambda batch: logits, batch, label_smoothing=smoothing)
  losses = torch_cross_entropy(logits[:, :-1], ids[:, 1:], smoothing)
  check(found, losses, weights[:, 1:], logits[:, :-1].argmax(-1) == ids[:, 1:])
  changed = logits.copy()
  changed[:, -1] = 100.0  # nor what follows the last one
  again = loss(sft, lambda batch: changed, batch, label_smoothing=smoothing)
  jax.tree.map(np.testing.assert_array_equal, again, found)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_tags_and_classes(smoothing):
  logits, labels = normal(ROWS, LENGTH, CLASSES), integers(CLASSES, ROWS, LENGTH)
  weights, right = token_weights(), logits.argmax(-1) == labels
  losses = torch_cross_entropy(logits, labels, smoothing)
  batch = {"labels": labels, "weights": weights}
  check(loss(tokens, lambda batch: logits, batch, smoothing), losses, weights, right)
  one = {"labels": labels[:, 0], "weights": weights[:, 1]}
  found = loss(classify, lambda batch: logits[:, 0], one, smoothing)
  check(found, losses[:, 0], weights[:, 1], right[:, 0])
  said = predict(classify, lambda batch: logits[:, 0], one)["labels"]
  np.testing.assert_array_equal(said, logits[:, 0].argmax(-1))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_ties_are_right_once(dtype):
  """A tie belongs to one class, as with `torch.argmax`; bf16 logits tie often."""
  logits = jnp.asarray(normal(400, 50), dtype).astype(jnp.float32)
  logits = jnp.concatenate([logits, jnp.zeros((3, 50))])
  right = torch.tensor(np.asarray(logits)).argmax(-1).numpy()
  ties = np.asarray(logits == logits.max(-1, keepdims=True))
  assert dtype == "float32" or (ties[:400].sum(-1) > 1).any()
  compare = checked(objectives.cross_entropy)
  hits = [compare(logits, jnp.full(403, c, jnp.int32))[1] for c in range(50)]
  np.testing.assert_array_equal(np.stack(hits).argmax(0), right)
  np.testing.assert_array_equal(np.stack(hits).sum(0), 1)


def test_a_wrong_shape_is_seen():
  """Each axis has one size in a call."""
  rows, more = jnp.zeros(ROWS), jnp.zeros(ROWS + 1)
  with pytest.raises(TypeCheckError):
    checked(objectives.cross_entropy)(jnp.zeros((ROWS, CLASSES)), more.astype(jnp.int32))
  with pytest.raises(TypeCheckError):
    checked(objectives.weigh)(rows, rows > 0, more)
  found, sums = checked(objectives.weigh)(rows + 2, rows == 0, rows + 0.5)
  assert found.tolist() == [1.0] * ROWS and sums["correct"].tolist() == [0.5] * ROWS


def test_numbers():
  values, labels, weights = normal(ROWS), normal(ROWS, 1)[:, 0], np.array([1, 1, 0, 1, 1.0])
  found = loss(regression, lambda batch: values, {"labels": labels, "weights": weights})
  losses = functional.mse_loss(torch.tensor(values), torch.tensor(labels), reduction="none")
  check(found, losses.numpy(), weights, np.zeros(ROWS))


def test_answers_equal_berts():
  """As `BertForQuestionAnswering` computes it from these logits, for rows of one length."""
  logits, mask = normal(ROWS, LENGTH, 2), np.ones((ROWS, LENGTH), bool)
  mask[3, 5:] = False
  starts, ends, weights = integers(5, ROWS), integers(4, ROWS), np.array([1, 1, 0, 1, 1.0])
  batch = {"mask": mask, "starts": starts, "ends": ends, "weights": weights}
  found = loss(qa, lambda batch: logits, batch)
  losses, right = [], []
  for row, real in enumerate(mask.sum(1)):  # each without its padding
    ours = logits[row : row + 1, :real]
    pair = [(ours[..., i], at[row : row + 1]) for i, at in enumerate((starts, ends))]
    losses.append(np.mean([torch_cross_entropy(*one) for one in pair]))
    right.append(all(one.argmax() == at for one, at in pair))
  check(found, np.array(losses), weights, np.array(right))
  scores = predict(qa, lambda batch: logits, batch)
  assert (np.asarray(scores["starts"])[~mask] < -1e8).all(), "no answer in the padding"


def choices_batch():
  """Rows with 3, 2 and 3 answers of 1 to 3 tokens, behind 2 tokens of prompt; logits for them."""
  ids, mask, weights = (np.zeros((3, 3, LENGTH), d) for d in (np.int32, bool, np.float32))
  for row, answers in enumerate([(1, 3, 2), (2, 1), (3, 1, 1)]):
    for at in range(3):
      length = 2 + answers[at if at < len(answers) else 0]
      ids[row, at, :length] = 1 + (np.arange(length) * (at + 2) + row) % (CLASSES - 1)
      mask[row, at, :length] = True
      weights[row, at, 2:length] = float(at < len(answers))
  labels = np.array([1, 0, 2], np.int32)
  return {"tokens": ids, "mask": mask, "weights": weights, "labels": labels}


@pytest.mark.parametrize("normalise", [False, True])
def test_choices(normalise):
  """The log-probabilities of an answer's tokens, summed by hand."""
  batch, seen = choices_batch(), []
  table = normal(CLASSES, CLASSES)  # logits of a model that looks at the last token alone

  def forward(flat):
    seen.append({name: x.shape for name, x in flat.items()})
    return jnp.asarray(table)[flat["tokens"]]

  scores = np.full((3, 3), -np.inf)
  for row, at in zip(*np.nonzero(batch["weights"].any(-1)), strict=True):
    ids = torch.tensor(batch["tokens"][row, at]).long()
    logps = functional.log_softmax(torch.tensor(table)[ids], -1)
    real = range(2, int(batch["mask"][row, at].sum()))
    parts = [float(logps[t - 1, ids[t]]) for t in real]
    scores[row, at] = np.mean(parts) if normalise else np.sum(parts)
  losses = functional.cross_entropy(
    torch.tensor(scores), torch.tensor(batch["labels"]).long(), reduction="none"
  ).numpy()
  found = loss(choices, forward, batch, normalise)
  check(found, losses, np.ones(3), scores.argmax(1) == batch["labels"])
  np.testing.assert_array_equal(
    predict(choices, forward, batch, normalise)["labels"], scores.argmax(1)
  )
  assert seen[0] == {"tokens": (9, LENGTH), "mask": (9, LENGTH), "weights": (9, LENGTH)}


def test_an_answer_that_only_fills_up_never_wins():
  batch = choices_batch()
  loves = np.zeros((CLASSES, CLASSES), np.float32)
  first = batch["tokens"][1, 2, 1:3]
  loves[first[0], first[1]] = 50.0  # whatever the filler says is certain
  forward = lambda flat: jnp.asarray(loves)[flat["tokens"]]
  assert predict(choices, forward, batch)["labels"][1] < 2
  batch["weights"][0] = 0  # a row that only fills up the batch
  gradient = jax.grad(lambda x: loss(choices, lambda flat: x[flat["tokens"]], batch)[0].sum())
  losses, others = loss(choices, forward, batch)
  assert losses[0] == 0 and others["weight"].tolist() == [0, 1, 1] and others["correct"][0] == 0
  assert np.isfinite(gradient(jnp.asarray(loves))).all()


@pytest.mark.parametrize("normalise", [False, True])
def test_answers_of_one_token_score_as_they_do_in_rows_of_their_own(normalise):
  """A causal model: what stands behind the prompt does not change what it says of it."""
  batch = choices_batch()
  ends = batch["mask"].sum(-1, keepdims=True) - 1
  ends[..., 0] = ends[:, :1, 0].min(1, keepdims=True)  # the same prompt for each answer
  place = np.arange(LENGTH)
  batch["tokens"] = np.where(place < ends, batch["tokens"][:, :1], batch["tokens"])
  batch["mask"], real = place <= ends, batch["weights"].any(-1, keepdims=True)
  batch["weights"] = ((place == ends) & real).astype(np.float32)
  batch["weights"][2] = 0  # a row that only fills up the batch
  folded = fold(batch)
  assert folded["tokens"].shape == (3, 1, LENGTH)
  table = jnp.asarray(normal(CLASSES, CLASSES))
  forward = lambda flat: jnp.cumsum(table[flat["tokens"]], 1)
  for one in (partial(loss, choices), lambda *x: predict(choices, *x)["labels"][:2]):
    for left, right in zip(
      *(jax.tree.leaves(one(forward, b, normalise)) for b in (batch, folded)), strict=True
    ):
      np.testing.assert_allclose(left, right, rtol=1e-5, atol=1e-5)


def test_an_answer_of_one_token_that_only_fills_up_never_wins():
  """It stands as 0 in `answers`, which must not be read as the first token, here the likeliest."""
  arrays = {"tokens": np.ones((1, 1, 3), np.int32), "mask": np.ones((1, 1, 3), bool)}
  arrays |= {"weights": np.array([[[0, 0, 1.0]]]), "labels": np.array([1])}
  batch = arrays | {"answers": np.array([[[3], [4], [0]]])}
  logits = jnp.tile(jnp.array([50.0, 0.0, 1.0, 2.0]), (1, 3, 1))
  losses, others = loss(choices, lambda flat: logits, batch)
  np.testing.assert_allclose(losses, np.log1p(np.exp(-1.0)), rtol=1e-4)
  assert (
    predict(choices, lambda flat: logits, batch)["labels"][0] == 1 and others["correct"][0] == 1
  )


def test_names_and_options_are_checked():
  with pytest.raises(UserError, match="did you mean 'classify'"):
    objectives.module("clasify")
  with pytest.raises(UserError, match="unknown objective 'mlm'"):
    config.complete({"data": {"train": "x"}, "objective": {"name": "mlm"}})
  with pytest.raises(UserError, match="objective.label_smooting; did you mean 'label_smoothing'"):
    config.complete({"data": {"train": "x"}, "objective": {"label_smooting": 0.1}})
  for share in (1.0, -0.1):
    full = {"data": {"train": "x"}, "model": {"path": "x"}}
    with pytest.raises(UserError, match="label_smoothing is .*, expected (below 1|at least 0)"):
      config.complete(full | {"objective": {"label_smoothing": share}})
