# The targets around the build: tests, checks, comparisons, the demo. Included by the Makefile.

PREFIX ?= /usr/local
JOBS ?= $(shell nproc 2>/dev/null || echo 2)
SUBMAKE = $(MAKE) --no-print-directory -j$(JOBS)
ASAN_FLAGS := -fsanitize=address,undefined -fno-sanitize-recover=undefined
ASAN_MAKE = BUILD=build/asan SAN='$(ASAN_FLAGS)' OPT='-O1 -g -fno-omit-frame-pointer -ffp-contract=off'

help:
	@echo "make            build ./train ./infer ./merge ./quantize for this CPU"
	@echo "make test       run the tests (installs missing Debian packages); logs in build/tests/log"
	@echo "make asan       the same under AddressSanitizer and UndefinedBehaviorSanitizer, in build/asan"
	@echo "make torture    kill training $(KILLS) times and let every system call of a save fail (KILLS=n)"
	@echo "make test-neon  the kernels', gradients' and training's tests of an aarch64 build under qemu, and the same adapter as here"
	@echo "make lint       clang-format, clang-tidy, cppcheck, layering of #includes, sizes of files and functions"
	@echo "make format     run clang-format over the tree"
	@echo "make parity     compare with transformers, peft and bitsandbytes (virtual environment in ~/.cache/peft.c)"
	@echo "make test-cuda  the CUDA sources executed on the CPU: every kernel, thread orders, sanitizers, races, planted bugs"
	@echo "make bench      speed and memory against peft + bitsandbytes and OpenBLAS, in one run (WHAT=gemm: one figure)"
	@echo "make bench-infer  decode, prefill, memory and the fast mode's error against llama.cpp on the same files"
	@echo "make demo       fine-tune a real model on a real data set and show what changed (5 minutes)"
	@echo "make install    programs and configs below PREFIX=$(PREFIX) (DESTDIR is honoured)"
	@echo "make clean      remove build/ and the programs"
	@echo "variables       BUILD=dir CC=compiler V=1 (show commands) JOBS=n PREFIX=dir"

test:
	@scripts/install-deps.sh --quiet test
	@$(SUBMAKE) all tests
	@scripts/run-tests.sh $(BUILD)

asan:
	@scripts/install-deps.sh --quiet test
	@$(SUBMAKE) $(ASAN_MAKE) tests
	@ASAN_OPTIONS=detect_leaks=1:abort_on_error=0 UBSAN_OPTIONS=print_stacktrace=1 TEST_TIMEOUT=1800 \
	    scripts/run-tests.sh build/asan

# kills and failing system calls without end: the last lines say how many, and that none lost a checkpoint or a bit
KILLS ?= 10000
torture:
	@scripts/install-deps.sh --quiet test
	@$(SUBMAKE) $(BUILD)/tests/test_resume $(BUILD)/tests/test_checkpoint
	@$(BUILD)/tests/test_checkpoint
	@KILLS=$(KILLS) FAULTS=1 $(BUILD)/tests/test_resume

test-neon:
	@scripts/install-deps.sh --quiet neon
	@$(SUBMAKE) train
	@JOBS=$(JOBS) scripts/test-neon.sh

lint:
	@scripts/install-deps.sh --quiet lint
	@JOBS=$(JOBS) scripts/lint.sh

format:
	@scripts/install-deps.sh --quiet lint
	@scripts/lint.sh --format

parity:
	@scripts/install-deps.sh --quiet parity
	@$(SUBMAKE) all $(BUILD)/tests/tool_tokenize
	@scripts/parity/run.sh

bench:
	@scripts/install-deps.sh --quiet bench
	@$(SUBMAKE) all bench-programs
	@BENCH_BUILT=1 BUILD='$(BUILD)' bench/bench.sh $(WHAT)

bench-infer:
	@scripts/install-deps.sh --quiet bench
	@$(SUBMAKE) all bench-programs
	@python3 bench/bench_infer.py $(if $(WHAT),--only $(WHAT))

# every program of bench/; what they share is linked into each
BENCHES := $(patsubst bench/%.c,$(BUILD)/bench/%,$(filter-out bench/measure.c,$(wildcard bench/*.c)))
bench-programs: $(BENCHES)
bench-flags:
	@echo '$(CC) $(STD) $(OPT) -fopenmp; kernels also$(foreach i,$(ISAS), $i: $(or $(ISA_FLAGS_$i),nothing);)'

demo:
	@scripts/demo.sh

install: all
	install -d '$(DESTDIR)$(PREFIX)/bin' '$(DESTDIR)$(PREFIX)/share/peft.c/configs' '$(DESTDIR)$(PREFIX)/share/doc/peft.c'
	for p in $(PROGRAMS); do install -m 755 "$$p" "$(DESTDIR)$(PREFIX)/bin/peftc-$$p"; done
	install -m 644 configs/*.yaml '$(DESTDIR)$(PREFIX)/share/peft.c/configs'
	install -m 644 README.md LICENSE CHANGELOG.md docs/*.md '$(DESTDIR)$(PREFIX)/share/doc/peft.c'

.PHONY: help test torture asan lint format parity bench bench-programs bench-flags demo install
