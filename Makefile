# Every target makes or refreshes .venv first; `make help` lists them.
#   PYTHON=/path/to/python3   the Python that .venv is made with
#   PY=/path/to/python        use this environment instead of .venv, as it is
#   ARGS="..."                handed to the command behind the target

PY := .venv/bin/python
# Any Python 3 starts the script: it looks for a recent one itself.
STARTER := $(shell for python in python3 python3.13 python3.12 python3.11 python3.10 "$(PYTHON)"; do \
	"$$python" -c "" 2>/dev/null && echo "$$python" && break; done)

.PHONY: help setup demo test test-oldest bench kernels gpu check docs tables
.DEFAULT_GOAL := help

help:
	@echo "make setup   make .venv with pinned packages, detectron2 and normdet"
	@echo "make demo    train Mask R-CNN with GN and FRN+TLU on nuclei: output/demo/report.html"
	@echo "make test    run the test suite (ARGS='-m \"not slow\"' for the quick part)"
	@echo "make test-oldest  run the quick tests with the oldest versions, in .venv-oldest (Python 3.10)"
	@echo "make bench   time the layers and their kernels on this machine"
	@echo "make kernels compile the GPU kernels without a GPU and look at their machine code"
	@echo "make gpu     ten minutes on a GPU: tests, the kernels and whole steps beside their peers"
	@echo "make check   look for errors of style with ruff"
	@echo "make docs    build the site: docs/_build/html/index.html"
	@echo "make tables  write the tables of the README and of docs/ anew, from results/ and the code"
	@echo "PYTHON=... picks the Python that .venv is made with, PY=... another environment"

ifneq ($(PY),.venv/bin/python)
setup:
	@why=$$("$(PY)" -W ignore -c "import normdet" 2>&1) || { \
	echo "setup: normdet does not import with PY=$(PY): $$(echo "$$why" | tail -n 1)" >&2; exit 1; }
else ifeq ($(strip $(STARTER)),)
setup:
	@echo "setup: no Python found: install Python 3.10 or newer, or name it with PYTHON=/path/to/python3" >&2; exit 1
else
setup:
	@"$(STARTER)" tools/setup_env.py --python "$(PYTHON)"
endif

# Waiting threads sleep: on cores that others use too, spinning ones would slow training to a crawl.
demo: setup
	OMP_WAIT_POLICY=$${OMP_WAIT_POLICY:-PASSIVE} $(PY) -m normdet demo $(ARGS)

# A process for each core, and one thread in each: most tests are too small for two threads.
# ARGS='-n 0' runs them in one process, as a debugger needs it.
test: setup
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} OMP_WAIT_POLICY=$${OMP_WAIT_POLICY:-PASSIVE} \
		$(PY) -m pytest tests -n logical --maxprocesses 4 --dist worksteal $(ARGS)

# The oldest versions that setup.py claims: an environment of its own, and the quick tests in it,
# but for those of the site, whose tools are not there.
test-oldest:
	@"$(or $(strip $(STARTER)),python3)" tools/setup_env.py --oldest --python "$(PYTHON)"
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} OMP_WAIT_POLICY=$${OMP_WAIT_POLICY:-PASSIVE} \
		.venv-oldest/bin/python -m pytest tests -m "not slow" --ignore tests/docs \
		-n logical --maxprocesses 4 --dist worksteal $(ARGS)

# Needs no GPU: compiles for three, and fails on a spill or a narrow read.
kernels: setup
	$(PY) -m normdet bench --kernels $(ARGS)

bench: setup
	$(PY) -m normdet bench $(ARGS)

# Ten minutes in all; ARGS="--data DIR" adds the comparison, ARGS="smoke tests" runs those alone.
gpu: setup
	$(PY) tools/gpu.py $(ARGS)

check: setup
	$(PY) -m ruff check .

docs: setup
	$(PY) -m sphinx -W --keep-going -q -b html -d docs/_build/doctrees docs docs/_build/html $(ARGS)
	@echo "the site: docs/_build/html/index.html"

# What is measured goes to results/ as CSV; the tables of the README and of docs/ are made of it.
tables: setup
	$(PY) -m docs.tables $(ARGS)
