# make demo   train SFace on real faces and evaluate on people it never saw; BACKEND=mxnet or jittor: in that framework
# make test   lint, types, import contracts and every test
# make numpy2 the tests of common and data with NumPy 2, in an environment of their own
# All set up .venv first, with the first fitting interpreter. Another one: make PYTHON=python3.12 demo

VENV := .venv
RUN := $(VENV)/bin/python
BACKEND ?= pytorch
BACKENDS := pytorch mxnet jittor
JOBS := 2
# MXNet and Jittor need NumPy 1.26, which ends at Python 3.12. So that is tried first, and PyTorch alone takes newer ones.
NEWEST := $(if $(filter test,$(MAKECMDGOALS))$(filter-out pytorch,$(BACKEND)),12,14)
# Tests of several ranks share what jobs of them left, hence a file a worker; they take longest, hence first.
# Threads of each of these: frameworks that share a core with another one spin, and take many times longer.
TEST := OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n $(JOBS)

.PHONY: demo test numpy2 lint clean

demo: $(VENV)/installed-$(BACKEND) $(VENV)/installed-demo
	test -e datasets/orl/property || $(RUN) -m data orl --out datasets/orl
	$(RUN) -m $(BACKEND)_impl train orl-demo

test: $(VENV)/installed-dev $(VENV)/installed-all lint
	$(TEST) common data benchmarks parity_tests
	for backend in $(BACKENDS); do \
		$(TEST) --dist loadfile --no-loadscope-reorder $${backend}_impl/tests/test_distributed.py $${backend}_impl \
		|| exit 1; done

numpy2: $(VENV)-numpy2/installed
	OMP_NUM_THREADS=1 $(VENV)-numpy2/bin/python -m pytest -n $(JOBS) common data

lint: $(VENV)/installed-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

# A stamp each, so that nothing is installed twice and a changed pin is.
$(VENV)/installed-%: requirements/%.txt $(wildcard requirements/*.txt) | $(VENV)/bin/python
	@case $* in mxnet | jittor | all) $(RUN) -c 'import sys; sys.exit(sys.version_info >= (3, 13) and \
		"MXNet and Jittor need Python 3.11 or 3.12, $(VENV) has " + sys.version + "\nRemove it with make clean, then try again")'; esac
	$(RUN) -m pip install --disable-pip-version-check -r $<
	touch $@

$(VENV)/bin/python:
	@for newest in 12 $(NEWEST); do \
		for python in $(or $(PYTHON),python3 python3.12 python3.11 python3.13 python3.14); do \
			$$python -c "import sys, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, $$newest))" 2> /dev/null || continue; \
			echo $$python -m venv $(VENV); exec $$python -m venv $(VENV); \
		done; \
	done; \
	if test -z "$(PYTHON)" && command -v uv > /dev/null; then uv venv --seed --python 3.12 $(VENV) && exit; fi; \
	echo "Python 3.11 to 3.$(NEWEST) with venv is needed; $(or $(PYTHON),python3) is $$($(or $(PYTHON),python3) --version 2>&1)" >&2; \
	echo "To get one: apt install python3-venv or python3.12-venv, or install uv; or name one: make PYTHON=PATH ..." >&2; \
	exit 1

# Python 3.13 where there is one, else that of .venv with the versions that 3.13 would get.
$(VENV)-numpy2/installed: requirements/dev.txt requirements/common.txt | $(VENV)/bin/python
	python3.13 -m venv $(VENV)-numpy2 2> /dev/null || $(RUN) -m venv $(VENV)-numpy2
	$(VENV)-numpy2/bin/python -m pip install --disable-pip-version-check -r $<
	sed -n 's/; python_version >= "3.13"//p' requirements/common.txt > $(VENV)-numpy2/newer.txt
	$(VENV)-numpy2/bin/python -m pip install --disable-pip-version-check -r $(VENV)-numpy2/newer.txt
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-numpy2 .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
