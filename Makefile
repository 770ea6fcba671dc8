# Everything on a fresh machine with python3 >= 3.11 and make: each target makes .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# A test process a core, of one thread each (tests/conftest.py); a file's tests stay in one process.
PYTEST := $(BIN)/pytest -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder
# Each process that a test starts would compile the house anew.
unexport PYTHONDONTWRITEBYTECODE
SOURCES := $(shell find harness tasks -name '*.py' -o -name '*.yaml' -o -name '*.safetensors' -o -name '*.json' 2>/dev/null | sort)

.PHONY: install demo test check fuzz faults bench baseline regress clean

install: $(VENV)/.installed

# A strict editable install lists the files that there were (and lets mypy see harness.tasks), so it
# is made again when one comes or goes: FILES holds the list, and changes only with it (or where
# somebody emptied build/, where the links are).
$(VENV)/.installed: pyproject.toml $(VENV)/FILES
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]' \
	  --config-settings editable_mode=strict
	@touch $@

$(VENV)/FILES: FORCE | $(BIN)/python
	@ls -d build/__editable__.* > /dev/null 2>&1 && echo '$(SOURCES)' | cmp -s - $@ || echo '$(SOURCES)' > $@

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit("python3 >= 3.11 is needed" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)

demo: install
	@echo 'Every task on painted scenes: two small ViTs alike but for registers, and two floors. No download.'
	$(BIN)/harness run --suite demo --out build/demo

# ONLY=slow: what `make check` left out.
test: install
	$(PYTEST) $(if $(ONLY),-m $(ONLY))

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(PYTEST) -m 'not slow' -q

# Damaged and hostile files for every reader (docs/security.md): make fuzz SECONDS=20 TARGET=voc,coco;
# make fuzz TARGET=voc SEED=17 runs one case again.
SECONDS ?= 300
fuzz: install
	cd tests && PYTHONPATH=. ../$(BIN)/python -m fuzz.campaign --seconds $(SECONDS) \
	  $(if $(TARGET),--target $(TARGET)) $(if $(SEED),--seed $(SEED))

# Commands that are killed, meet, or find the disk full (docs/faults.md): make faults RUNS=5
# TARGET=run,report; make faults TARGET=run SEED=17 runs one case again. SECONDS are for each target.
faults: install
	cd tests && PYTHONPATH=. OMP_NUM_THREADS=1 ../$(BIN)/python -m faults.campaign --seconds $(SECONDS) \
	  $(if $(RUNS),--runs $(RUNS)) $(if $(TARGET),--target $(TARGET)) $(if $(SEED),--seed $(SEED)) \
	  $(if $(FAULT),--fault "$(FAULT)")

# On generated pictures with random weights: ratios, measured in one run.
bench: install
	$(BIN)/harness bench lost
	$(BIN)/harness bench tokencut
	$(BIN)/harness bench attention
	$(BIN)/harness bench registers
	$(BIN)/harness bench paint
	$(BIN)/harness bench anatomy --batch-size 8
	$(BIN)/harness bench extract --model vits --dataset generated --weights random
	$(BIN)/harness bench knn
	$(BIN)/harness bench tables
	$(BIN)/harness bench linear
	$(BIN)/harness bench logistic --limit 1000
	$(BIN)/harness bench stored --model nano --dataset scenes-demo
	$(BIN)/harness bench memory
	$(BIN)/harness bench grid

# What CI compares with (docs/ci.md): run it in a clean clone, on a machine that does nothing else,
# and commit it where the numbers are meant to move.
baseline: install
	$(BIN)/harness run --suite demo --out results/baseline --overwrite --no-store
	$(BIN)/harness leaderboard --all --results results/baseline --out results/LEADERBOARD.md

# The demo, held against it.
regress: demo
	$(BIN)/harness regress --baseline results/baseline --candidate build/demo

clean:
	rm -rf $(VENV) build dist *.egg-info

FORCE:
