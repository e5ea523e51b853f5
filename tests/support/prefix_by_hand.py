"""A prefix laid into PyTorch's attention by hand, where PEFT cannot express it.

transformers computes queries, keys, values, masks, biases and everything else; here keys and values
are put in front of its own, seen by every token, neither rotated nor with a relative bias, and the
positions of real tokens move behind them.
"""

from __future__ import annotations

import sys
from contextlib import contextmanager
from unittest import mock

import torch
from torch import nn

TABLES = ("position_embeddings", "embed_positions")  # what modules that embed positions are called


@contextmanager
def prefix(model, pairs: dict, length: int):
  """Runs a model with prefixes inside the block.

  Args:
    pairs: {name of an attention module: keys and values (P, K, H)}.
    length: how far positions move.
  """
  made = {
    model.get_submodule(name): [torch.tensor(x, dtype=model.dtype).transpose(0, 1) for x in pair]
    for name, pair in pairs.items()
  }
  library = sys.modules[type(model).__module__]
  attend = library.eager_attention_forward

  def with_prefix(module, query, key, value, mask, position_bias=None, **options):
    front = lambda x_KPH, x: torch.cat([x_KPH.expand(len(x), *x_KPH.shape), x], 2)
    behind = lambda x: None if x is None else nn.functional.pad(x, (length, 0))
    key, value = map(front, made[module], (key, value))
    if position_bias is not None:
      options["position_bias"] = behind(position_bias)
    return attend(module, query, key, value, behind(mask), **options)

  with mock.patch.object(library, "eager_attention_forward", with_prefix), moved(model, length):
    yield


@contextmanager
def moved(model, length: int):
  """Places real tokens at `length`, `length` + 1, ...: rotary angles, and rows of tables."""
  named = lambda end: [m for name, m in model.named_modules() if name.endswith(end)]
  later = lambda _, args: (args[0], args[1] + length, *args[2:])
  hooks = [module.register_forward_pre_hook(later) for module in named("rotary_emb")]
  tables = [module.weight for module in named(TABLES)]
  for table in tables:
    table.data = table.data.roll(-length, 0)
  yield
  for table in tables:
    table.data = table.data.roll(length, 0)
  for hook in hooks:
    hook.remove()
