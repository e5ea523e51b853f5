# Two commands do everything on a fresh machine: make quickstart, make test.
PYTHON ?= python3
VENV ?= .venv
ADAPTERS_VENV ?= .venv-adapters
PLAN_VENV ?= .venv-plan
BIN := $(VENV)/bin
# Each worker begins with neighbouring tests, which share programs; idle ones take from others.
PYTEST := $(BIN)/python -m pytest -n auto --dist worksteal
# Modules are compiled when they are first imported: to compile all that is installed takes longer.
INSTALL = $(1)/bin/python -m pip install --quiet --no-compile $(2)
export PYTHONDONTWRITEBYTECODE :=
COMPILERS := JAX_PLATFORMS=cpu $(PLAN_VENV)/bin/python
ADAPTERS := JAXTUNE_ADAPTERS_PYTHON=$(abspath $(ADAPTERS_VENV))/bin/python

.PHONY: quickstart test cases browser check certify parity matrix reliability speed gpu accelerators format clean

quickstart: $(VENV)/.installed
	$(BIN)/jaxtune sweep --config configs/quickstart.py --workdir runs/quickstart
	$(BIN)/python experiments/quickstart/answers.py runs/quickstart

test: $(VENV)/.installed-test $(if $(CASES),$(ADAPTERS_VENV)/.installed)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/ty check --python $(VENV)
	$(if $(CASES),$(ADAPTERS)) $(PYTEST) $(if $(CASES),-m "not measurement")

# The tests, and all that they run representatives of: most exports, every method, every family.
# Measurements, such as the README's Python, are left to `make test` and `make check`.
cases:
	$(MAKE) test CASES=all

# The browser that tests the pages of a sweep and of feedback: the distribution's, where there is
# apt. Without one these tests are skipped, and `make check` fails.
browser:
	apt-get install --yes --no-install-recommends chromium chromium-driver

# The cases, every measurement at its smallest size, every family's logits beside PyTorch's, and two
# steps by a TPU's compiler.
check: cases $(PLAN_VENV)/.installed-tpu
	$(BIN)/python tests/support/browser.py
	$(PYTEST) -m measurement
	$(BIN)/python tests/parity.py --workers 2
	$(COMPILERS) experiments/accelerators/run.py --only 1b --only 16-trials

# Every export format, reloaded in real PyTorch. adapters 1.3 cannot live with transformers 5,
# so it has an environment of its own.
certify: $(VENV)/.installed-test $(ADAPTERS_VENV)/.installed
	$(ADAPTERS) $(BIN)/python tests/certificates.py --out experiments/certify/results.csv

# Every family's logits beside PyTorch's, in fp32 and bf16: writes experiments/parity.
parity: $(VENV)/.installed-test
	$(BIN)/python tests/parity.py --keep

# Every method on every family: writes experiments/matrix/results.csv and the README's table.
matrix: $(VENV)/.installed-test $(ADAPTERS_VENV)/.installed
	$(ADAPTERS) $(BIN)/python tests/matrix.py --keep

# Mutants, fuzzing, faults and coverage in short, in ten minutes; their README says how to run the long forms.
reliability: $(VENV)/.installed-test
	$(BIN)/python experiments/reliability/mutants.py --check 25
	$(BIN)/python experiments/reliability/fuzz.py --seconds 4
	$(BIN)/python experiments/reliability/faults.py --points 1 --job train --job import
	$(BIN)/python experiments/reliability/coverage.py --runs 400

speed: $(VENV)/.installed-test $(ADAPTERS_VENV)/.installed
	$(ADAPTERS) $(BIN)/python experiments/speed/run.py

# What only a GPU can tell, by the Python that has jax and torch for it.
gpu:
	$(PYTHON) experiments/speed/on_gpu.py

# What the compilers of TPUs and NVIDIA GPUs say of steps, beside the most that they may take.
accelerators: $(PLAN_VENV)/.installed
	JAX_PLATFORMS=cpu $(PLAN_VENV)/bin/python -m pytest -q -m measurement tests/preflight/test_compilers.py
	$(COMPILERS) experiments/accelerators/run.py --out experiments/accelerators

format: $(VENV)/.installed-test
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean:
	rm -rf $(VENV) $(ADAPTERS_VENV) $(PLAN_VENV) runs build *.egg-info

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml
	$(call INSTALL,$(VENV),--editable .)
	touch $@

$(VENV)/.installed-test: $(VENV)/bin/python pyproject.toml
	$(call INSTALL,$(VENV),--editable '.[test]')
	touch $@ $(VENV)/.installed

# Makes an environment that sees, behind its own packages, those of the first one.
BEHIND = $(PYTHON) -m venv $(1) && \
  $(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" > \
  $$($(1)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/shared.pth

$(ADAPTERS_VENV)/.installed: $(VENV)/.installed-test
	$(call BEHIND,$(ADAPTERS_VENV))
	$(call INSTALL,$(ADAPTERS_VENV),adapters==1.3.0 transformers==4.57.6)
	touch $@

# jax tries to use a TPU or a GPU where it finds their compilers, so they are kept out of the first
# environment.
$(PLAN_VENV)/.installed-tpu: $(VENV)/.installed
	$(call BEHIND,$(PLAN_VENV))
	$(call INSTALL,$(PLAN_VENV),--editable '.[plan-tpu]')
	touch $@

$(PLAN_VENV)/.installed: $(PLAN_VENV)/.installed-tpu
	$(call INSTALL,$(PLAN_VENV),--editable '.[plan-cuda]')
	touch $@
