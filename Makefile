# Every target sets itself up in $(VENV) and touches nothing outside this folder.
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/
STAMP := $(VENV)/.installed
SEED ?= 0
ORDER ?= 0
DOCS_STAMP := $(VENV)/.installed-docs

export PIP_NO_CACHE_DIR := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export XDG_CACHE_HOME := $(CURDIR)/.cache
export MPLCONFIGDIR := $(CURDIR)/.cache/matplotlib
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help compare test check arviz slow bench evidence evidence-long docs clean oldest dist

help:  ## the targets
	@grep -E '^[a-z-]+:.*##' Makefile | sed 's/:.*##/\t/' | expand -t 16

$(STAMP): setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if (3, 11) <= v[:2] <= (3, 13) else f"pyro-vae needs Python 3.11, 3.12 or 3.13, and $(PYTHON) is {v[0]}.{v[1]}: name another one, make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(RUN)python -m pip install --quiet $(PIP_FLAGS) --constraint constraints.txt --editable '.[test]'
	touch $@

compare: $(STAMP)  ## the main job: guides compared on real handwritten digits, into runs/digits/
	$(RUN)pyro-vae compare digits

check: $(STAMP)  ## ruff and mypy --strict
	$(RUN)ruff check .
	$(RUN)ruff format --check .
	$(RUN)mypy

test: check  ## check, then the whole test suite with the doctests; SEED=1: on other random streams; ORDER=1: in another order
	OMP_NUM_THREADS=1 SEED=$(SEED) ORDER=$(ORDER) $(RUN)python -m pytest -n auto -m 'not slow' --hypothesis-seed=$(SEED)

arviz: $(STAMP)  ## the tests that face ArviZ (for the other line: make arviz VENV=.venv-3.12 PYTHON=python3.12)
	OMP_NUM_THREADS=1 $(RUN)python -m pytest -n auto -m 'arviz and not slow' $$(grep -rl --include='test_*.py' 'mark\.arviz' tests)

slow: $(STAMP)  ## the tests that take minutes
	$(RUN)python -m pytest -m slow

oldest:  ## the tests of what the oldest dependencies could break, on those (Python 3.11)
	$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info[:2] == (3, 11) else "constraints-oldest.txt is for Python 3.11: make oldest PYTHON=python3.11")'
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet --constraint constraints-oldest.txt --editable '.[parquet,zarr,dask]' pytest pytest-xdist hypothesis mpmath
	OMP_NUM_THREADS=1 .venv-oldest/bin/python -m pytest -n auto -W default -m 'not slow' tests

dist: $(STAMP)  ## wheel and source distribution, into dist/
	$(RUN)python -m pip install --quiet --constraint constraints.txt build
	$(RUN)python -m build --outdir dist

bench: $(STAMP)  ## step time, sweep and start against peers, as ratios (NumPyro and pythae are installed for it)
	$(RUN)python -m pip install --quiet --constraint constraints.txt --editable '.[test,benchmark]'
	$(RUN)python benchmarks/step_time.py 64 64 8
	$(RUN)python benchmarks/step_time.py 784 400 20
	$(RUN)python benchmarks/sweep_time.py
	$(RUN)python benchmarks/start_time.py

evidence: $(STAMP)  ## does the parameterization matter? 20 minutes, into evidence/; QUICK=1: 3, into runs/evidence/; MNIST=FOLDER
	$(RUN)python -m evidence.run $(if $(QUICK),--quick) $(if $(MNIST),--mnist '$(MNIST)')

evidence-long: $(STAMP)  ## the published runs at full length (hours; starts or resumes), into runs/evidence-long/; MNIST=FOLDER
	$(RUN)python -m evidence.long train --mnist '$(MNIST)'
	$(RUN)python -m evidence.long test --mnist '$(MNIST)'

$(DOCS_STAMP): $(STAMP)
	$(RUN)python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	touch $@

docs: $(DOCS_STAMP)  ## the documentation site, into docs/_build/html
	$(RUN)python docs/figures/house.py
	$(RUN)python -m sphinx -q -W --keep-going -E -b html docs docs/_build/html
	@echo 'open docs/_build/html/index.html'

clean:  ## remove what these targets made, but not runs/
	rm -rf docs/_build build dist .venv .venv-3.12 .venv-oldest .cache .mypy_cache .ruff_cache .pytest_cache *.egg-info
