# The CUDA sources: compiled by nvcc (backend "cuda"), and by the C++ compiler for execution on the CPU (backend "emu").
# Included by the Makefile. Both need the toolkit's headers; without them nothing here is built.

CUDA ?= /usr/local/cuda
CXX ?= g++
NVCC ?= $(CUDA)/bin/nvcc
CUDA_HERE := $(wildcard $(CUDA)/include/cuda_runtime.h)
CUDA_SRC := $(wildcard kernels/cuda/*.cu)
EMU_SRC := $(wildcard kernels/emu/*.cpp)

# SAN goes to kernels alone: the emulation reads what fibers left on their stacks, which a sanitizer would report
EMU_DIR ?= $(BUILD)/emu
KERNEL_SAN ?=
EMU_OPT ?= -O2 -g
EMU_FLAGS := -std=c++17 $(EMU_OPT) -Wall -Wextra -Werror -Wno-missing-field-initializers -Wno-unused-function -Wno-unknown-pragmas \
    -fPIC -fvisibility=hidden -ffp-contract=off -I. -isystem $(CUDA)/include -MMD -MP
EMU_OBJ := $(EMU_SRC:%.cpp=$(EMU_DIR)/%.o) $(CUDA_SRC:%.cu=$(EMU_DIR)/%.o)

$(EMU_DIR)/%.o: %.cpp
	@mkdir -p $(@D)
	$(call say,CXX,$<)$(CXX) $(EMU_FLAGS) -c $< -o $@

$(EMU_DIR)/%.o: %.cu
	@mkdir -p $(@D)
	$(call say,CXX,$<)$(CXX) -x c++ $(EMU_FLAGS) $(KERNEL_SAN) -c $< -o $@

# nvcc: objects for one architecture only say that it compiles
NVCC_FLAGS := -std=c++17 -O3 -I. -Xcompiler -fPIC,-fvisibility=hidden --expt-relaxed-constexpr -Werror all-warnings -diag-suppress 177

$(BUILD)/nvcc/%.o: %.cu
	@mkdir -p $(@D)
	$(call say,NVCC,$<)$(NVCC) $(NVCC_FLAGS) -MD -MP -MF $(@:.o=.d) -gencode arch=compute_80,code=sm_80 -c $< -o $@

nvcc-check: $(CUDA_SRC:%.cu=$(BUILD)/nvcc/%.o)

# the kernels under test as a shared object, and the program that compares them
$(EMU_DIR)/kernels.so: $(EMU_OBJ) $(EMU_DIR)/tests/cuda_rows.o
	$(call say,LINK,$@)$(CXX) -shared $^ -o $@ -lpthread

$(BUILD)/tests/cuda_parity: $(BUILD)/tests/cuda_parity.o $(BUILD)/libpeft.a
	$(call say,LINK,$@)$(CC) $< -Wl,--whole-archive $(BUILD)/libpeft.a -Wl,--no-whole-archive $(filter-out -Wl$(comma)--gc-sections,$(LDFLAGS)) -rdynamic $(LDLIBS) -lcmocka -ldl -o $@
comma := ,

ifeq ($(CUDA_HERE),)
test-cuda:
	@echo "test-cuda: no CUDA toolkit in $(CUDA): nothing to run"
else
test-cuda:
	@$(SUBMAKE) $(BUILD)/tests/cuda_parity $(EMU_DIR)/kernels.so
	@$(BUILD)/tests/cuda_parity $(EMU_DIR)/kernels.so
endif

.PHONY: test-cuda nvcc-check
