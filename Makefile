# peft.c: `make` builds ./train ./infer ./merge for this CPU; `make help` lists the rest.
#
# kernels/cpu/*.c is compiled once per instruction set (-DISA_NAME=...) and chosen at run time; nothing else sees -m flags.
# -ffp-contract=off: a fused multiply-add happens only where the source says so, which keeps results equal to the bit on
# every instruction set. No -ffast-math anywhere.

BUILD ?= build
CC ?= gcc
STD := -std=c11 -D_GNU_SOURCE
WARN := -Wall -Wextra -Werror -Wshadow=local -Wvla -Wstrict-prototypes -Wmissing-prototypes
OPT ?= -O3 -g -fno-math-errno -fno-trapping-math -ffp-contract=off
SAN ?=
CFLAGS := $(STD) $(WARN) $(OPT) $(SAN) -fopenmp -ffunction-sections -fdata-sections -I. -MMD -MP $(EXTRA_CFLAGS)
LDLIBS := -ldl -lyaml -ljansson -lpcre2-8 -lutf8proc -lm
# what backends in shared objects take from a program is in every program, used there or not
EXPORTS := $(shell sed -n 's/^ *\([a-z0-9_]*\);$$/\1/p' kernels/plugin.exports)
LDFLAGS := $(SAN) -fopenmp -Wl,--gc-sections -Wl,--dynamic-list=kernels/plugin.exports $(EXPORTS:%=-Wl,-u,%) $(EXTRA_LDFLAGS)

ARCH := $(shell uname -m)
ifeq ($(ARCH),x86_64)
ISAS := avx2 avx512
else
ISAS := neon
endif
ISA_FLAGS_avx2 := -mavx2 -mfma -mf16c -mtune=haswell
ISA_FLAGS_avx512 := -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx2 -mfma -mf16c -mprefer-vector-width=512
ISA_FLAGS_neon :=
# overlays of avx512 with bf16 products: they share its simd.h, and nothing else is compiled with their flags
ifeq ($(ARCH),x86_64)
BF16_SRC := $(wildcard kernels/bf16/*.c)
endif
BF16_FLAGS := $(ISA_FLAGS_avx512) -mavx512bf16 -mamx-tile -mamx-bf16 -DISA_NAME=avx512 -DISA_avx512

# overlays with integer products for inference: over each instruction set, and further rows where it has more
INT8_SRC := $(wildcard kernels/int8/*.c)
INT8_ISAS := $(ISAS)
ifeq ($(ARCH),x86_64)
INT8_ISAS += avx512vnni
endif
INT8_BASE_avx512vnni := avx512
ISA_FLAGS_avx512vnni := $(ISA_FLAGS_avx512) -mavx512vnni -DISA_avx512 -DISA_vnni

# Tests also run the instruction sets that this machine may lack, through SIMDe; only test_simde links them.
ifeq ($(ARCH),x86_64)
SIMDE_ISAS := avx512_simde neon_simde
endif
ISA_FLAGS_avx512_simde := $(ISA_FLAGS_avx2) -DISA_avx512 -Wno-psabi -Wno-stringop-overflow
ISA_FLAGS_neon_simde := $(ISA_FLAGS_avx2) -DISA_neon

PROGRAMS := train infer merge quantize
# parts of the programs lie beside them: train_log.c, infer_score.c ...; lines of ./infer --chat are edited where libedit is
LINE := $(if $(wildcard /usr/include/editline/readline.h),edit,plain)
PARTS := $(filter-out infer_line_%.c,$(wildcard $(PROGRAMS:%=%_*.c))) infer_line_$(LINE).c
comma := ,
LDLIBS += $(if $(filter edit,$(LINE)),-Wl$(comma)--as-needed -ledit)
LIB_SRC := $(PARTS) $(wildcard core/*.c kernels/*.c kernels/ref/*.c kernels/int8/ref/*.c autograd/*.c optim/*.c peft/*.c model/*.c \
    data/*.c engine/*.c)
CPU_SRC := $(wildcard kernels/cpu/*.c)
LIB_OBJ := $(LIB_SRC:%.c=$(BUILD)/%.o) $(foreach i,$(ISAS),$(CPU_SRC:kernels/cpu/%.c=$(BUILD)/kernels/cpu/$i/%.o)) \
    $(BF16_SRC:%.c=$(BUILD)/%.o) $(foreach i,$(INT8_ISAS),$(INT8_SRC:kernels/int8/%.c=$(BUILD)/kernels/int8/$i/%.o))
TESTS := $(patsubst tests/%.c,$(BUILD)/tests/%,$(wildcard tests/test_*.c))

ifneq ($(V),1)
say = @printf '  %-5s %s\n' $(1) $(2);
endif

all: $(PROGRAMS)

$(PROGRAMS): %: $(BUILD)/%.o $(BUILD)/libpeft.a
	$(call say,LINK,$@)$(CC) $^ $(LDFLAGS) $(LDLIBS) -o $@

# the same for another machine (make test-neon)
$(BUILD)/bin/%: $(BUILD)/%.o $(BUILD)/libpeft.a
	@mkdir -p $(@D)
	$(call say,LINK,$@)$(CC) $^ $(LDFLAGS) $(LDLIBS) -o $@

$(BUILD)/libpeft.a: $(LIB_OBJ)
	$(call say,AR,$@)rm -f $@ && ar rcs $@ $^

$(BUILD)/%.o: %.c
	@mkdir -p $(@D)
	$(call say,CC,$<)$(CC) $(CFLAGS) -c $< -o $@

# the reference kernels call fmaf; with -mfma it is one instruction, and the bits are the same either way
ifeq ($(ARCH),x86_64)
$(BUILD)/kernels/ref/%.o $(BUILD)/kernels/int8/ref/%.o: CFLAGS += -mfma
endif

$(BUILD)/kernels/bf16/%.o: CFLAGS += $(BF16_FLAGS)

$(BUILD)/train_report.o: report_page.html

define isa_rule
$(BUILD)/kernels/cpu/$(1)/%.o: kernels/cpu/%.c
	@mkdir -p $$(@D)
	$$(call say,CC,'$$< $(1)')$$(CC) $$(CFLAGS) $$(ISA_FLAGS_$(1)) -DISA_NAME=$(1) -DISA_$(1) -c $$< -o $$@
endef
$(foreach i,$(ISAS) $(SIMDE_ISAS),$(eval $(call isa_rule,$i)))

define int8_rule
$(BUILD)/kernels/int8/$(1)/%.o: kernels/int8/%.c
	@mkdir -p $$(@D)
	$$(call say,CC,'$$< $(1)')$$(CC) $$(CFLAGS) $$(ISA_FLAGS_$(1)) -DISA_NAME=$(1) -DISA_$(1) \
	    -DISA_BASE=$(or $(INT8_BASE_$(1)),$(1)) -c $$< -o $$@
endef
$(foreach i,$(INT8_ISAS) $(SIMDE_ISAS),$(eval $(call int8_rule,$i)))

SIMDE_OBJ := $(foreach i,$(SIMDE_ISAS),$(CPU_SRC:kernels/cpu/%.c=$(BUILD)/kernels/cpu/$i/%.o))
INT8_SIMDE_OBJ := $(foreach i,$(SIMDE_ISAS),$(INT8_SRC:kernels/int8/%.c=$(BUILD)/kernels/int8/$i/%.o))
$(BUILD)/tests/test_simde: $(SIMDE_OBJ)
$(BUILD)/tests/test_int8_simde: $(SIMDE_OBJ) $(INT8_SIMDE_OBJ)

$(BUILD)/tests/%: $(BUILD)/tests/%.o $(BUILD)/libpeft.a
	$(call say,LINK,$@)$(CC) $^ $(LDFLAGS) $(LDLIBS) -lcmocka -o $@

$(BUILD)/bench/%: $(BUILD)/bench/%.o $(BUILD)/bench/measure.o $(BUILD)/libpeft.a
	$(call say,LINK,$@)$(CC) $^ $(LDFLAGS) $(LDLIBS) -o $@

tests: $(TESTS)

clean:
	rm -rf build $(PROGRAMS)

.PHONY: all tests clean
.SECONDARY:

-include $(shell find $(BUILD) -name '*.d' 2>/dev/null)
-include scripts/cuda.mk
-include scripts/ranks.mk
-include scripts/targets.mk
