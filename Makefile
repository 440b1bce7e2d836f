# Everything a developer runs; `make help` lists it. It needs Python 3.11 or newer and make; the rest comes into .venv.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# What `make run` needs, and what everything else needs: each is installed when its lock changes.
RUN    := $(VENV)/.installed-run
STAMP  := $(VENV)/.installed
PIP    := $(BIN)/python -m pip install --disable-pip-version-check
# One line per package while pip runs; its errors are on stderr. A pipe has the exit code of its last
# command, so the stamp shows whether pip succeeded.
BRIEF  := awk '/^(Collecting|Processing) / { n = split($$2, part, "/"); print "  " part[n]; fflush() } \
                /^Installing collected/ { print "Installing them …"; fflush() }'

.DEFAULT_GOAL := help
.PHONY: help install run test test-clients coverage lint bench soak format schema wheel image release-files lock lock-bench lock-docs lock-clients docs docs-site clean

help:  ## list these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' Makefile

install: $(STAMP)  ## install what running, tests and lint need

$(VENV)/bin/python:
	@command -v $(PYTHON) > /dev/null || { echo "There is no '$(PYTHON)' here; name a Python: make install PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "AI Gateway needs Python 3.11 or newer; '$(PYTHON)' is older. Try: make install PYTHON=python3.12"; exit 1; }
	@echo "Making $(VENV) with $$($(PYTHON) --version) …"
	@$(PYTHON) -m venv $(VENV)

$(RUN): requirements-run.lock | $(VENV)/bin/python
	@echo "Installing the packages that running needs ($$(grep -c '^[a-z0-9].*==' $<) in $<; some 150 MB on disk) …"
	@rm -f $@
	@{ $(PIP) --require-hashes -r requirements-run.lock && $(BIN)/python -m compileall -q gateway && \
	   touch $@; } | $(BRIEF); test -e $@

$(STAMP): requirements.lock setup.cfg setup.py | $(VENV)/bin/python
	@echo "Installing the packages that running, tests and lint need ($$(grep -c '^[a-z0-9].*==' $<) in $<; some 570 MB on disk); it takes a minute …"
	@rm -f $@
	@{ $(PIP) --require-hashes -r requirements.lock && \
	   $(PIP) --quiet --no-deps --no-build-isolation --editable . && \
	   $(BIN)/python -m compileall -q gateway && touch $(STAMP) $(RUN); } | $(BRIEF); test -e $@

run: $(RUN)  ## install what running needs, then start the gateway
	@$(BIN)/python run.py

test: $(STAMP)  ## run every test
	$(BIN)/python -m pytest

# Chat clients, each the program itself, in an environment of their own: they pin hundreds of packages,
# and Open WebUI runs on Python 3.11 and 3.12 only. 1.3 GB. Without --no-deps pip would ask for
# what tests/clients/excluded.txt leaves out.
CLIENTS := $(VENV)/clients
$(CLIENTS)/.installed: tests/clients/requirements.lock | $(VENV)/bin/python
	@echo "Installing the chat clients ($$(grep -c '^[a-z0-9].*==' $<) packages, 1.3 GB on disk); it takes a minute …"
	@rm -f $@
	@$(PYTHON) -m venv --clear $(CLIENTS)
	@$(CLIENTS)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r $<
	@touch $@

test-clients: $(STAMP) $(CLIENTS)/.installed  ## run real chat clients, such as Open WebUI, against the gateway
	$(BIN)/python -m pytest -o timeout=300 tests/clients/open_webui.py

# tests/benchmarks hold what the gateway costs, and measuring costs more.
coverage: $(STAMP)  ## run the tests and measure which lines of gateway/ they reach
	$(BIN)/python -m coverage erase
	$(BIN)/python -m coverage run -m pytest --ignore tests/benchmarks
	$(BIN)/python -m coverage combine --quiet
	$(BIN)/python -m coverage report

# The second run of mypy finds names that Windows lacks.
lint: $(STAMP)  ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy --platform win32 --cache-dir .mypy_cache/win32
	$(BIN)/mypy --config-file tests/mypy.ini --cache-dir .mypy_cache/tests tests

format: $(STAMP)  ## mend style where a tool can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

schema: $(STAMP)  ## write config/config.schema.json from the models
	$(BIN)/python run.py schema > config/config.schema.json

# A quarter of an hour; QUICK=1 takes three minutes. ONLY=events,growth measures parts again.
# nginx is compared if it is on the PATH, LiteLLM if the extra bench-litellm is installed (or
# `litellm` of another environment is on the PATH: it pins versions of its own).
bench: $(STAMP)  ## measure what the gateway costs
	$(PIP) --quiet --require-hashes -r requirements-bench.lock
	$(BIN)/python tests/benchmarks/bench.py $(if $(QUICK),--quick) $(if $(ONLY),--only $(ONLY))

# Needs setuptools alone, in the locked version. Both folders may hold files of earlier builds.
wheel: | $(VENV)/bin/python  ## build dist/*.whl, which pip can install
	@awk '/^setuptools==/ { on = 1 } on { print } on && !/\\$$/ { exit }' requirements.lock > $(VENV)/build.lock
	$(PIP) --quiet --require-hashes -r $(VENV)/build.lock
	rm -rf build dist
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation --wheel-dir dist .
	rm -rf build

image:  ## build the image ai-gateway, and let it check its config.yaml
	docker build --tag ai-gateway .
	docker run --rm ai-gateway check

# What release.yml attaches to the release of TAG, which must be the version.
release-files: wheel image
	test "$(TAG)" = "v$$($(BIN)/python -c 'import gateway; print(gateway.__version__)')"
	docker save ai-gateway | gzip > dist/ai-gateway-$(TAG)-$$(uname -m)-image.tar.gz

# Traffic with faults for SECONDS (two minutes); fails if anything is left over at the end.
soak: $(STAMP)  ## traffic with faults; SECONDS=120
	$(BIN)/python tests/soak/soak.py --seconds $(or $(SECONDS),120)

# New versions for everyone: needs `uv` (pip install uv); read the diff before committing it.
# The image installs requirements-run.lock: the same versions, and only what running needs; or
# requirements-traces.lock, which has the extra `traces` too. With the hashes of all files of a
# version, pip takes nothing else in their place, whatever index it asks.
COMPILE := uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	  --no-emit-index-url --no-emit-find-links --no-annotate --custom-compile-command "make lock" setup.cfg

lock:  ## choose new versions of all packages
	$(COMPILE) --extra test --output-file requirements.lock
	$(COMPILE) --constraint requirements.lock --output-file requirements-run.lock
	$(COMPILE) --extra traces --constraint requirements.lock --output-file requirements-traces.lock
	@$(MAKE) lock-bench lock-docs lock-clients

# What `make bench` adds: the plot's library, beside the versions that everything else has.
lock-bench:
	$(COMPILE) --extra bench --constraint requirements.lock --output-file requirements-bench.lock

# For Linux and Python 3.11, on which they run here.
lock-clients:
	uv pip compile --quiet --python-platform linux --python-version 3.11 --generate-hashes \
	  --no-emit-index-url --no-emit-find-links --no-annotate --custom-compile-command "make lock-clients" \
	  --excludes tests/clients/excluded.txt --output-file tests/clients/requirements.lock tests/clients/requirements.in

clean:  ## remove what these commands made
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist *.egg-info .coverage*

# --- the documentation as a site --------------------------------------------------------------------

# English and Chinese into build/site, warnings are errors. Needs nothing but Sphinx, MyST and Furo.
docs: $(STAMP)  ## build this documentation as a site, in build/site
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-docs.lock
	@$(MAKE) docs-site

docs-site:  ## the same with the Sphinx that is installed already
	$(BIN)/python docs/build.py build/site

lock-docs:
	$(COMPILE) --extra docs --constraint requirements.lock --output-file requirements-docs.lock
