# Setting up is part of every target: each works on a fresh machine with Python 3.11 or later and nothing else.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
TORCH  ?= torch==2.13.0

.PHONY: help setup tools demo test lint bench bench-joint bench-cine soak fuzz image-test clean
help:           ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

setup: $(VENV)/.installed   ## the environment, torch first so that no CUDA build is pulled
$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(TORCH)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

tools:          ## Debian's bart and ismrmrd-tools, which some tests compare with; those are skipped without
	$(shell [ "$$(id -u)" = 0 ] || echo sudo) apt-get update -q
	$(shell [ "$$(id -u)" = 0 ] || echo sudo) apt-get install -qy --no-install-recommends bart ismrmrd-tools

demo: setup     ## a scan through a server on this machine; pictures in demo-output/
	$(BIN)/echotrain demo --output demo-output

lint: setup     ## ruff, mypy, pyright, import contracts
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/mypy && $(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

bench: setup    ## every figure of BENCHMARKS.md again, into bench-output/ (about ten minutes; close other work first)
	mkdir -p bench-output
	for name in cold_start latency ingest wire_parse assembly_ingest job_round_trip real_scan sense_against_bart sense_regularisation uncertainty_calibration nonuniform_radial nonuniform_spiral; do \
	  echo "== $$name"; $(BIN)/python tests/benchmarks/$$name.py 2>&1 | tee bench-output/$$name.txt; done

bench-joint: setup ## figures of joint_ipalm, which take hours of a CPU; goes on where it was stopped
	mkdir -p bench-output
	for name in joint_against_nlinv uncertainty_transfer total_variation_weight mask_table; do \
	  echo "== $$name"; $(BIN)/python tests/benchmarks/$$name.py 2>&1 | tee bench-output/$$name.txt; done

bench-cine: setup  ## figures of cine_ls_dip, which take an hour of a CPU; the table goes on where it was stopped
	mkdir -p bench-output
	for name in cine_table cine_calibration; do \
	  echo "== $$name"; $(BIN)/python tests/benchmarks/$$name.py 2>&1 | tee bench-output/$$name.txt; done
	$(BIN)/echotrain bench cine --output bench-output/bench-cine.json

SESSIONS ?= 2000
SECONDS  ?= 600
SEED     ?= 1

soak: setup     ## sessions with random faults against a real server, every history checked; SESSIONS=2000 SEED=1
	$(BIN)/python -m tests.soak --sessions $(SESSIONS) --seed $(SEED)

fuzz: setup     ## whatever bytes a peer may send, into all that reads them; SECONDS=600 SEED=1
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[fuzz]' || echo "no atheris here: mutations only" >&2
	$(BIN)/python -m tests.fuzz --seconds $(SECONDS) --seed $(SEED)

test: setup lint   ## everything that must hold before a change lands
	$(BIN)/pytest -n 2 --dist loadfile

image-test: setup   ## build the container image, run it locked down, stream a scan through it
	deploy/image-test.sh

clean:          ## remove what the targets made
	rm -rf $(VENV) demo-output bench-output soak-output fuzz-output .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
