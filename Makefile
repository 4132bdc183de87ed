# Two commands do everything: `make train` runs the main job, `make test` checks the code.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: train check test lint clean

train: $(INSTALLED)
	$(BIN)/python experiments/data_parallel.py --run-dir runs/quickstart --resume

PYTEST := $(BIN)/python -m pytest
# Two processes take the files in turn.
TWO := --numprocesses 2 --dist loadfile --no-loadscope-reorder --max-worker-restart 0

# Lint, types, units, and the laws at their smallest: what to run before every commit.
check: $(INSTALLED) lint
	$(PYTEST) $(TWO) -m "not long" tests

# A crash ends the run: replacing the process that crashed, pytest-xdist 3.8 can wait for ever. Ray ends the process that uses it
# once its head node is gone: its tests have a process of their own.
test: $(INSTALLED) lint
	$(PYTEST) $(TWO) --ignore tests/distributed/test_on_ray.py
	$(PYTEST) tests/distributed/test_on_ray.py

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The pins are what was tested; the package itself is installed without looking for newer ones.
$(INSTALLED): requirements.txt setup.cfg pyproject.toml
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'Python 3.11 or newer is needed: make PYTHON=python3.11')"
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --requirement requirements.txt
	$(BIN)/pip install --quiet --no-deps --editable .
	touch $(INSTALLED)

clean:
	rm -rf .venv .cache
