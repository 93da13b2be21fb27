# What checks the C sources and the shell scripts beside the tests; the Makefile includes this.  docs/hacking.md tells
# what each finds.  A tool that is missing is named, and left out: `.ci/prepare tests` installs them as root.

C_SOURCES := $(filter-out kdbusfs/native/_native.c kdbusfs/native/_calls.c,$(wildcard kdbusfs/native/*.c))
C_WARNINGS := -std=gnu11 -Wall -Wextra -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wpointer-arith -Wundef \
	-Wformat=2 -Wwrite-strings
SHELL_SCRIPTS := $(wildcard .ci/prepare .ci/run .ci/serve .ci/step mount-helpers/mount.* docs/examples/*.sh \
	tests/*/*.sh)
ARM_CC ?= aarch64-linux-gnu-gcc
with = if command -v $(1) >/dev/null; then $(2); else echo 'not checked for lack of $(1): $(3)'; fi

.PHONY: lint-shell lint-c tidy

lint-shell:
	@$(call with,shellcheck,shellcheck $(SHELL_SCRIPTS),the shell scripts)

# Warnings are errors here alone: another compiler's must not keep users from building.  -O2, for some warnings need it.
lint-c: build/lint/native build/lint/calls build/lint/arm tidy

build/lint/native: $(NATIVE) tests/native/checks.mk
	@mkdir -p $(@D)
	@for source in $(C_SOURCES); do $(CC) -Werror -O2 $(C_WARNINGS) -c -o /dev/null $$source || exit 1; done
	@touch $@

build/lint/calls: $(NATIVE) tests/native/checks.mk .venv/packages
	@mkdir -p $(@D)
	@$(CC) -Werror -O2 -std=gnu11 -Wall -Wextra -c -o /dev/null kdbusfs/native/_calls.c \
		-I"$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("include"))')"
	@touch $@

# arch_aarch64.h is compiled nowhere else.
build/lint/arm: $(NATIVE) tests/native/checks.mk
	@mkdir -p $(@D)
	@$(call with,$(ARM_CC),for source in $(C_SOURCES); do \
		$(ARM_CC) -Werror -O2 $(C_WARNINGS) -c -o /dev/null $$source || exit 1; done; touch $@,the C for 64-bit Arm)

tidy: $(C_SOURCES:kdbusfs/native/%.c=build/lint/tidy/%)

build/lint/tidy/%: kdbusfs/native/%.c $(wildcard kdbusfs/native/*.h) .clang-tidy
	@mkdir -p $(@D)
	@$(call with,clang-tidy,clang-tidy --quiet $< -- -std=gnu11 2>/dev/null && touch $@,$<)
