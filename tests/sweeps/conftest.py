"""Made results of trials, in the form of result.json."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest

from jaxtune.sweeps import grid


def result(settings, loss, *, method="lora", base=3.0, parameters=1000, bleu=None, **more):
  final = {"test_loss": loss, "test_perplexity": math.exp(loss)}
  if bleu is not None:
    final["test_bleu"] = bleu
  return {
    "trial": grid.name(settings),
    "settings": settings,
    "method": method,
    "trained_parameters": parameters,
    "base_parameters": 40_000,
    "final": final,
    "base": {"test_loss": base, "test_perplexity": math.exp(base)},
    "steps": 10,
    "stopped_at": 10,
    "seconds": 2.0,
    "versions": {"jax": "0.10"},
    "data": {"train": 20},
    **more,
  }


def ranks(losses, **more):
  """Returns results of rank -> losses by seed."""
  return [
    result({"method.rank": rank, "seed": seed}, loss, parameters=1000 * rank, **more)
    for rank, seeds in losses.items()
    for seed, loss in enumerate(seeds)
  ]


@pytest.fixture
def made():
  return SimpleNamespace(result=result, ranks=ranks)
