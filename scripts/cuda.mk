# The CUDA sources: compiled by nvcc (backend "cuda", build/peft_cuda.so), and by the C++ compiler for execution on the CPU
# (backend "emu", build/peft_emu.so). Included by the Makefile. Both need the toolkit's headers; without them nothing here
# is built. Plain `make` builds backend "cuda" where there are both nvcc and a GPU; CUDA=1 builds it also without a GPU, CUDA=0
# never, and `make cuda` on demand.

CUDA_HOME ?= /usr/local/cuda
comma := ,
CXX ?= g++
NVCC ?= $(CUDA_HOME)/bin/nvcc
CUDA_HERE := $(wildcard $(CUDA_HOME)/include/cuda_runtime.h)
CUDA ?= $(if $(and $(wildcard $(NVCC)),$(wildcard /dev/nvidiactl)),1,0)
# compute capabilities without the dot; the last one as PTX too, which newer devices compile for themselves
CUDA_ARCHS ?= $(or $(shell nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | tr -d . | sort -nu),80)
# sums over several GPUs: only where NCCL's header is
NCCL_SRC := kernels/cuda/nccl.cu kernels/cuda/nccl_library.cu kernels/emu/emu_nccl.cpp
NO_NCCL := $(if $(wildcard $(CUDA_HOME)/include/nccl.h /usr/include/nccl.h),,$(NCCL_SRC))
CUDA_SRC := $(filter-out $(NO_NCCL),$(wildcard kernels/cuda/*.cu))
# names every kernel: links when all are there
CUDA_TABLE := kernels/cuda/plugin.cu
EMU_SRC := $(filter-out $(NO_NCCL),$(wildcard kernels/emu/*.cpp))

EMU := $(BUILD)/emu
EMU_OPT ?= -O2 -g
EMU_FLAGS := -std=c++17 -Wall -Wextra -Werror -Wno-missing-field-initializers -Wno-unused-function -Wno-unknown-pragmas \
    -fPIC -fvisibility=hidden -ffp-contract=off -DDEVICE_NAME='"emu"' -isystem $(CUDA_HOME)/include -MMD -MP
EMU_RUN := $(EMU_SRC:%.cpp=$(EMU)/%.o)
EMU_KERNELS := $(patsubst %.cu,$(EMU)/%.o,$(filter-out $(CUDA_TABLE) kernels/cuda/nccl_library.cu,$(CUDA_SRC)))
EMU_TABLE := $(EMU)/kernels/cuda/plugin.o

$(EMU)/%.o: %.cpp
	@mkdir -p $(@D)
	$(call say,CXX,$<)$(CXX) $(EMU_FLAGS) $(EMU_OPT) -I. -c $< -o $@

$(EMU)/%.o: %.cu
	@mkdir -p $(@D)
	$(call say,CXX,$<)$(CXX) -x c++ $(EMU_FLAGS) $(EMU_OPT) -I. -c $< -o $@

NVCC_FLAGS := -std=c++17 -O3 -I. -Xcompiler -fPIC,-fvisibility=hidden --expt-relaxed-constexpr -Werror all-warnings \
    -diag-suppress 177 -DDEVICE_NAME=\"cuda\"
CUDA_GENCODE = $(foreach a,$(CUDA_ARCHS),-gencode arch=compute_$a,code=sm_$a) \
    -gencode arch=compute_$(lastword $(CUDA_ARCHS)),code=compute_$(lastword $(CUDA_ARCHS))

# Both shared objects name every kernel, so they link when all are there. What they take from the program is in plugin.exports,
# from elsewhere it has a version.
plugin_check = nm -Du $@ | awk 'NR == FNR { known[$$1] = 1; next } $$1 == "U" && $$2 !~ /@/ && !known[$$2 ";"] { \
    print "$@: undefined: " $$2; bad = 1 } END { exit bad }' kernels/plugin.exports - || { rm -f $@; exit 1; }

$(BUILD)/peft_emu.so: $(EMU_RUN) $(EMU_KERNELS) $(EMU_TABLE)
	$(call say,LINK,$@)$(CXX) -shared $^ -o $@ -lpthread
	@$(plugin_check)

$(BUILD)/cuda/%.o: %.cu
	@mkdir -p $(@D)
	$(call say,NVCC,$<)$(NVCC) $(NVCC_FLAGS) -MD -MP -MF $(@:.o=.d) $(CUDA_GENCODE) -c $< -o $@

$(BUILD)/peft_cuda.so: $(CUDA_SRC:%.cu=$(BUILD)/cuda/%.o)
	$(call say,LINK,$@)$(NVCC) -shared -cudart static $^ -o $@ -lcublas -Xlinker -rpath,$(CUDA_HOME)/lib64
	@$(plugin_check)

ifeq ($(CUDA_HERE),)
cuda emu:
	@echo "$@: no CUDA toolkit in $(CUDA_HOME): install nvcc and cuBLAS, or give CUDA_HOME=" >&2; exit 1
else
cuda: $(BUILD)/peft_cuda.so
emu: $(BUILD)/peft_emu.so
endif
ifeq ($(CUDA),1)
all: cuda
endif

# the kernels as cuda_parity wants them, for a real device
$(BUILD)/cuda/kernels.so: $(filter-out $(CUDA_TABLE:%.cu=$(BUILD)/cuda/%.o),$(CUDA_SRC:%.cu=$(BUILD)/cuda/%.o)) $(BUILD)/cuda/tests/cuda_rows.o
	$(call say,LINK,$@)$(NVCC) -shared -cudart static $^ -o $@ -lcublas -Xlinker -rpath,$(CUDA_HOME)/lib64

gpu-check: cuda
	@$(SUBMAKE) all $(BUILD)/cuda/kernels.so $(BUILD)/tests/cuda_parity $(BUILD)/tests/cuda_attention $(BUILD)/tests/cuda_train \
	    $(BUILD)/bench/bench_cuda $(BUILD)/bench/make_model
	@scripts/gpu-check.sh $(BUILD)

# objects for two architectures, without a table that needs every kernel: whether the sources compile
NVCC_CHECK := -gencode arch=compute_80,code=sm_80 -gencode arch=compute_90,code=sm_90

$(BUILD)/nvcc/%.o: %.cu
	@mkdir -p $(@D)
	$(call say,NVCC,$<)$(NVCC) $(NVCC_FLAGS) -MD -MP -MF $(@:.o=.d) $(NVCC_CHECK) -c $< -o $@

nvcc-check: $(CUDA_SRC:%.cu=$(BUILD)/nvcc/%.o)

# What cuda_parity tests: the kernels as a shared object. A sanitizer goes to kernels alone: the emulation reads what fibers
# left on their stacks, which it would report.
$(EMU)/kernels.so: $(EMU_KERNELS)
define sanitized_kernels
$(EMU)/$(1)/%.o: %.cu
	@mkdir -p $$(@D)
	$$(call say,CXX,'$$< ($(1))')$(CXX) -x c++ $(EMU_FLAGS) -O1 -g -fno-omit-frame-pointer $(2) -I. -c $$< -o $$@
$(EMU)/kernels_$(1).so: $(EMU_KERNELS:$(EMU)/%=$(EMU)/$(1)/%)
$(BUILD)/tests/cuda_parity_$(1): PARITY_SAN := $(2)
endef
$(eval $(call sanitized_kernels,asan,-fsanitize=address$(comma)undefined -fno-sanitize-recover=undefined))
$(eval $(call sanitized_kernels,tsan,-fsanitize=thread))

$(EMU)/kernels.so $(EMU)/kernels_asan.so $(EMU)/kernels_tsan.so: $(EMU_RUN) $(EMU)/tests/cuda_rows.o
	$(call say,LINK,$@)$(CXX) -shared $^ -o $@ -lpthread

MUTANT ?= $(BUILD)/mutant
# a copy of some sources with a bug in each (scripts/test-cuda.sh): MUTANT the folder that has them, MUTANT_SRC what to compile
$(MUTANT)/%.o: %.cu
	@mkdir -p $(@D)
	$(CXX) -x c++ $(EMU_FLAGS) -O1 -I$(MUTANT) -I. -c $(firstword $(wildcard $(MUTANT)/$<) $<) -o $@
$(MUTANT)/kernels.so: $(MUTANT_SRC:%.cu=$(MUTANT)/%.o) $(filter-out $(MUTANT_SRC:%.cu=$(EMU)/%.o),$(EMU_KERNELS)) $(EMU_RUN) $(EMU)/tests/cuda_rows.o
	$(CXX) -shared $^ -o $@ -lpthread

# the kernels find in the program what kernels/plugin.exports does not name: all of it is linked and visible
PARITY := $(BUILD)/tests/cuda_parity $(BUILD)/tests/cuda_parity_asan $(BUILD)/tests/cuda_parity_tsan
$(PARITY): $(BUILD)/tests/cuda_parity.o $(BUILD)/libpeft.a
	$(call say,LINK,$@)$(CC) $(PARITY_SAN) $< -Wl,--whole-archive $(BUILD)/libpeft.a -Wl,--no-whole-archive -fopenmp -rdynamic $(LDLIBS) -lcmocka -o $@
$(BUILD)/tests/cuda_attention $(BUILD)/tests/cuda_products $(BUILD)/tests/emu_faults: $(BUILD)/tests/%: $(BUILD)/tests/%.o $(BUILD)/libpeft.a
	$(call say,LINK,$@)$(CC) $< -Wl,--whole-archive $(BUILD)/libpeft.a -Wl,--no-whole-archive -fopenmp -rdynamic $(LDLIBS) -o $@

ifeq ($(CUDA_HERE),)
test-cuda:
	@echo "test-cuda: no CUDA toolkit in $(CUDA_HOME): nothing to run"
else
test-cuda:
	@scripts/install-deps.sh --quiet cuda
	@$(SUBMAKE) $(PARITY) $(addprefix $(BUILD)/tests/cuda_,attention ops products train) $(EMU)/kernels.so $(EMU)/kernels_asan.so $(EMU)/kernels_tsan.so \
	    $(BUILD)/peft_emu.so
	@scripts/test-cuda.sh $(BUILD) $(SECTIONS)
endif

# registers, shared memory and spills of every kernel for all architectures; test-cuda looks at two
cuda-table:
	@JOBS=$(JOBS) CUDA_HOME=$(CUDA_HOME) BUILD=$(BUILD) scripts/cuda_table.sh

.PHONY: cuda-table test-cuda nvcc-check cuda emu gpu-check
