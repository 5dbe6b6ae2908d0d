/* Sums over ranks by MPI, for backends on the CPU: peft_mpi.so, so that the programs link no MPI. */
#include "core/error.h"
#include "kernels/comm.h"

#include <mpi.h>

enum { PIECE = 1 << 28 }; /* MPI counts in int */

/* MPI's own default on an error is to end all ranks with a line of its own; so is ours. */
static int mpi_open(comm *w, kctx *c) {
    (void)c;
    int ready, level, rank, size;
    MPI_Initialized(&ready);
    if (!ready && MPI_Init_thread(NULL, NULL, MPI_THREAD_FUNNELED, &level)) return fail(EXIT_PEER, "MPI did not start");
    MPI_Comm_rank(MPI_COMM_WORLD, &rank), MPI_Comm_size(MPI_COMM_WORLD, &size);
    if (rank != w->rank || size != w->size)
        return fail(
            EXIT_USAGE,
            "this is rank %d of %d by its environment, but MPI says %d of %d: on a CPU launch with mpirun, or with srun --mpi=pmix",
            w->rank, w->size, rank, size);
    return 0;
}

static void mpi_sum(comm *w, kctx *c, float *v, int64_t n, step_sums *sums) {
    (void)w, (void)c;
    for (int64_t at = 0; at < n; at += PIECE) {
        int part = (int)(n - at < PIECE ? n - at : PIECE);
        MPI_Allreduce(MPI_IN_PLACE, v + at, part, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
    }
    double d[4] = {sums->loss, sums->weight, (double)sums->targets, (double)sums->nonfinite};
    MPI_Allreduce(MPI_IN_PLACE, d, 4, MPI_DOUBLE, MPI_SUM, MPI_COMM_WORLD);
    sums->loss = d[0], sums->weight = d[1], sums->targets = (int64_t)d[2], sums->nonfinite = (int64_t)d[3];
}

static void mpi_close(comm *w) {
    (void)w;
    int ended;
    MPI_Finalized(&ended);
    if (!ended) MPI_Finalize();
}

extern const comm_ops peft_comm;
__attribute__((visibility("default"))) const comm_ops peft_comm = {"mpi", COMM_BYTES, mpi_open, mpi_sum, mpi_close};
