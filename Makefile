# make demo   train SFace on real faces and evaluate on people it never saw; BACKEND=mxnet or jittor: in that framework
# make check  lint, types, import contracts, and the tests that start no framework: after each change
# make test   all of these and every other test: before a commit is shared
# make docs   the pages and docstrings as a site with a search box: site/index.html
# make numpy2 the tests of common and data with NumPy 2, in an environment of their own
# Each sets up .venv first, with the first fitting interpreter. Another one: make PYTHON=python3.12 demo

SHELL := bash -o pipefail
VENV := .venv
RUN := $(VENV)/bin/python
BACKEND ?= pytorch
# MXNet and Jittor need NumPy 1.26, which ends at Python 3.12. So that is tried first, and PyTorch alone takes newer ones.
NEWEST := $(if $(filter test,$(MAKECMDGOALS))$(filter-out pytorch,$(BACKEND)),12,14)
# What `make test` runs side by side with lint and the site, as some wait for a rank. A suite is a process: one framework.
SUITES := jittor parity mxnet pytorch common benchmarks
JOBS := 7

.PHONY: demo check test docs numpy2 lint clean $(SUITES:%=test-%)

demo: $(VENV)/installed-$(BACKEND) $(VENV)/installed-demo
	test -e datasets/orl/property || $(RUN) -m data orl --out datasets/orl
	-test -e runs/opencv-sface || $(RUN) -m data opencv-sface --out runs/opencv-sface # a row to compare with
	$(RUN) -m $(BACKEND)_impl train orl-demo

test: $(foreach need,dev all examples docs,$(VENV)/installed-$(need))
	$(MAKE) --no-print-directory --keep-going --jobs $(JOBS) lint $(SUITES:%=test-%) docs

check: $(VENV)/installed-dev lint
	$(RUN) -m pytest -n 2 -m "not framework and not browser" common data

test-common: FOLDERS = common data
test-benchmarks: FOLDERS = benchmarks
test-parity: FOLDERS = parity_tests
# The two that take longest go before, so that neither is left alone at the end.
$(filter-out test-parity test-common,$(SUITES:%=test-%)): LATER = nice
# Compiles Jittor the first time, so that no test waits for it.
test-jittor test-parity: FIRST = $(RUN) -c 'import jittor_impl';
# Frameworks whose threads share a core spin, and take many times longer: one thread each.
test-%: FOLDERS = $*_impl
$(SUITES:%=test-%): test-%:
	$(FIRST) OMP_NUM_THREADS=1 $(LATER) $(RUN) -m pytest $(FOLDERS) 2>&1 | sed -u 's/^/$*: /'

numpy2: $(VENV)-numpy2/installed
	OMP_NUM_THREADS=1 $(VENV)-numpy2/bin/python -m pytest -n 2 common data

# A link that leads nowhere fails it. The variable silences an advertisement.
docs: $(VENV)/installed-docs
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build

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
	if test -z "$(PYTHON)" && command -v uv > /dev/null; then uv venv --seed --python 3.12 $(VENV) && exit; rm -rf $(VENV); fi; \
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
	rm -rf $(VENV) $(VENV)-numpy2 site .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
