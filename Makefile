# make run    mount a domain at MOUNTPOINT and serve it until Ctrl-C
# make demo   run two example programs in C on a domain
# make test   lint, types, coverage, all tests
# make venv   build .venv with the package and its tools; run, demo and test do that first
# make man    build the manual pages in build/man
# make docs   the same, and run the code blocks of the documents
# make lint   ruff, shellcheck, the C with warnings as errors (also for Arm), clang-tidy, clang-format
# make types  mypy --strict over the package and the tests
# make asan   tests of the channel and of tests/operations with AddressSanitizer and UBSan over the C
# make tsan   the C that threads share, with ThreadSanitizer, for TSAN_SECONDS (30)
# make fuzz   fuzz the C step of an ioctl, and the decoding of commands, for FUZZ_SECONDS (60) each
# make hostile  programs that attack a domain, each against a daemon of its own (root)
# make coverage  the unit tests without compiled modules, and their coverage of abi, base and core
# make pure   remove the compiled modules, so that Python runs the sources
# make stalls  cpu time of the longest turns of the core, with all limits exhausted
# make bench  cost of a message, beside dbus-broker, dbus-daemon and sockets
# make bench-docs  update the tables and plots of docs/performance.md from the last make bench
# make test-kernels  test on packaged kernels in virtual machines; KERNELS="5.10 6.1" (root, hours)
# make kernels-docs  update the table of docs/kernels.md from the results of make test-kernels
# make conformance  update docs/conformance.md from the tests
# make completions  write shell completions of kdbusctl to build/completions
# make screenshots  update the pictures of kdbusctl in docs/images from a real run (root)
# make wheel  build a wheel in dist/
# make install    install programs, manual pages, mount(8) helpers, units; DESTDIR= prefix=/usr/local sbindir=/sbin
# make uninstall  remove them, with the same variables
# make clean  remove all build products

MOUNTPOINT ?= /run/kdbusfs
PYTHON ?= python3
BIN := .venv/bin
NATIVE := $(wildcard kdbusfs/native/*.h) kdbusfs/native/build_native.py \
	$(filter-out kdbusfs/native/_native.c,$(wildcard kdbusfs/native/*.c))
COMPILED := $(wildcard kdbusfs/base/*.py kdbusfs/abi/*.py kdbusfs/abi/*/*.py kdbusfs/core/*.py kdbusfs/bus1/*.py kdbusfs/fuse/*.py kdbusfs/host/*.py)
PYTEST_FLAGS ?=
# Minimum coverage of the lines and branches of abi, base and core, in per cent.
COVERAGE_MIN ?= 80
# Parallel test processes. The library preloaded for KDBUSFS_TEST_KERNEL does not reach workers.
PYTEST_WORKERS ?= $(if $(KDBUSFS_TEST_KERNEL),0,2)
STEP := .ci/step
PIP := PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore $(BIN)/python -m pip
# Tests with mounts or several users need root.
ROOTLESS := $(if $(filter 0,$(shell id -u)),,tests/unit tests/model)

# Installation paths. mount(8) searches its helpers only in /sbin.
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

# Each step leaves a stamp file, so that make resumes after an interruption.
.venv/packages: pyproject.toml
	@PYTHON=$(PYTHON) .ci/prepare
	@$(STEP) 'making .venv' '5 s' $(PYTHON) -m venv .venv
	@$(STEP) 'installing Python packages' '30 s' env $(PIP) install $$($(BIN)/python .ci/requirements dev)
	@touch $@

# Incremental.
.venv/built: $(NATIVE) $(COMPILED) .venv/packages setup.py
	@$(STEP) 'compiling' 'up to 1 min' $(BIN)/python -W ignore setup.py -q build_ext --inplace
	@touch $@ kdbusfs__mypyc.*.so

# Compiles nothing: .venv/built has done that.
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

# A prerequisite that fails before anything is built.
root:
	@[ "$$(id -u)" = 0 ] || { echo "mounting a domain needs root: sudo make $(MAKECMDGOALS)" >&2; exit 1; }

test: .venv/ready-to-test
	@$(MAKE) -j 2 lint types short-checks
	@$(MAKE) coverage
	@[ -z "$(ROOTLESS)" ] || echo "without root only $(ROOTLESS); 'sudo make test' runs all tests"
	@$(BIN)/python -m pytest -n $(PYTEST_WORKERS) --dist loadfile --no-loadscope-reorder $(ROOTLESS) $(PYTEST_FLAGS)

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

# From the command line or the environment; see docs/kernels.md.
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

# setuptools would include leftovers of earlier builds.
wheel: venv
	@rm -rf build/lib* build/bdist*
	@$(STEP) 'building the wheel' '10 s' env $(PIP) wheel --no-deps --no-build-isolation -w '$(DIST)' .
	@ls '$(DIST)'/kdbusfs-*.whl

# Installs into a virtual environment of its own, and leaves the system's Python unchanged.
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
