"""A small project of given answers, some of which are hostile."""

import pytest

from jaxtune.evaluation.votes import store

HOSTILE = (
  """</p><script>document.title = "1"</script><img src=x onerror="document.title='2'"> & '"""
)


@pytest.fixture
def project():
  pairs = [store.Pair(f"prompt {n}", (f"a says {n}", f"b says {n}"), f"f:{n}") for n in range(1, 9)]
  pairs += [store.Pair(f"ask {HOSTILE}", (f"a {HOSTILE}", ""), "f:9")]
  return store.Project(("runs/one", "runs/two"), {"prompts file": "1", "seed": 0}, 0, {}, pairs)


@pytest.fixture
def opened(tmp_path, project):
  path = tmp_path / store.NAME
  store.create(path, project)
  with store.opened(path) as opened:
    yield opened
