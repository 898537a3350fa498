# A fresh clone with Python 3.10+, pip and make needs nothing else: every target builds the virtual environment it
# uses, and builds it anew only when pyproject.toml changes.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
PIP    := $(BIN)/python -m pip --disable-pip-version-check --quiet

.PHONY: run test lint unit simulation simulate cluster clean
.DEFAULT_GOAL := test

# The main job: embedded Ray, three members from cluster.yaml, the standard library indexed, a worker and a leader killed.
run: $(STAMP)
	@$(BIN)/python examples/index_stdlib.py cluster.yaml

# About, on two cores that others used too: lint 20 s, unit 2 min, simulation 3.5 min, cluster 9 min.
test: lint unit simulation cluster

lint: $(STAMP)
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check .
	@$(BIN)/mypy --no-error-summary

unit: $(STAMP)
	@$(BIN)/pytest -q -n auto tests/unit

simulation: $(STAMP)
	@$(BIN)/pytest -q -n auto tests/simulation

# A campaign of simulated clusters: SEEDS of them, resumable, on all cores. SEED=n runs one again and prints its trace.
SEEDS ?= 200
simulate: $(STAMP)
	@PYTHONPATH=tests $(BIN)/python -m simulation.campaign \
	    $(if $(SEED),--seed $(SEED) --verbose $(if $(PROFILE),--profile "$(PROFILE)"),--seeds $(SEEDS))

# Real Ray and real processes. What is about the cluster itself runs one test at a time. What is about watches, leases and
# recipes mostly waits for leases to end: two files at a time, each with a Ray of its own.
cluster: $(STAMP)
	@$(BIN)/pytest -q -m 'not coordination' tests/cluster
	@$(BIN)/pytest -q -m coordination -n 2 --dist loadfile tests/cluster

# Debian splits ensurepip off python3: there the system's own pip fills the environment.
$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "RayKeeper needs Python 3.10 or newer")'
	@echo "installing into $(VENV) (once)"
	@$(PYTHON) -m venv $(VENV) >/dev/null 2>&1 || { $(PYTHON) -m venv --without-pip $(VENV) && \
	    $(PYTHON) -m pip --quiet --python $(BIN)/python install pip; }
	@$(PIP) install --upgrade pip 'setuptools>=77' wheel
	@PYTHONWARNINGS=ignore $(PIP) install --no-build-isolation -e '.[test]'
	@touch $@

clean:
	@rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
