# What checks the C sources and the shell scripts beside the tests; the Makefile includes this.  docs/hacking.md tells
# what each finds.  A tool that is missing is named, and left out: `.ci/prepare tests` installs them as root.

C_SOURCES := $(filter-out kdbusfs/native/_native.c kdbusfs/native/_calls.c,$(wildcard kdbusfs/native/*.c))
C_WARNINGS := -std=gnu11 -Wall -Wextra -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wpointer-arith -Wundef \
	-Wformat=2 -Wwrite-strings
SHELL_SCRIPTS := $(wildcard .ci/prepare .ci/run .ci/serve .ci/step mount-helpers/mount.* docs/examples/*.sh \
	tests/*/*.sh)
ARM_HEADERS ?= /usr/aarch64-linux-gnu/include
with = if command -v $(1) >/dev/null; then $(2); else echo 'not checked for lack of $(1): $(3)'; fi

.PHONY: lint-shell lint-c tidy format-c

lint-shell:
	@$(call with,shellcheck,shellcheck $(SHELL_SCRIPTS),the shell scripts)

C_FORMATTED := $(filter-out kdbusfs/native/_native.c,$(wildcard kdbusfs/native/*.[ch] tests/native/*.c))

# Writes the C in the style of .clang-format.
format-c:
	@$(call with,clang-format,clang-format -i $(C_FORMATTED),the style of the C)

build/lint/style: $(C_FORMATTED) .clang-format
	@mkdir -p $(@D)
	@$(call with,clang-format,clang-format --dry-run -Werror $(C_FORMATTED) && touch $@,the style of the C)

# Warnings are errors here alone: another compiler's must not keep users from building.  -O2, for some warnings need it.
lint-c: build/lint/style build/lint/native build/lint/calls build/lint/arm tidy

build/lint/native: $(NATIVE) tests/native/checks.mk
	@mkdir -p $(@D)
	@for source in $(C_SOURCES); do $(CC) -Werror -O2 $(C_WARNINGS) -c -o /dev/null $$source || exit 1; done
	@touch $@

build/lint/calls: $(NATIVE) tests/native/checks.mk .venv/packages
	@mkdir -p $(@D)
	@$(CC) -Werror -O2 -std=gnu11 -Wall -Wextra -c -o /dev/null kdbusfs/native/_calls.c \
		-I"$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("include"))')"
	@touch $@

# arch_aarch64.h is compiled nowhere else.  By clang, for Debian's cross compiler conflicts with gcc-multilib.
build/lint/arm: $(NATIVE) tests/native/checks.mk
	@mkdir -p $(@D)
	@if ! [ -e $(ARM_HEADERS)/sys/uio.h ]; then echo 'not checked for lack of $(ARM_HEADERS): the C for 64-bit Arm'; \
	else $(call with,clang,for source in $(C_SOURCES); do clang --target=aarch64-linux-gnu -isystem $(ARM_HEADERS) \
		-Werror -O2 $(C_WARNINGS) -c -o /dev/null $$source || exit 1; done; touch $@,the C for 64-bit Arm); fi

tidy: $(C_SOURCES:kdbusfs/native/%.c=build/lint/tidy/%)

build/lint/tidy/%: kdbusfs/native/%.c $(wildcard kdbusfs/native/*.h) .clang-tidy
	@mkdir -p $(@D)
	@$(call with,clang-tidy,clang-tidy --quiet $< -- -std=gnu11 2>/dev/null && touch $@,$<)

# --- while it runs ---------------------------------------------------------------------------------------

TSAN_SECONDS ?= 30
FUZZ_SECONDS ?= 60
SANITIZE := -fsanitize=address,undefined -fno-omit-frame-pointer -fno-sanitize-recover=undefined -g
RUNTIMES = $(shell $(CC) -print-file-name=libasan.so) $(shell $(CC) -print-file-name=libubsan.so)
ASAN_TESTS ?= tests/unit/test_fuse_channel.py tests/operations

.PHONY: asan tsan fuzz hostile short-checks

# A copy of the tree, whose extensions are built with the sanitizers; the working build stays as it is.
build/asan/built: $(NATIVE) kdbusfs/native/_calls.c setup.py tests/native/checks.mk .venv/packages
	@mkdir -p build/asan
	@cp -R kdbusfs setup.py pyproject.toml README.md LICENSE build/asan/
	@find build/asan/kdbusfs -name '*.so' -delete
	@cd build/asan && $(CURDIR)/$(STEP) 'compiling with sanitizers' '15 s' env KDBUSFS_PURE=1 \
		CFLAGS='$(SANITIZE)' LDFLAGS='$(SANITIZE)' $(CURDIR)/$(BIN)/python -W ignore setup.py -q build_ext --inplace --force
	@touch $@

# Leaks are those of the interpreter, and SIGBUS and SIGSEGV belong to the daemon (pool.c).
asan: build/asan/built venv
	@rm -rf build/asan/tests && cp -R tests build/asan/
	@cp -R kdbusfs build/asan/new && find build/asan/new -name '*.so' -delete && cp -R build/asan/new/. build/asan/kdbusfs/
	@rm -rf build/asan/new
	@cd build/asan && LD_PRELOAD='$(RUNTIMES)' PYTHONMALLOC=malloc PYTHONPATH='$(CURDIR)/build/asan' \
		ASAN_OPTIONS=detect_leaks=0:verify_asan_link_order=0:allow_user_segv_handler=1:handle_segv=0:handle_sigbus=0 \
		UBSAN_OPTIONS=print_stacktrace=1 $(CURDIR)/$(BIN)/python -P -m pytest -q -p no:cacheprovider $(ASAN_TESTS)

build/tsan/threads: tests/native/threads.c $(NATIVE)
	@mkdir -p $(@D)
	@$(CC) -g -O1 -std=gnu11 -Wall -Wextra -fsanitize=thread -fno-omit-frame-pointer -pthread -Ikdbusfs/native \
		-o $@ tests/native/threads.c $(C_SOURCES)

# A reader that is stuck when the service ends stays so, by design: that thread is no leak.
tsan: build/tsan/threads
	@TSAN_OPTIONS='report_thread_leaks=0 halt_on_error=1' build/tsan/threads $(TSAN_SECONDS)

build/fuzz/ioctl: tests/native/fuzz_ioctl.c $(NATIVE)
	@mkdir -p $(@D)
	@clang -g -O1 -std=gnu11 -Wall -Wno-gnu-folding-constant -fsanitize=fuzzer,address,undefined \
		-fno-sanitize-recover=undefined -pthread -Ikdbusfs/native -Ikdbusfs/include \
		-o $@ tests/native/fuzz_ioctl.c $(C_SOURCES)

.venv/ready-to-fuzz: .venv/installed
	@$(STEP) 'installing atheris' '10 s' env $(PIP) install $$($(BIN)/python .ci/requirements fuzz)
	@touch $@

# What they find is kept in build/fuzz and begun with the next time; an input that fails is build/fuzz/crash-*.
FUZZ = -max_total_time=$(FUZZ_SECONDS) -timeout=10 -rss_limit_mb=1024 -verbosity=0 -print_final_stats=1 -artifact_prefix=build/fuzz/
fuzz-c:
	@$(call with,clang,$(MAKE) build/fuzz/ioctl && mkdir -p build/fuzz/found/ioctl && \
		build/fuzz/ioctl $(FUZZ) build/fuzz/found/ioctl tests/fuzz/corpus/ioctl,the C step of an ioctl)

fuzz-decode: .venv/ready-to-fuzz
	@mkdir -p build/fuzz/found/decode
	@$(BIN)/python -W ignore -m tests.fuzz.decode $(FUZZ) build/fuzz/found/decode tests/fuzz/corpus/decode

fuzz: fuzz-c fuzz-decode
.PHONY: fuzz-c fuzz-decode

hostile: root venv
	@unshare -m --propagation private $(BIN)/python -m tests.hostile.run

# For make test: long enough to see that they work, and what is found at once.
short-checks:
	@$(MAKE) tsan TSAN_SECONDS=3
	@$(MAKE) fuzz-c FUZZ_SECONDS=5
