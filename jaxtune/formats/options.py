"""Declares the types of the entries of adapter_config.json and head_config.json that are read."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Required

from annotated_types import Ge, Gt, Le, Lt
from typing_extensions import TypedDict

from jaxtune.schema import STRICT, Count, Finite, Natural, NonNegative, Rate

Names = str | list[str] | None
Flag = bool | None
Share = Annotated[float, Gt(0), Lt(1)]
# No adapter has an array with a longer axis.
Size = Annotated[int, Ge(1), Le(2**24)]


class Peft(TypedDict, total=False):
  """An adapter_config.json of PEFT."""

  __pydantic_config__ = STRICT
  peft_type: Required[str]
  base_model_name_or_path: str | None
  peft_version: str | None
  task_type: str | None
  init_lora_weights: bool | str | None
  # which modules it is laid over
  target_modules: Names
  exclude_modules: Names
  feedforward_modules: Names
  layers_pattern: Names
  layers_to_transform: Natural | list[Natural] | None
  modules_to_save: list[str] | None
  fan_in_fan_out: Flag
  # its sizes and scales
  r: Size
  init_r: Size
  target_r: Size
  num_virtual_tokens: Size
  num_transformer_submodules: Literal[1, 2] | None
  alpha: Finite
  lora_alpha: Finite
  alpha_pattern: dict[str, Finite] | None
  decompose_factor: Literal[-1] | Size
  decompose_both: bool
  use_rslora: Flag
  use_dora: Flag
  d_initial: Finite
  # how it was trained
  lora_dropout: Rate
  orth_reg_weight: NonNegative
  deltaT: Count
  beta1: Share
  beta2: Share


class MethodConfig(TypedDict, total=False):
  """One method of an AdapterHub adapter, or a union of several."""

  __pydantic_config__ = STRICT
  architecture: str | None
  configs: list[dict[str, Any]]
  # bottleneck adapters
  mh_adapter: Flag
  output_adapter: Flag
  cross_adapter: Flag
  scaling: Finite | Literal["learned", "channel"]
  dropout: Rate
  non_linearity: str
  ln_before: Flag
  ln_after: Flag
  is_parallel: Flag
  original_ln_before: Flag
  original_ln_after: Flag
  residual_before_ln: bool | str | None
  # Compacters
  phm_layer: Flag
  shared_phm_rule: bool
  # prefixes
  prefix_length: Size
  flat: Flag
  encoder_prefix: Flag
  cross_prefix: Flag


class AdapterHub(TypedDict, total=False):
  """An adapter_config.json of AdapterHub."""

  __pydantic_config__ = STRICT
  config: Required[MethodConfig]
  name: str | None
  model_name: str | None
  model_type: str
  hidden_size: Count
  version: str | None


class Head(TypedDict, total=False):
  """AdapterHub's head_config.json."""

  __pydantic_config__ = STRICT
  model_class: str | None
  label2id: dict[str, Natural] | None
