"""Data sets of the Hugging Face hub, from the network or from the cache."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

from jaxtune.errors import UserError, nearest


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
  # Pictures and sounds stay the bytes and paths that they are in the data set: none is opened.
  rows = data[split] if options else data[split].to_iterable_dataset()
  return rows.decode(False)


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
