# Each target creates its environment, .venv, from setup.cfg when it is first needed.
#   make quickstart   train teacher and students on the embedded digits
#   make test         linter, type checker and all tests
#   make oldest       all tests with the oldest versions declared in setup.cfg, in .venv-oldest
#   make dist         build and check the distributions, and try the wheel in .venv-wheel
#   make gpu          tests and benchmarks that need an NVIDIA GPU
# For another interpreter: make test PYTHON=python3.12 VENV=.venv312

PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2
RUN := $(VENV)/bin/python
PIP := $(RUN) -m pip install --disable-pip-version-check --no-compile

# Of the tests and benchmarks; the programs set their own: see hsakd_pl/cpu/start.py.
export GOMP_SPINCOUNT ?= 3000
export MALLOC_MMAP_MAX_ ?= 0
export MALLOC_TRIM_THRESHOLD_ ?= 2147483647
export MALLOC_ARENA_MAX ?= 1
unexport PYTHONDONTWRITEBYTECODE  # pip does not compile below, so the first import has to

.PHONY: quickstart test lint suite oldest dist gpu clean
.NOTPARALLEL:  # two installations into one environment would interfere

quickstart: $(VENV)/installed
	$(RUN) -m hsakd_pl.quickstart

# Linter and type checker run during the tests, about a minute on one core; their output is shown if they fail.
test: $(VENV)/installed-test
	@$(MAKE) lint >$(VENV)/lint.log 2>&1 & lint=$$!; $(MAKE) suite; suite=$$?; \
		wait $$lint || { cat $(VENV)/lint.log; exit 1; }; exit $$suite

lint: $(VENV)/installed-test
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

suite: $(VENV)/installed-test
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n $(WORKERS) --dist worksteal --durations 20

oldest:
	UV_RESOLUTION=lowest-direct $(MAKE) suite VENV=.venv-oldest

dist: $(VENV)/installed-test
	rm -rf dist $(VENV)-wheel
	$(RUN) -m build
	$(RUN) -m twine check --strict dist/*
	$(PYTHON) -m venv $(VENV)-wheel
	$(RUN) -m uv pip install --python $(VENV)-wheel dist/*.whl
	cd $(VENV)-wheel && bin/hsakd fit --model BaselineModule --model.network resnet8 --data DigitsDataModule \
		--trainer.max_epochs 1 --trainer.accelerator cpu

# With PyTorch, Lightning and pytest already installed: make gpu READY=1 RUN=python.
gpu: $(if $(READY),,$(VENV)/installed-test)
	@$(RUN) -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || { echo "error: no NVIDIA GPU here" >&2; exit 1; }
	$(RUN) -m pytest -m gpu tests
	$(RUN) -m benchmarks all --loops plain step-bf16 fit-bf16 --steps 10 --warmup 3 --rounds 2 --store
	$(RUN) -m benchmarks --loops plain plain-compiled step-bf16-compiled fit-bf16-compiled --warmup 5 --store

clean:
	rm -rf $(VENV)

# Editable, so that code, tests and configs/ always belong to the same checkout. uv installs PyTorch's gigabytes in a
# quarter of pip's time; pip is the fallback if uv fails (a package index that only pip's configuration names). Neither
# byte-compiles modules that are never imported.
define install
@$(PYTHON) -c '' 2>/dev/null || \
	{ echo "error: no $(PYTHON): install Python 3.10 or newer, or name one: make PYTHON=..." >&2; exit 1; }
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	{ echo "error: $$($(PYTHON) -V 2>&1) is too old, 3.10 or newer is needed: make PYTHON=..." >&2; exit 1; }
@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
	{ echo "error: $(PYTHON) lacks its venv module (Debian, Ubuntu: apt install python3-venv)" >&2; exit 1; }
$(PYTHON) -m venv $(VENV)
$(PIP) uv && $(RUN) -m uv pip install --python $(RUN) -e '$(1)' || $(if $(UV_RESOLUTION),false,$(PIP) -e '$(1)')
endef

DECLARED := setup.cfg pyproject.toml hsakd_pl/version.py

$(VENV)/installed: $(DECLARED)
	$(call install,.)
	@touch $@

$(VENV)/installed-test: $(DECLARED)
	$(call install,.[test])
	@touch $(VENV)/installed $@
