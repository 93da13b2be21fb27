# make run    mount a domain at MOUNTPOINT and serve it until Ctrl-C
# make demo   see two C programs talk through a domain
# make test   lint, types, all tests
# make venv   only what these three begin with: .venv, with the package and its tools
# make man    the manual pages, in build/man
# make docs   the same, and runs all that the documents show
# make lint   ruff, shellcheck, the C with warnings as errors (also for Arm), clang-tidy, clang-format
# make asan   the operations tests and those of the channel, with AddressSanitizer and UBSan over the C
# make tsan   what threads share in C, with ThreadSanitizer, for TSAN_SECONDS (30)
# make fuzz   the C step of an ioctl and the decoding of commands, from bytes, for FUZZ_SECONDS (60) each
# make hostile  programs that attack a domain, each against a daemon of its own (root)
# make coverage  the unit tests over the uncompiled sources, and what they cover of abi, base and core
# make pure   takes the compiled modules away, so that the sources themselves run
# make stalls  the cpu time of the longest turns of the core, at all limits at once
# make bench  what a message costs, beside dbus-broker, dbus-daemon and sockets
# make bench-docs  writes the figures and plots of docs/performance.md anew, from the last run of make bench
# make test-kernels  boots packaged kernels in virtual machines and tests with each; KERNELS="5.10 6.1" (root, hours)
# make kernels-docs  writes the table of docs/kernels.md anew, from the results of make test-kernels
# make conformance  writes docs/conformance.md anew, from the tests
# make completions  writes build/completions: what shells need to complete kdbusctl
# make screenshots  the pictures of kdbusctl in docs/images, from a real run (root)
# make wheel  builds a wheel, in dist/
# make install    programs, manual pages, helpers of mount(8), units; DESTDIR= prefix=/usr/local sbindir=/sbin
# make uninstall  takes that away again, with the same variables
# make clean  removes all that was made

MOUNTPOINT ?= /run/kdbusfs
PYTHON ?= python3
BIN := .venv/bin
NATIVE := $(wildcard kdbusfs/native/*.h) kdbusfs/native/build_native.py \
	$(filter-out kdbusfs/native/_native.c,$(wildcard kdbusfs/native/*.c))
COMPILED := $(wildcard kdbusfs/base/*.py kdbusfs/abi/*.py kdbusfs/abi/*/*.py kdbusfs/core/*.py kdbusfs/bus1/*.py kdbusfs/fuse/*.py kdbusfs/host/*.py)
PYTEST_FLAGS ?=
# Per cent of the lines and branches of abi, base and core that make coverage asks for.
COVERAGE_MIN ?= 80
# How many tests run at a time. What is preloaded for KDBUSFS_TEST_KERNEL does not reach workers.
PYTEST_WORKERS ?= $(if $(KDBUSFS_TEST_KERNEL),0,2)
STEP := .ci/step
PIP := PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore $(BIN)/python -m pip
# Without root there are no mounts and no other users to test with.
ROOTLESS := $(if $(filter 0,$(shell id -u)),,tests/unit tests/model)

# Where things are installed.  mount(8) looks for its helpers in /sbin alone.
prefix ?= /usr/local
sbindir ?= /sbin
DIST ?= dist
PIP_FLAGS ?=
home := $(prefix)/lib/kdbusfs
bindir := $(prefix)/bin
unitdir := $(prefix)/lib/systemd/system
mandir := $(prefix)/share/man
PROGRAMS := kdbusfs kdbusfs-sysview kdbusctl
COMPLETIONS := share/bash-completion/completions/kdbusctl share/zsh/site-functions/_kdbusctl \
	share/fish/vendor_completions.d/kdbusctl.fish
UNITS := $(notdir $(wildcard mount-helpers/systemd/*.*))
MANPAGES := $(patsubst docs/man/%.rst,%,$(wildcard docs/man/*.rst))

.PHONY: help venv root run demo test lint types coverage pure conformance man docs stalls bench bench-docs
.PHONY: completions screenshots install-deps clean wheel install uninstall
.PHONY: test-kernels kernels-docs
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

help:
	@sed -n 's/^# make /make /p' Makefile

venv: .venv/built .venv/installed

install-deps:
	@PYTHON=$(PYTHON) .ci/prepare

# Each step has a file of its own that says that it is done: after an interruption make goes on with the next one.
.venv/packages: pyproject.toml
	@PYTHON=$(PYTHON) .ci/prepare
	@$(STEP) 'making .venv' '5 s' $(PYTHON) -m venv .venv
	@$(STEP) 'installing Python packages' '30 s' env $(PIP) install $$($(BIN)/python .ci/requirements dev)
	@touch $@

# Only what its sources have changed of since.
.venv/built: $(NATIVE) $(COMPILED) .venv/packages setup.py
	@$(STEP) 'compiling' 'up to 1 min' $(BIN)/python -W ignore setup.py -q build_ext --inplace
	@touch $@ kdbusfs__mypyc.*.so

# There is nothing left to compile for it.
.venv/installed: pyproject.toml setup.py | .venv/built
	@$(STEP) 'installing kdbusfs, editable' '10 s' env $(PIP) install --no-deps --no-build-isolation -e .
	@touch $@

.venv/ready-to-test: .venv/installed .ci/prepare
	@.ci/prepare tests
	@touch $@

run: root venv
	@.ci/serve run '$(MOUNTPOINT)'

demo: root venv
	@.ci/serve demo

# Before anything is built for it.
root:
	@[ "$$(id -u)" = 0 ] || { echo "mounting a domain needs root: sudo make $(MAKECMDGOALS)" >&2; exit 1; }

test: .venv/ready-to-test lint types short-checks coverage
	@[ -z "$(ROOTLESS)" ] || echo "without root: only $(ROOTLESS); 'sudo make test' runs them all"
	@$(BIN)/python -m pytest -n $(PYTEST_WORKERS) --dist loadfile $(ROOTLESS) $(PYTEST_FLAGS)

lint: venv lint-shell lint-c
	@$(BIN)/ruff check -q .

include tests/native/checks.mk

types: venv
	@$(BIN)/mypy --strict --no-error-summary

pure:
	rm -f kdbusfs__mypyc.*.so kdbusfs/base/*.so kdbusfs/abi/*.so kdbusfs/abi/*/*.so kdbusfs/core/*.so kdbusfs/bus1/*.so kdbusfs/fuse/*.so kdbusfs/host/*.so

# The sources themselves, in a copy: the working tree has compiled modules beside them, which Python prefers.
coverage: .venv/ready-to-test
	@rm -rf build/pure && mkdir -p build/pure && cp -R kdbusfs build/pure/
	@find build/pure/kdbusfs -name '*.so' ! -path '*/native/*' -delete
	@for each in .ci Makefile README.md docs mount-helpers pyproject.toml setup.py tests; do \
		ln -s ../../$$each build/pure/$$each; done
	@cd build/pure && PYTHONPATH='$(CURDIR)/build/pure' $(CURDIR)/$(BIN)/python -P -m pytest -q -p no:cacheprovider \
		-p tests.support.uncompiled -n $(PYTEST_WORKERS) --dist loadfile \
		--cov --cov-report=term --cov-fail-under=$(COVERAGE_MIN) tests/unit

# Given on the command line or in the environment; docs/kernels.md tells what they mean.
export KERNELS KERNELS_DIRECTORY KERNELS_TRIALS KERNELS_SELECT KERNELS_APPEND

test-kernels: venv
	@$(BIN)/python -m tests.kernels

kernels-docs: venv
	@$(BIN)/python -m tests.kernels --docs

conformance: venv
	@$(BIN)/python -m tests.support.conformance

man: $(MANPAGES:%=build/man/%)

docs: man .venv/ready-to-test
	@$(BIN)/python -m pytest -q tests/docs

build/man/%: docs/man/%.rst $(wildcard docs/man/examples/*) build/man/kdbusctl.rst | venv
	@$(BIN)/python -m docutils --writer=manpage --halt=2 $< $@

build/man/kdbusctl.rst: docs/man/kdbusctl.py $(shell find kdbusfs/ctl -name '*.py') | venv
	@$(BIN)/python $< $@

stalls: venv
	@$(BIN)/python -m pytest -q -o "python_files=stall_*.py" tests/stalls $(PYTEST_FLAGS)

bench: venv
	@.ci/prepare bench
	@$(BIN)/python -m tests.bench.run

.venv/ready-to-plot: .venv/installed
	@$(STEP) 'installing matplotlib' '20 s' env $(PIP) install $$($(BIN)/python .ci/requirements bench)
	@touch $@

bench-docs: venv .venv/ready-to-plot
	@$(BIN)/python -m tests.bench.plots

completions: venv
	@mkdir -p build/completions
	@$(BIN)/kdbusctl completion bash >build/completions/kdbusctl
	@$(BIN)/kdbusctl completion zsh >build/completions/_kdbusctl
	@$(BIN)/kdbusctl completion fish >build/completions/kdbusctl.fish

screenshots: venv
	@$(BIN)/python docs/images/screenshots.py

# setuptools would put in what an earlier build has left.
wheel: venv
	@rm -rf build/lib* build/bdist*
	@$(STEP) 'building the wheel' '10 s' env $(PIP) wheel --no-deps --no-build-isolation -w '$(DIST)' .
	@ls '$(DIST)'/kdbusfs-*.whl

# A virtual environment of its own, so that nothing of the system's Python changes.
install: venv completions man
	@echo "installing to $(DESTDIR)$(prefix)"
	@rm -rf build/wheel
	@$(MAKE) -s wheel DIST=build/wheel
	@mkdir -p '$(DESTDIR)$(prefix)/lib' '$(DESTDIR)$(bindir)' '$(DESTDIR)$(sbindir)' '$(DESTDIR)$(unitdir)'
	@$(BIN)/python -m venv --clear --without-pip '$(DESTDIR)$(home)'
	@$(STEP) 'installing the wheel' '10 s' env $(PIP) --python '$(DESTDIR)$(home)/bin/python' install \
		--no-compile $(PIP_FLAGS) build/wheel/kdbusfs-*.whl
	@$(BIN)/python -m compileall -q -s '$(DESTDIR)/' -p / '$(DESTDIR)$(home)/lib' || true
	@[ -z '$(DESTDIR)' ] || grep -rlI '$(DESTDIR)$(home)' '$(DESTDIR)$(home)/bin' '$(DESTDIR)$(home)/pyvenv.cfg' \
		| xargs -r sed -i 's|$(DESTDIR)$(home)|$(home)|g'
	@for program in $(PROGRAMS); do \
		ln -sfn '$(home)/bin/'$$program '$(DESTDIR)$(bindir)/'$$program; done
	@sed 's|^installed=.*|installed=$(home)/bin/kdbusfs|' mount-helpers/mount.fuse.kdbusfs \
		> '$(DESTDIR)$(sbindir)/mount.fuse.kdbusfs'
	@chmod 755 '$(DESTDIR)$(sbindir)/mount.fuse.kdbusfs'
	@ln -sfn mount.fuse.kdbusfs '$(DESTDIR)$(sbindir)/mount.kdbusfs'
	@for file in $(COMPLETIONS); do \
		install -D -m 644 build/completions/$${file##*/} '$(DESTDIR)$(prefix)/'$$file; done
	@for unit in $(UNITS); do \
		sed 's|^\(Exec[A-Za-z]*=\)kdbusfs|\1$(bindir)/kdbusfs|' mount-helpers/systemd/$$unit \
			> '$(DESTDIR)$(unitdir)/'$$unit; done
	@for page in $(MANPAGES); do \
		install -D -m 644 build/man/$$page '$(DESTDIR)$(mandir)/'man$${page##*.}/$$page; done

uninstall:
	rm -rf '$(DESTDIR)$(home)'
	cd '$(DESTDIR)$(bindir)' && rm -f $(PROGRAMS)
	cd '$(DESTDIR)$(sbindir)' && rm -f mount.fuse.kdbusfs mount.kdbusfs
	cd '$(DESTDIR)$(unitdir)' && rm -f $(UNITS)
	cd '$(DESTDIR)$(prefix)' && rm -f $(COMPLETIONS)
	rm -f $(foreach page,$(MANPAGES),'$(DESTDIR)$(mandir)/man$(subst .,,$(suffix $(page)))/$(page)')

clean:
	rm -f kdbusfs__mypyc.*.so kdbusfs/*/*.so kdbusfs/*/*/*.so
	rm -rf .venv build dist *.egg-info kdbusfs/native/_native.c kdbusfs/native/*.o
	rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis docs/examples/bin
	find . -name __pycache__ -prune -exec rm -rf {} +
