# make run    mount a domain at MOUNTPOINT and serve it until Ctrl-C
# make demo   see two C programs talk through a domain
# make test   lint, types, all tests
# make venv   only what these three begin with: .venv, with the package and its tools
# make pure   takes the compiled modules away, so that the sources themselves run
# make bench  what a message costs, beside dbus-broker, dbus-daemon and sockets
# make bench-docs  writes the figures and plots of docs/performance.md anew, from the last run of make bench
# make conformance  writes docs/conformance.md anew, from the tests
# make completions  writes build/completions: what shells need to complete kdbusctl
# make screenshots  the pictures of kdbusctl in docs/images, from a real run (root)
# make clean  removes all that was made

MOUNTPOINT ?= /run/kdbusfs
PYTHON ?= python3
BIN := .venv/bin
NATIVE := $(wildcard kdbusfs/native/*.h) kdbusfs/native/build_native.py \
	$(filter-out kdbusfs/native/_native.c,$(wildcard kdbusfs/native/*.c))
COMPILED := $(wildcard kdbusfs/abi/*.py kdbusfs/core/*.py kdbusfs/fuse/*.py kdbusfs/host/*.py)
PYTEST_FLAGS ?=
# Without root there are no mounts and no other users to test with.
ROOTLESS := $(if $(filter 0,$(shell id -u)),,tests/unit tests/model)

.PHONY: help venv run demo test lint types pure conformance bench install-deps clean bench-docs completions screenshots
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

help:
	@sed -n 's/^# make /make /p' Makefile

venv: .venv/installed .venv/built

install-deps:
	@PYTHON=$(PYTHON) .ci/prepare

.venv/installed: pyproject.toml setup.py
	@PYTHON=$(PYTHON) .ci/prepare
	@echo "making .venv"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install -q --disable-pip-version-check --root-user-action ignore -e '.[dev]'
	@touch $@ .venv/built kdbusfs__mypyc.*.so

# Only when its sources have changed since.
.venv/built: $(NATIVE) $(COMPILED) .venv/installed
	@echo "building the C extension, and compiling the core"
	@$(BIN)/python -W ignore setup.py -q build_ext --inplace
	@touch $@ kdbusfs__mypyc.*.so

.venv/ready-to-test: .venv/installed .ci/prepare
	@.ci/prepare tests
	@touch $@

run: venv
	@.ci/serve run '$(MOUNTPOINT)'

demo: venv
	@.ci/serve demo

test: lint types .venv/ready-to-test
	@[ -z "$(ROOTLESS)" ] || echo "without root: only $(ROOTLESS); 'sudo make test' runs them all"
	@$(BIN)/python -m pytest $(ROOTLESS) $(PYTEST_FLAGS)

lint: venv
	@$(BIN)/ruff check -q .

types: venv
	@$(BIN)/mypy --strict --no-error-summary kdbusfs

pure:
	rm -f kdbusfs__mypyc.*.so kdbusfs/abi/*.so kdbusfs/core/*.so kdbusfs/fuse/*.so kdbusfs/host/*.so

conformance: venv
	@$(BIN)/python -m tests.support.conformance

bench: venv
	@.ci/prepare bench
	@$(BIN)/python -m tests.bench.run

.venv/ready-to-plot: .venv/installed
	@echo "installing matplotlib"
	@$(BIN)/python -m pip install -q --disable-pip-version-check --root-user-action ignore -e '.[bench]'
	@touch $@ .venv/built

bench-docs: venv .venv/ready-to-plot
	@$(BIN)/python -m tests.bench.plots

completions: venv
	@mkdir -p build/completions
	@$(BIN)/kdbusctl completion bash >build/completions/kdbusctl
	@$(BIN)/kdbusctl completion zsh >build/completions/_kdbusctl
	@$(BIN)/kdbusctl completion fish >build/completions/kdbusctl.fish

screenshots: venv
	@$(BIN)/python docs/images/screenshots.py

clean:
	rm -f kdbusfs__mypyc.*.so kdbusfs/*/*.so
	rm -rf .venv build dist *.egg-info kdbusfs/native/_native.c kdbusfs/native/*.o
	rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis docs/examples/bin
	find . -name __pycache__ -prune -exec rm -rf {} +
