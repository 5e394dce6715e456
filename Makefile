# Each command sets itself up, in .venv, from setup.cfg; once that is done, it starts at once.
#   make quickstart   the main job on the embedded digits
#   make test         linter, types and the whole test suite
#   make oldest       the whole test suite with the oldest versions that setup.cfg declares, in .venv-oldest
#   make dist         what is published, checked, and its wheel tried in .venv-wheel
#   make gpu          on a machine with an NVIDIA GPU: the tests that need one, and all cases of the benchmark
# With another interpreter beside it: make test PYTHON=python3.12 VENV=.venv312

PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2
RUN := $(VENV)/bin/python
PIP := $(RUN) -m pip install --disable-pip-version-check --no-compile

# OpenMP threads that wait spin, by default for so long that a step on a shared machine takes ten times as long; not
# spinning at all costs a third of the speed on a machine of one's own. This is about 30 microseconds.
export GOMP_SPINCOUNT ?= 3000
# Memory that a step frees stays for the next one, which asks for as much again: without this glibc gives a tensor above
# 32 MiB back, and takes a page fault for every 4 KiB when the next is written.
export MALLOC_MMAP_THRESHOLD_ ?= 2147483647
export MALLOC_TRIM_THRESHOLD_ ?= 2147483647
unexport PYTHONDONTWRITEBYTECODE  # no byte-compiling below, so the first import has to do it

.PHONY: quickstart test lint suite oldest dist gpu clean
.NOTPARALLEL:  # two installations into one environment would collide

quickstart: $(VENV)/installed
	$(RUN) examples/quickstart.py

# Linter and types run beside the suite, and are shown where they fail; both take one core for a minute.
test: $(VENV)/installed-test
	@$(MAKE) lint >$(VENV)/lint.log 2>&1 & lint=$$!; $(MAKE) suite; suite=$$?; \
		wait $$lint || { cat $(VENV)/lint.log; exit 1; }; exit $$suite

lint: $(VENV)/installed-test
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

suite: $(VENV)/installed-test
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n $(WORKERS) --dist worksteal

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

# PyTorch, Lightning and pytest may be there already: make gpu READY=1 RUN=python takes them as they are.
gpu: $(if $(READY),,$(VENV)/installed-test)
	@$(RUN) -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || { echo "error: no NVIDIA GPU here" >&2; exit 1; }
	$(RUN) -m pytest -m gpu tests
	$(RUN) -m benchmarks all --precision bf16-mixed --steps 10 --warmup 3 --blocks 2 --store
	$(RUN) -m benchmarks --precision bf16-mixed --compile --steps 20 --warmup 5 --store

clean:
	rm -rf $(VENV)

# Editable: the environment follows the checkout, so that code, tests and configs/ always belong together.
# uv unpacks PyTorch's gigabytes in parallel, in a quarter of pip's time; pip does it where uv cannot
# (a package index that only pip's own configuration names). Neither byte-compiles what is never imported.
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
	$(call install,.[examples])
	@touch $@

$(VENV)/installed-test: $(DECLARED)
	$(call install,.[test])
	@touch $(VENV)/installed $@
