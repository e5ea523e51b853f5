"""Data sets of the Hugging Face hub, from the network or from the cache."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from jaxtune.errors import UserError, nearest

if TYPE_CHECKING:
  import datasets

# The columns that may hold turns and descriptions of tools, which chat templates write out whole.
_SPOKEN = (
  "messages", "conversations", "tools", "prompt", "chosen", "rejected", "completions"
)  # fmt: skip


def open_split(source: str, split: str, streaming: bool) -> Iterable[dict]:
  """Returns the rows of a hub data set, from the cache if the hub cannot be reached.

  With `streaming` they come one by one from the network or from the disk, and memory does not hold
  them all.
  """
  import datasets
  import huggingface_hub

  name, _, configuration = source.partition(":")
  advice = f"download it (`hf download {name} --repo-type dataset`) and give a file's path instead"
  try:  # one short request, as the library would try again for half a minute
    huggingface_hub.HfApi().dataset_info(name, timeout=5)
    online = True
  except huggingface_hub.errors.GatedRepoError as error:
    raise UserError(f"{name} is gated: accept its terms on the hub and `hf auth login`") from error
  except huggingface_hub.errors.RepositoryNotFoundError as error:
    raise UserError(f"no file {name} here, and no data set {name} on the hub") from error
  except Exception:  # without a network the kind of the error depends on the system
    online = False
  options = {"streaming": True} if streaming and online else {}
  try:
    with _offline(not online):
      data = datasets.load_dataset(name, configuration or None, **options)
  except Exception as error:
    if not online:
      raise UserError(
        f"no file {name} here, and as a hub name it is not in the cache and the hub cannot be "
        f"reached: {advice}"
      ) from error
    raise UserError(f"{name} from the hub: {str(error).splitlines()[0]}; {advice}") from error
  if split not in data:
    raise UserError(f"{name} has no split {split!r}; {nearest(split, data)}")
  return as_written(data[split] if options else data[split].to_iterable_dataset())


def as_written(rows: datasets.IterableDataset) -> Iterator[dict]:
  """Yields rows of Arrow's types as their authors wrote them, as far as that is known.

  Cells of the type Json are parsed. Arrow gives every object of a column the keys of all of them,
  with nulls; from turns and tools these are taken out. Pictures and sounds stay the bytes and paths
  that they are in the data set: none is opened.
  """
  rows = rows.decode(False)
  kinds = {
    name: kind for name, kind in rows.features.items() if name in _SPOKEN or "Json(" in repr(kind)
  }
  for row in rows:
    yield row | {
      name: _as_written(row[name], kind, name in _SPOKEN) for name, kind in kinds.items()
    }


def _as_written(value: Any, kind: Any, bare: bool) -> Any:
  """Parses Json within a cell of this kind, and if it is to be bare, takes nulls out of objects."""
  if value is None:
    return None
  if isinstance(kind, dict):
    pairs = {key: (one, kind[key]) for key, one in value.items() if one is not None or not bare}
    return {key: _as_written(*pair, bare) for key, pair in pairs.items()}
  if isinstance(value, list):
    return [_as_written(one, kind.feature, bare) for one in value]
  return json.loads(value) if type(kind).__name__ == "Json" else value


@contextlib.contextmanager
def _offline(enabled: bool) -> Iterator[None]:
  """Tells the hub's libraries that there is no network: they then read their caches at once."""
  import datasets.config
  import huggingface_hub.constants

  holders = (datasets.config, huggingface_hub.constants)
  before = [holder.HF_HUB_OFFLINE for holder in holders]
  try:
    for holder, value in zip(holders, before, strict=True):
      holder.HF_HUB_OFFLINE = enabled or value
    yield
  finally:
    for holder, value in zip(holders, before, strict=True):
      holder.HF_HUB_OFFLINE = value
