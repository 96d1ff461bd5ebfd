# `make demo` and `make test` set up by themselves; what they do is in tools/bootstrap.py.
# PYTHON=python3.12 chooses the interpreter, CMAKE_ARGS="-DGGML_CUDA=on" builds for an NVIDIA GPU,
# ARGS goes to the command: make demo ARGS='--duration 20', make test ARGS='-m "not slow"'.

PYTHON ?= python3
ARGS ?=
N ?= 60
SMALL ?= 10
STEPS ?= 1000000
EACH ?= 1000
MINUTES ?= 15
HOURS ?=
BIN := .venv/bin
BOOTSTRAP_ARGS := $(if $(filter file,$(origin PYTHON)),,--this-python)

# A sourced ROS has its own rclpy for its own Python: the wheels in .venv must not meet it.
unexport PYTHONPATH PYTHONHOME _ROS_WHEELS_BOOTSTRAP_COMPLETE
ifdef AMENT_PREFIX_PATH
unexport AMENT_PREFIX_PATH CMAKE_PREFIX_PATH COLCON_PREFIX_PATH LD_LIBRARY_PATH RMW_IMPLEMENTATION
endif

.DEFAULT_GOAL := setup
.PHONY: help setup demo bench test faults traces soak mutants fuzz lint clean

help:
	@echo 'make          set up .venv (pinned, no ROS needed); the first time builds llama.cpp'
	@echo 'make demo     run the simulated robot for a minute and write runs/<time>/report.html'
	@echo 'make bench    measure decisions beside other ways and the floor: runs/<time>/bench.html'
	@echo 'make test     run every test'
	@echo 'make faults   inject real faults, some 75 minutes: N=60 SMALL=10 ARGS=...'
	@echo 'make traces   the same on a virtual clock: STEPS=1000000 EACH=1000'
	@echo 'make soak     the healthy system beside busy neighbours: MINUTES=15, or HOURS=1'
	@echo 'make mutants  plant defects in the gate; the tests must find each'
	@echo 'make fuzz     100,000 absurd messages of every family'
	@echo 'make lint     ruff and mypy --strict'
	@echo 'make clean    remove .venv and what was built; runs/ and downloaded models stay'

setup:
	@command -v '$(PYTHON)' >/dev/null || \
	  { echo "setup: no '$(PYTHON)' here: sudo apt install python3 python3-venv" >&2; exit 1; }
	@'$(PYTHON)' tools/bootstrap.py $(BOOTSTRAP_ARGS)

demo: setup
	@$(BIN)/smallm demo $(ARGS)

bench: setup
	@$(BIN)/smallm bench $(ARGS)

test: setup
	@$(BIN)/python -m pytest $(ARGS)

# Nobody else should use the machine meanwhile.
faults: setup
	@$(BIN)/python -m tests.faults -n $(N) --small $(SMALL) $(ARGS)

# On a virtual clock; EACH=10000 takes an hour on two cores.
traces: setup
	@$(BIN)/python -m tests.proofs.traces --steps $(STEPS) --each $(EACH) --hours 24
	@$(BIN)/python -m tests.proofs.hostile --count 100000

soak: setup
	@$(BIN)/python -m tests.faults.soak $(if $(HOURS),--hours $(HOURS),--minutes $(MINUTES)) $(ARGS)

mutants: setup
	@$(BIN)/python -m tests.proofs.mutants $(ARGS)

fuzz: setup
	@$(BIN)/python -m tests.fuzz $(ARGS)

lint: setup
	@$(BIN)/ruff check .
	@$(BIN)/mypy

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
