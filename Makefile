# A fresh clone with Python 3.10+, pip and make needs nothing else: every target builds the virtual environment it
# uses, and rebuilds it only when pyproject.toml changes.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
PIP    := $(BIN)/python -m pip --disable-pip-version-check --quiet

.PHONY: run test lint audit docs proto unit starved fuzz soak clients clients-install apps apps-install simulation simulate cluster survival large chaos chaos-threads chaos-nodes chaos-short bench scale clean
.DEFAULT_GOAL := test

# The main job: embedded Ray, three members from cluster.yaml, the standard library indexed, a worker and a leader killed.
run: $(STAMP)
	@$(BIN)/python examples/index_stdlib.py cluster.yaml

# About, on two cores: lint 20 s, unit 5 min, clients 1 min, simulation 1 min, cluster 10 min, chaos-short 2 min.
test: lint unit clients simulation cluster chaos-short

lint: $(STAMP)
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check .
	@$(BIN)/mypy --no-error-summary
	@MYPYPATH=.types:benchmarks $(BIN)/mypy --no-error-summary --config-file= --ignore-missing-imports --check-untyped-defs --explicit-package-bases benchmarks
	@said=$$($(BIN)/lint-imports --no-cache 2>&1) || { echo "$$said"; exit 1; }
	@$(BIN)/codespell
	@$(PIP) check

# Before a release: whether all dependencies are current. Asks the package index.
audit: $(STAMP)
	@PYTHONPATH=tests $(BIN)/python -m lab.dependencies

# The tables in docs/reference/, from limits.py and .importlinter; a unit test says whether they are current.
docs: $(STAMP)
	@$(BIN)/python docs/tables.py

# The messages of etcd's API, from the .proto files; a unit test says whether they are current. Needs the package
# grpcio-tools, which nothing else does.
ETCDPB := raykeeper/actors/proxy/etcdpb
proto: $(STAMP)
	@$(PIP) install grpcio-tools
	@$(BIN)/python -m grpc_tools.protoc -I .types --include_imports --pyi_out=.types \
	    --descriptor_set_out=.types/$(ETCDPB)/descriptors.binpb $(patsubst actors/%,raykeeper/actors/%,$(wildcard actors/proxy/etcdpb/*.proto))

unit: $(STAMP)
	@$(BIN)/pytest -q -n 4 tests/unit tests/fuzz

# The unit tests on a machine that has no time for them: a test that fails here only says something of the machine.
starved: $(STAMP)
	@PYTHONPATH=tests $(BIN)/python -m lab.starved tests/unit tests/fuzz

# Every decoder of what others wrote, under arbitrary bytes, for MINUTES; `make unit` tries a few of each.
fuzz: $(STAMP)
	@PYTHONPATH=tests $(BIN)/python -m fuzz.campaign --minutes $(MINUTES) $(if $(SEED),--seed $(SEED))

# A proxy's port under all attacks at once, round after round for MINUTES; one line a round, and a verdict.
soak: $(STAMP)
	@PYTHONPATH=tests $(BIN)/python -m soak.hostile_proxy --minutes $(MINUTES)

# Clients of etcd, unmodified, at a proxy's port and at a real etcd's. What is not installed is skipped, and says so.
clients: $(STAMP)
	@$(BIN)/pytest -q -m 'not survival' -n 2 tests/clients

# All of them that the machine's package managers offer; those of the system need root.
clients-install: $(STAMP)
	@$(PIP) install --no-build-isolation -e '.[clients]' || echo "not all of Python's clients of etcd could be installed"
	@npm install --silent --no-audit --no-fund --prefix $(VENV)/node etcd3 >/dev/null || echo "npm's etcd3 could not be installed"
	@apt-get install -qq --yes --no-install-recommends etcd-client golang-go golang-etcd-server-dev postgresql chromium >/dev/null || \
	    echo "Debian's etcdctl, clientv3 for Go, PostgreSQL and Chromium could not be installed"

# Ray Data, Train, Serve and Jobs with the real libraries, some 400 MB, and nodes that are lost. What is not installed is
# skipped, and says so.
apps: $(STAMP)
	@$(BIN)/pytest -q tests/cluster/test_ray_libraries.py

apps-install: $(STAMP)
	@$(PIP) install --no-build-isolation -e '.[data,train,serve,jobs]'

simulation: $(STAMP)
	@$(BIN)/pytest -q -n auto tests/simulation

# A campaign of simulated clusters: SEEDS of them, resumable, on all cores, and what they reached. SEED=n runs one again
# and prints its trace; KEEP=n chooses the corpus again, of at most n seeds.
SEEDS ?= 200
simulate: $(STAMP)
	@PYTHONPATH=tests $(BIN)/python -m simulation.campaign \
	    $(if $(SEED),--seed $(SEED) --verbose $(if $(PROFILE),--profile "$(PROFILE)"),--seeds $(SEEDS) $(if $(FIRST),--first $(FIRST)) $(if $(KEEP),--keep $(KEEP)))

# Real Ray and real processes, which mostly wait for something to end or to be noticed: two files at a time, each with a
# Ray of its own; of the tests marked `survival` only those marked `core`.
cluster: $(STAMP)
	@$(BIN)/pytest -q -m '(core or not survival) and not long' -n 2 --dist loadfile tests/cluster

# Faults, membership, healing and backups, on real processes; tests marked `core` are part of `make test`. Also the
# clients of etcd that take their time.
survival: $(STAMP)
	@$(BIN)/pytest -q -m survival tests/cluster
	@$(BIN)/pytest -q -m survival tests/clients

# A campaign of faults against real processes: MINUTES of it, from one seed; the history is left in chaos-runs/seed-*/.
# LANES=off: members and clients use actor calls alone. PROXIES=0: no part of the work goes through proxies, as etcd's.
# MIX=long: one of those of tests/chaos/mixes.py. HOURS=8: all of them by turns, for a night, and a table of what ran.
# Error 1: a promise was broken; 2: the faults did not bite; 3: the campaign itself failed. The last line says which.
MINUTES ?= 2
CHAOS   = --minutes $(MINUTES) $(if $(SEED),--seed $(SEED)) $(if $(LANES),--lanes $(LANES)) $(if $(PROXIES),--proxies $(PROXIES)) $(if $(MIX),--mix $(MIX))
chaos: $(STAMP)
	@PYTHONPATH=tests $(BIN)/python -m $(if $(HOURS),chaos.night --hours $(HOURS) $(if $(SEED),--seed $(SEED)),chaos.campaign $(CHAOS))

# The same without Ray, with members as threads: quicker, and without the death of processes.
chaos-threads: $(STAMP)
	@PYTHONPATH=tests $(BIN)/python -m chaos.threads --minutes $(MINUTES) $(if $(SEED),--seed $(SEED))

# The same on several Ray nodes, which are lost, too.
chaos-nodes: $(STAMP)
	@PYTHONPATH=tests $(BIN)/python -m chaos.nodes $(CHAOS)

# The part of it that belongs to `make test`.
chaos-short: $(STAMP)
	@PYTHONPATH=tests $(BIN)/python -m chaos.campaign --minutes 2 --seed 4

# A large state moves to a new member under load; prints how long that took and what writers saw of it.
large: $(STAMP)
	@RAYKEEPER_LARGE_MEGABYTES=$(MEGABYTES) $(BIN)/pytest -q -s -m long tests/cluster/test_large.py

# What one group carries on this machine, written into docs/scale.md: about half an hour. SCALE=--quick for a look.
SCALE ?= --docs
scale: $(VENV)/.bench
	@$(BIN)/python benchmarks/scale.py $(SCALE)

# RayKeeper beside etcd, ZooKeeper and a Ray actor, written into docs/benchmarks.md: two hours, on a machine that does
# nothing else. ARGS=--quick takes a few minutes, and writes nothing into the docs. Peers that are not installed are named.
ARGS ?= --docs
bench: $(VENV)/.bench
	@$(BIN)/python benchmarks/run.py $(ARGS)

$(VENV)/.bench: $(STAMP)
	@PYTHONWARNINGS=ignore $(PIP) install --no-build-isolation -e '.[bench]' || \
	    echo "some peers could not be installed: they are left out"
	@touch $@

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
	@rm -rf $(VENV) build dist *.egg-info tests/.pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
