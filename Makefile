# Two commands do everything: `make train` runs the main job, `make test` checks the code.
PYTHON ?= python3
VENV := .venv
PACKAGES := --requirement requirements.txt
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: train check test test-images images test-matrix test-oldest test-newest lint faults wheel-check clean

train: $(INSTALLED)
	$(BIN)/python experiments/data_parallel.py --run-dir runs/quickstart --resume

PYTEST := $(BIN)/python -m pytest
# Two processes take the files in turn.
TWO := --numprocesses 2 --dist loadfile --no-loadscope-reorder --max-worker-restart 0 --ignore tests/images

# Lint, types, units, and the laws at their smallest: what to run before every commit.
check: $(INSTALLED) lint
	$(PYTEST) $(TWO) -m "not long" tests

# A crash ends the run: replacing the process that crashed, pytest-xdist 3.8 can wait for ever. Ray ends the process that uses it
# once its head node is gone: its tests have a process of their own.
test: $(INSTALLED) lint
	$(PYTEST) $(TWO) --ignore tests/distributed/test_on_ray.py
	$(PYTEST) tests/distributed/test_on_ray.py

# What needs packages under other licences, in an environment of its own.
test-images:
	$(MAKE) images VENV=.venv-images PACKAGES="$(PACKAGES) --requirement requirements-images.txt"

images: $(INSTALLED)
	$(PYTEST) tests/images

# The same with the oldest versions that setup.cfg allows, on Python 3.11 or 3.12, and with the newest, on any.
test-oldest:
	$(MAKE) test VENV=.venv-oldest \
		PACKAGES="$$(sed -nE 's/^(    |ray = |gymnasium = |tensorboard = )([A-Za-z-]+)>=([0-9.]+).*/\2==\3/p' setup.cfg | xargs)"

test-newest:
	$(MAKE) test VENV=.venv-newest PACKAGES="--editable .[dev,ray,gymnasium,tensorboard,wandb]"

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Every algorithm in every driver, compiled and trained for two chunks: a quarter of an hour, so not part of `make test`, which
# traces them.
test-matrix: $(INSTALLED)
	$(BIN)/python tests/matrix.py --out experiments/results/matrix.json

# Kills, signals and damage at random moments: a quarter of an hour, so not part of `make test`.
faults: $(INSTALLED)
	$(BIN)/python tests/faults.py --out experiments/results/faults.json

# What a user gets: the wheel in an environment of its own, away from the checkout, and its types in a program of theirs.
wheel-check: $(INSTALLED)
	set -e; dir=$$(mktemp -d); trap 'rm -rf build "$$dir"' EXIT; rm -rf build; \
	$(BIN)/pip wheel --quiet --no-deps --wheel-dir "$$dir" .; \
	$(PYTHON) -m venv "$$dir/venv"; \
	"$$dir/venv/bin/pip" install --quiet --constraint requirements.txt "$$dir"/*.whl; \
	cd "$$dir"; \
	venv/bin/python -I $(CURDIR)/tools/wheel_check.py $(CURDIR)/README.md; \
	$(CURDIR)/$(BIN)/mypy --strict --python-executable venv/bin/python -c \
		'from dqn_jax.config import DataParallelExperiment; name: int = DataParallelExperiment().env  # type: ignore[assignment]'

# The pins are what was tested; the package itself is installed without looking for newer ones.
$(INSTALLED): requirements.txt setup.cfg pyproject.toml
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'Python 3.11 or newer is needed: make PYTHON=python3.11')"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet $(PACKAGES)
	$(BIN)/pip install --quiet --no-deps --editable .
	touch $(INSTALLED)

clean:
	rm -rf .venv .venv-images .venv-oldest .venv-newest .cache
