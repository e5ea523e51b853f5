"""What every test runs under: 4 host devices, strict broadcasting, tiny random models."""

import gc
import os
import tempfile
from importlib.metadata import version

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = " ".join(
  [
    os.environ.get("XLA_FLAGS", ""),
    "--xla_force_host_platform_device_count=4",
    # Tiny programs: compiling is nearly all the time.
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_parallel_codegen_split_count=1",
    # A fifth of the time; later jaxlibs abort at a flag that they do not know.
    "--xla_cpu_use_fusion_emitters=false" if version("jaxlib") < "0.11" else "",
  ]
).strip()
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# What a worker, or a process that a test starts, has compiled, no other one compiles again.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
  COMPILED = tempfile.TemporaryDirectory(prefix="jaxtune-compiled-")
  os.environ["JAX_COMPILATION_CACHE_DIR"] = COMPILED.name
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "0"

import jax
import psutil
import pytest
from hypothesis import settings
from support import browser, logged, representatives, sweeps, tiny

jax.config.update("jax_numpy_rank_promotion", "raise")
MEMORY = psutil.virtual_memory().total // (2 * os.cpu_count())  # of a worker, in bytes
# The same few examples every time; HYPOTHESIS_PROFILE=long looks for new ones.
settings.register_profile("few", max_examples=25, derandomize=True, deadline=None, database=None)
settings.register_profile("long", max_examples=2000, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "few"))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
  representatives.mark(items, whole=config.args_source is config.ArgsSource.TESTPATHS)


def pytest_collection_finish():
  """Leaves garbage to `forget`, and spares it the millions of objects that were imported."""
  gc.collect()
  gc.freeze()
  gc.disable()


def pytest_terminal_summary(terminalreporter):
  """Says at the end, and in red, that pages, loggers or Ray were not tested."""
  skipped = [str(report.longrepr) for report in terminalreporter.stats.get("skipped", [])]
  for missing in (browser.MISSING, logged.MISSING, sweeps.NO_RAY):
    if any(missing in reason for reason in skipped):
      terminalreporter.write_line(missing.upper(), red=True, bold=True)


def forget():
  """Forgets compiled programs where a process has grown to gigabytes.

  Not behind every file: that takes half a second, and what all files use is compiled again.
  """
  if psutil.Process().memory_info().rss > MEMORY:
    jax.clear_caches()
    gc.collect()


@pytest.fixture(scope="module", autouse=True)
def forgotten():
  yield
  forget()


@pytest.fixture(scope="session")
def llama():
  """Grouped-query attention, untied head."""
  return tiny.make("llama")


@pytest.fixture(scope="session")
def llama3():
  """RoPE scaled as in Llama 3, one key/value head, heads wider than width / heads, tied head."""
  return tiny.make("llama3")


@pytest.fixture(scope="session")
def gpt2():
  return tiny.make("gpt2")


@pytest.fixture(scope="session", params=["llama", "llama3", "gpt2"])
def pretrained(request):
  """Each tiny decoder in turn."""
  return request.getfixturevalue(request.param)


@pytest.fixture(scope="session")
def shared():
  """The folder of models and data beside the checkout; tests that need it skip where it is not."""
  folder = tiny.ROOT.parent / "shared"
  if not folder.is_dir():
    pytest.skip("needs ../shared")
  return folder


@pytest.fixture(scope="session")
def reload():
  """A PyTorch that certifies exports, started once."""
  pytest.importorskip("peft")
  from jaxtune import certify

  with certify.reloader() as run:
    yield run


@pytest.fixture(scope="session")
def reload_in_adapters():
  """The same with AdapterHub's library; tests that need it skip where no variable names one."""
  from jaxtune import certify

  if not os.environ.get(certify.VARIABLE):
    pytest.skip(f"needs {certify.VARIABLE}")
  with certify.reloader(certify.adapters_interpreter()) as run:
    yield run


@pytest.fixture(scope="session")
def reload_of(request):
  """Returns (format) -> the PyTorch that certifies its exports."""
  names = {"adapterhub": "reload_in_adapters"}
  return lambda form: request.getfixturevalue(names.get(form, "reload"))
