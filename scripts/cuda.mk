# The CUDA sources: compiled by nvcc (backend "cuda", build/peft_cuda.so), and by the C++ compiler for execution on the CPU
# (backend "emu", build/peft_emu.so). Included by the Makefile. Both need the toolkit's headers; without them nothing here
# is built. Plain `make` builds backend "cuda" where there are both nvcc and a GPU; CUDA=1 builds it also without a GPU, CUDA=0
# never, and `make cuda` on demand.

CUDA_HOME ?= /usr/local/cuda
CXX ?= g++
NVCC ?= $(CUDA_HOME)/bin/nvcc
CUDA_HERE := $(wildcard $(CUDA_HOME)/include/cuda_runtime.h)
CUDA ?= $(if $(and $(wildcard $(NVCC)),$(wildcard /dev/nvidiactl)),1,0)
# compute capabilities without the dot; the last one as PTX too, which newer devices compile for themselves
CUDA_ARCHS ?= $(or $(shell nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | tr -d . | sort -nu),80)
CUDA_SRC := $(wildcard kernels/cuda/*.cu)
CUDA_TABLE := kernels/cuda/plugin.cu # names every kernel: links when all are there
EMU_SRC := $(wildcard kernels/emu/*.cpp)

# SAN goes to kernels alone: the emulation reads what fibers left on their stacks, which a sanitizer would report
EMU_DIR ?= $(BUILD)/emu
KERNEL_SAN ?=
EMU_OPT ?= -O2 -g
EMU_FLAGS := -std=c++17 $(EMU_OPT) -Wall -Wextra -Werror -Wno-missing-field-initializers -Wno-unused-function -Wno-unknown-pragmas \
    -fPIC -fvisibility=hidden -ffp-contract=off -DDEVICE_NAME='"emu"' -I. -isystem $(CUDA_HOME)/include -MMD -MP
EMU_OBJ := $(EMU_SRC:%.cpp=$(EMU_DIR)/%.o) $(CUDA_SRC:%.cu=$(EMU_DIR)/%.o)

$(EMU_DIR)/%.o: %.cpp
	@mkdir -p $(@D)
	$(call say,CXX,$<)$(CXX) $(EMU_FLAGS) -c $< -o $@

$(EMU_DIR)/%.o: %.cu
	@mkdir -p $(@D)
	$(call say,CXX,$<)$(CXX) -x c++ $(EMU_FLAGS) $(KERNEL_SAN) -c $< -o $@

NVCC_FLAGS := -std=c++17 -O3 -I. -Xcompiler -fPIC,-fvisibility=hidden --expt-relaxed-constexpr -Werror all-warnings \
    -diag-suppress 177 -DDEVICE_NAME=\"cuda\"
CUDA_GENCODE = $(foreach a,$(CUDA_ARCHS),-gencode arch=compute_$a,code=sm_$a) \
    -gencode arch=compute_$(lastword $(CUDA_ARCHS)),code=compute_$(lastword $(CUDA_ARCHS))

# both shared objects name every kernel, so they link when all are there; the symbols of plugin.exports come from the program
plugin_check = ! nm -Du $@ | grep '_cuda$$' || { rm -f $@; exit 1; }

$(BUILD)/peft_emu.so: $(EMU_OBJ)
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

# objects for one architecture, without a table that needs every kernel: whether the sources compile

$(BUILD)/nvcc/%.o: %.cu
	@mkdir -p $(@D)
	$(call say,NVCC,$<)$(NVCC) $(NVCC_FLAGS) -MD -MP -MF $(@:.o=.d) -gencode arch=compute_80,code=sm_80 -c $< -o $@

nvcc-check: $(CUDA_SRC:%.cu=$(BUILD)/nvcc/%.o)

# the kernels under test as a shared object, and the program that compares them
$(EMU_DIR)/kernels.so: $(filter-out $(CUDA_TABLE:%.cu=$(EMU_DIR)/%.o),$(EMU_OBJ)) $(EMU_DIR)/tests/cuda_rows.o
	$(call say,LINK,$@)$(CXX) -shared $^ -o $@ -lpthread

$(BUILD)/tests/cuda_parity: $(BUILD)/tests/cuda_parity.o $(BUILD)/libpeft.a
	$(call say,LINK,$@)$(CC) $< -Wl,--whole-archive $(BUILD)/libpeft.a -Wl,--no-whole-archive $(filter-out -Wl$(comma)--gc-sections,$(LDFLAGS)) -rdynamic $(LDLIBS) -lcmocka -ldl -o $@
comma := ,

ifeq ($(CUDA_HERE),)
test-cuda:
	@echo "test-cuda: no CUDA toolkit in $(CUDA_HOME): nothing to run"
else
test-cuda:
	@$(SUBMAKE) $(BUILD)/tests/cuda_parity $(EMU_DIR)/kernels.so
	@$(BUILD)/tests/cuda_parity $(EMU_DIR)/kernels.so
endif

.PHONY: test-cuda nvcc-check cuda emu
