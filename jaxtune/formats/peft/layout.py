"""Where PEFT's files keep each of our arrays, for the writer and the reader."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from jaxtune.formats import files
from jaxtune.models import hf
from jaxtune.models.names import Tensor


class Array(NamedTuple):
  """One array of a method at one site.

  Attributes:
    ours: its name here.
    theirs: the end of its name there, after the module's.
    axes: of ours, without the layers' axis: "i" inputs, "r" rank, "o" outputs, "?" any other size.
      Theirs is ours transposed.
    shape: of theirs, where it has one more axis of size 1, such as (-1, 1).
  """

  ours: str
  theirs: str
  axes: str
  shape: tuple[int, ...] | None = None

  def write(self, x: np.ndarray) -> np.ndarray:
    """Returns our array as theirs."""
    return x.T if self.shape is None else x.reshape(self.shape)

  def read(self, x: np.ndarray) -> np.ndarray:
    """Returns their array as ours; undoes `write`."""
    return x.T if self.shape is None else x.reshape(-1)


_MAGNITUDE = Array("magnitude", "lora_magnitude_vector", "o")
ARRAYS = {
  "lora": (Array("a", "lora_A.weight", "ir"), Array("b", "lora_B.weight", "ro"), _MAGNITUDE),
  "embedding": (Array("a", "lora_embedding_A", "ir"), Array("b", "lora_embedding_B", "ro"),
                _MAGNITUDE),
  "adalora": (Array("a", "lora_A", "ir"), Array("e", "lora_E", "r", (-1, 1)),
              Array("b", "lora_B", "ro")),
  "vera": (Array("d", "vera_lambda_d", "r"), Array("b", "vera_lambda_b", "o")),
  "loha": (Array("w1_a", "hada_w1_b", "ir"), Array("w1_b", "hada_w1_a", "ro"),
           Array("w2_a", "hada_w2_b", "ir"), Array("w2_b", "hada_w2_a", "ro")),
  "lokr": (Array("w1", "lokr_w1", "??"), Array("w1_a", "lokr_w1_b", "?r"),
           Array("w1_b", "lokr_w1_a", "r?"), Array("w2", "lokr_w2", "??"),
           Array("w2_a", "lokr_w2_b", "?r"), Array("w2_b", "lokr_w2_a", "r?")),
  "ia3": (Array("l", "ia3_l", "o", (-1, 1)), Array("l_in", "ia3_l", "i", (1, -1))),
}  # fmt: skip
TYPES = {
  "lora": "LORA",
  "adalora": "ADALORA",
  "vera": "VERA",
  "loha": "LOHA",
  "lokr": "LOKR",
  "ia3": "IA3",
  "prefix": "PREFIX_TUNING",
  "prompt": "PROMPT_TUNING",
  "p_tuning": "P_TUNING",
  "norms": "LN_TUNING",
}
VIRTUAL = ("prefix", "prompt", "p_tuning")  # methods that add virtual tokens
CONFIG, WEIGHTS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
NORMS = ".ln_tuning_layers."  # between the name of a trained norm and that of its weight or bias
PROJECTIONS = {"a": "vera_A", "b": "vera_B"}  # the frozen pair that all modules share
ADALORA_EPSILON = 1e-5  # AdaLoRA's scale is alpha / (rank + ADALORA_EPSILON)
# The modules that PEFT saves whole by the task, whether a model has them or not.
HEADS = ("classifier", "score", "qa_outputs")


def prefix(kind: str) -> str:
  """Returns what PEFT puts before the names of a method's tensors."""
  return "base_model." if kind in VIRTUAL else "base_model.model."


def alpha_of(scale: float, rank: float) -> float | int:
  """Returns the alpha with alpha / rank = scale in fp32; a whole number where there is one."""
  alpha = scale * rank
  whole = round(alpha)
  return whole if np.float32(whole / rank) == np.float32(scale) else alpha


def modules(pretrained: hf.Pretrained) -> dict[str, list[Tensor]]:
  """Returns {torch module, "{}" for the layer: its weight, or the parts of it in their order}."""
  found: dict[str, list[Tensor]] = {}
  for row in files.table(pretrained):
    if row.ours.endswith(("/kernel", "/embedding")) and row.theirs.endswith(".weight"):
      found.setdefault(row.theirs.removesuffix(".weight"), []).append(row)
  return {name: sorted(rows, key=lambda r: r.part or ()) for name, rows in found.items()}


def site(row: Tensor) -> str:
  """Returns the path of a weight's module here."""
  return row.ours.rpartition("/")[0]


def arrays(kind: str, row: Tensor) -> tuple[Array, ...]:
  """Lists a method's arrays at a weight; an embedding's LoRA has names of its own."""
  embeds = kind == "lora" and row.ours.endswith("/embedding")
  return ARRAYS["embedding" if embeds else kind]


def width(row: Tensor, outputs: int) -> int:
  """Returns how many outputs the whole module has of which ours are `outputs`."""
  return row.part.total * row.part.heads if row.part else outputs


def suffix(module: str, every: Iterable[str]) -> str:
  """Returns the shortest end of a module's name that no other module has."""
  words = module.split(".")
  for count in range(1, len(words)):
    end = "." + ".".join(words[-count:])
    if "{}" not in end and not any(m.endswith(end) for m in set(every) - {module}):
      return end[1:]
  return module
