# make demo   train SFace on real faces and evaluate on people it never saw; BACKEND=mxnet or jittor: in that framework
# make test   lint, types, import contracts and every test
# Both set up .venv first. Another interpreter: make PYTHON=python3.12 demo

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
BACKEND ?= pytorch
BACKENDS := pytorch mxnet jittor
JOBS := 2
# Tests of several ranks share what jobs of them left, hence a file a worker; they take longest, hence first.
# Threads of each of these: frameworks that share a core with another one spin, and take many times longer.
TEST := OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n $(JOBS)

.PHONY: demo test lint clean

demo: $(VENV)/installed-$(BACKEND) $(VENV)/installed-demo
	test -e datasets/orl/property || $(RUN) -m data orl --out datasets/orl
	$(RUN) -m $(BACKEND)_impl train orl-demo

test: $(VENV)/installed-dev $(VENV)/installed-all lint
	$(TEST) common data benchmarks parity_tests
	for backend in $(BACKENDS); do \
		$(TEST) --dist loadfile --no-loadscope-reorder $${backend}_impl/tests/test_distributed.py $${backend}_impl \
		|| exit 1; done

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
