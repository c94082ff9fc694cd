# make demo   train SFace on real faces and evaluate on people it never saw; BACKEND=mxnet or jittor: in that framework
# make check  lint, types, import contracts, and the tests that start no framework: after each change
# make test   all of these and every other test: before a commit is shared
# Each sets up .venv first. Another interpreter: make PYTHON=python3.12 demo

SHELL := bash -o pipefail
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
BACKEND ?= pytorch
# Suites run side by side, as some compile or wait for a rank, a process each: one framework, one process.
SUITES := jittor parity mxnet pytorch common
JOBS := 3

.PHONY: demo check test lint clean $(SUITES:%=test-%)

demo: $(VENV)/installed-$(BACKEND) $(VENV)/installed-demo
	test -e datasets/orl/property || $(RUN) -m data orl --out datasets/orl
	$(RUN) -m $(BACKEND)_impl train orl-demo

test: $(VENV)/installed-dev $(VENV)/installed-all lint
	$(MAKE) --no-print-directory --keep-going --jobs $(JOBS) $(SUITES:%=test-%)

check: $(VENV)/installed-dev lint
	$(RUN) -m pytest -n 2 -m "not framework" common data

test-common: FOLDERS = common data benchmarks
test-parity: FOLDERS = parity_tests
# Frameworks whose threads share a core spin, and take many times longer: one thread each.
test-%: FOLDERS = $*_impl
$(SUITES:%=test-%): test-%:
	OMP_NUM_THREADS=1 $(RUN) -m pytest $(FOLDERS) 2>&1 | sed -u 's/^/$*: /'

lint: $(VENV)/installed-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

# A stamp each, so that nothing is installed twice and a changed pin is.
$(VENV)/installed-%: requirements/%.txt $(wildcard requirements/*.txt) | $(VENV)/bin/python
	$(RUN) -m pip install --disable-pip-version-check -r $<
	touch $@

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info[:2] <= (3, 12) else "Python 3.11 or 3.12 is needed, this is " + sys.version)'
	$(PYTHON) -m venv $(VENV)

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
