"""Every export of every method and family is certified, as `make certify` does."""

import certificates
import pytest

LABELS = certificates.labels()


@pytest.fixture(scope="module")
def jobs(tmp_path_factory):
  folder = tmp_path_factory.mktemp("certificates")
  return list(certificates.jobs(certificates.models(folder), folder))


@pytest.mark.full
@pytest.mark.parametrize("index", range(len(LABELS)), ids=[", ".join(names) for names in LABELS])
def test_an_export(index, jobs, reload_of):
  form, *_, run = jobs[index]
  assert run(reload_of(form))["verdict"] in ("passed", "refused", "found")
