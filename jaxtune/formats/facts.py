"""What the files of an export state beside the weights."""

from __future__ import annotations

from typing import NamedTuple


class Facts(NamedTuple):
  """What is known of a model that its weights do not tell.

  Attributes:
    base_name: what `references.base_reference` returns: the base's name on the hub, or "./" and its
      folder's.
    labels: names of a head's labels; (): those of the base's config.json.
    stop_tokens: ids that end an answer; (): those of the base.
    recipe: {"config": a run's, "result": its result.json or {}}, for the model card; {} where there
      was no run.
  """

  base_name: str | None = None
  labels: tuple[str, ...] = ()
  stop_tokens: tuple[int, ...] = ()
  recipe: dict = {}


NO_FACTS = Facts()
