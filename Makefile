# Two commands do everything, their own set-up included: `make quickstart` and `make test`.

PYTHON ?= python3
BIN := .venv/bin
# More than two cores have: the tests of SLURM mostly wait for it. Their libraries get a thread each, or they crowd.
TEST_PROCESSES ?= 4

.PHONY: quickstart test lint clean

quickstart: .venv/.run
	$(BIN)/isoflop run sweep=quickstart

test: .venv/.dev
	OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1 $(BIN)/pytest -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder $(TEST_FLAGS)

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] < (3, 11))' \
		|| { echo "isoflop needs Python 3.11 or later; name one with: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 2; }
	$(PYTHON) -m venv .venv

# A marker file each, touched when pip has finished, so that an interrupted installation is taken up again.
.venv/.run: .venv/bin/python pyproject.toml
	$(BIN)/python -m pip install --disable-pip-version-check -e .
	touch $@

.venv/.dev: .venv/bin/python pyproject.toml
	$(BIN)/python -m pip install --disable-pip-version-check -e '.[dev]'
	touch $@ .venv/.run

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis
