# Everything a developer runs. `make install` needs Python 3.11 or newer and make; the rest needs only its .venv.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: install run test lint bench soak format schema lock lock-bench clean

install: $(STAMP)

$(STAMP): requirements.lock setup.cfg
	@command -v $(PYTHON) > /dev/null || { echo "There is no '$(PYTHON)' here; name a Python: make install PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "AI Gateway needs Python 3.11 or newer; '$(PYTHON)' is older. Try: make install PYTHON=python3.12"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	$(BIN)/python -m compileall -q gateway
	@touch $(STAMP)

run: $(STAMP)
	@$(BIN)/python run.py

test: $(STAMP)
	$(BIN)/python -m pytest

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

schema: $(STAMP)
	$(BIN)/python run.py schema > config/config.schema.json

# A quarter of an hour; QUICK=1 takes three minutes. ONLY=events,growth measures parts anew.
# nginx is compared if it is on the PATH, LiteLLM if the extra bench-litellm is installed (or
# `litellm` of another environment is on the PATH: it pins versions of its own).
bench: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-bench.lock
	$(BIN)/python tests/benchmarks/bench.py $(if $(QUICK),--quick) $(if $(ONLY),--only $(ONLY))

# Traffic with faults for SECONDS (two minutes); fails if anything is left over at the end.
soak: $(STAMP)
	$(BIN)/python tests/soak/soak.py --seconds $(or $(SECONDS),120)

# New versions for everyone: needs `uv` (pip install uv); read the diff before committing it.
# The image installs requirements-run.lock: the same versions, and only what running needs; or
# requirements-traces.lock, which has the extra `traces` too. With the hashes of all files of a
# version, pip takes nothing else in their place, whatever index it asks.
COMPILE := uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	  --no-emit-index-url --no-emit-find-links --no-annotate --custom-compile-command "make lock" setup.cfg

lock:
	$(COMPILE) --extra test --output-file requirements.lock
	$(COMPILE) --constraint requirements.lock --output-file requirements-run.lock
	$(COMPILE) --extra traces --constraint requirements.lock --output-file requirements-traces.lock
	@$(MAKE) lock-bench lock-docs

# What `make bench` adds: the plot's library, beside the versions that everything else has.
lock-bench:
	$(COMPILE) --extra bench --constraint requirements.lock --output-file requirements-bench.lock

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build *.egg-info

# --- the documentation as a site --------------------------------------------------------------------

.PHONY: docs docs-site lock-docs

# English and Chinese into build/site, warnings are errors. Needs nothing but Sphinx, MyST and Furo.
docs: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-docs.lock
	@$(MAKE) docs-site

# What `make docs` builds, with the Sphinx that is installed already.
docs-site:
	$(BIN)/python docs/build.py build/site

lock-docs:
	$(COMPILE) --extra docs --constraint requirements.lock --output-file requirements-docs.lock
