# Several ranks on CPUs, and what test-cuda needs beside cuda.mk's programs. Included by the Makefile after cuda.mk.

# sums over the ranks of a run on CPUs: where MPI is installed
MPICC ?= mpicc
MPI_HERE := $(shell command -v $(MPICC) 2>/dev/null)
$(BUILD)/peft_mpi.so: $(BUILD)/kernels/mpi/comm_mpi.o
	$(call say,LINK,$@)$(MPICC) -shared $< -o $@
$(BUILD)/kernels/mpi/comm_mpi.o: CFLAGS += -fPIC -fvisibility=hidden $(shell $(MPICC) --showme:compile 2>/dev/null | sed 's/-I/-isystem /g')
mpi: $(BUILD)/peft_mpi.so
ifneq ($(MPI_HERE),)
all: mpi
endif

# kernels with bugs that the emulation itself must find
$(EMU)/faults.so: $(EMU_KERNELS) $(EMU_RUN) $(EMU)/tests/emu_faults.o
	$(call say,LINK,$@)$(CXX) -shared $^ -o $@ -lpthread

ifneq ($(CUDA_HERE),)
test-cuda: test-cuda-more
endif
test-cuda-more:
	@scripts/install-deps.sh --quiet cuda
	@$(SUBMAKE) all emu $(BUILD)/tests/rank_runs $(BUILD)/tests/emu_faults $(EMU)/faults.so

.PHONY: mpi test-cuda-more
