/* Data parallel training: one process is one rank (and, on GPUs, one GPU). All ranks hold the same adapter; each
 * computes the gradient of its share of a step's micro-batches; one all-reduce of the flat gradient per step makes the
 * sum the same everywhere, to the bit. On a CPU it goes over MPI (peft_mpi.so), on a GPU over NCCL; both are opened
 * only when there is more than one rank.
 *
 * Rank and size come from the launcher's environment: mpirun (OpenMPI), srun, or RANK and WORLD_SIZE as torchrun sets
 * them. MASTER_ADDR and MASTER_PORT say where rank 0 is, where that is not this machine. core/peers.h watches over the
 * ranks. */
#ifndef PEFT_KERNELS_COMM_H
#define PEFT_KERNELS_COMM_H

#include "core/peers.h"
#include "kernels/backend.h"

typedef struct comm comm;

/* What a transport is: symbol `peft_comm` of its shared object. */
typedef struct comm_ops {
    const char *name; /* "mpi", "nccl" */
    size_t bytes;     /* sizeof(comm), sizeof(step_sums) of the object, each in 16 bits: built from the same sources */
    int (*open)(comm *w, kctx *c); /* w has rank, size and peers; -1 after fail() */
    void (*sum)(comm *w, kctx *c, float *v, int64_t n, step_sums *sums);
    void (*close)(comm *w);
} comm_ops;
#define COMM_BYTES (sizeof(comm) << 16 | sizeof(step_sums))

struct comm {
    int rank, size;
    peers *peers;        /* NULL: one rank */
    const comm_ops *ops; /* NULL: not joined */
    void *state;         /* of the transport */
};

/* Finds the other ranks; alone where no launcher says otherwise. -1 after fail(). */
int comm_begin(comm *w);
/* After the backend is open: the transport for its memory. Every rank calls it. */
int comm_join(comm *w, kctx *c);
/* v[n] and loss, weight, targets and nonfinite of sums become the sums over all ranks; on a device both are its memory,
 * and nothing here waits for it. One rank: nothing. */
void comm_sum(comm *w, kctx *c, float *v, int64_t n, step_sums *sums);
void comm_end(comm *w);

#endif
