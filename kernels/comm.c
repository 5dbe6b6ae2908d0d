/* Which rank this is, by whom it was launched, and what carries its sums. */
#include "kernels/comm.h"
#include "core/error.h"
#include "core/rng.h"
#include "kernels/plugin.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Names of environment variables. job: differs between jobs on one machine, so that their ports do. */
typedef struct launcher {
    const char *rank, *size, *job, *here; /* here: number of ranks on this machine, or of machines where `nodes` */
    bool nodes;
} launcher;

static const launcher launchers[] = {
    {"OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "PMIX_NAMESPACE", "OMPI_COMM_WORLD_LOCAL_SIZE", false},
    {"RANK", "WORLD_SIZE", NULL, "LOCAL_WORLD_SIZE", false},
    {"SLURM_PROCID", "SLURM_NTASKS", "SLURM_JOB_ID", "SLURM_NNODES", true},
};

enum { PORT = 29500, PORTS_FROM = 20000, PORTS = 9000 };

/* The number in an environment variable; `otherwise` when it is not set, -1 when it is no number. */
static int number(const char *name, int otherwise) {
    const char *v = name ? getenv(name) : NULL;
    char *end;
    if (!v || !*v) return otherwise;
    long n = strtol(v, &end, 10);
    return *end || n < 0 || n > 1 << 20 ? -1 : (int)n;
}

static const launcher *who_launched(void) {
    for (size_t i = 0; i < sizeof launchers / sizeof *launchers; i++)
        if (getenv(launchers[i].rank) && getenv(launchers[i].size)) return &launchers[i];
    return NULL;
}

static int port_of(const launcher *l) {
    const char *job = l->job ? getenv(l->job) : NULL;
    return job ? PORTS_FROM + (int)(hash_bytes(HASH_SEED, job, strlen(job)) % PORTS) : PORT;
}

int comm_begin(comm *w) {
    const launcher *l = who_launched();
    *w = (comm){.size = 1};
    if (!l) return 0;
    const int rank = number(l->rank, 0), size = number(l->size, 1), port = number("MASTER_PORT", port_of(l));
    const int here = number(l->here, l->nodes ? 1 : size);
    const char *host = getenv("MASTER_ADDR");
    if (size < 1 || size > PEERS_MAX || rank < 0 || rank >= size)
        return fail(EXIT_USAGE, "%s=%s, %s=%s: expected a rank below a size of at most %d", l->rank, getenv(l->rank),
                    l->size, getenv(l->size), PEERS_MAX);
    if (port < 1 || port > 65535) return fail(EXIT_USAGE, "MASTER_PORT=%s: expected a port", getenv("MASTER_PORT"));
    if (size == 1) return 0;
    if (!host && (l->nodes ? here > 1 : here < size))
        return fail(EXIT_USAGE, "the %d ranks are on several machines: set MASTER_ADDR to the one of rank 0", size);
    w->rank = rank, w->size = size;
    w->peers = peers_open(rank, size, host ? host : "127.0.0.1", port);
    return w->peers ? 0 : -1;
}

int comm_join(comm *w, kctx *c) {
    if (w->size == 1) return 0;
    char file[64];
    snprintf(file, sizeof file, "peft_%s.so", c->mem ? c->be->name : "mpi");
    w->ops = plugin_symbol(file, "peft_comm");
    if (!w->ops)
        return fail(
            EXIT_USAGE,
            "%d ranks: there is no %s with a communicator: on a CPU `make mpi` builds it and needs MPI, on a GPU "
            "it needs NCCL",
            w->size, file);
    if (w->ops->bytes != COMM_BYTES)
        return fail(EXIT_USAGE, "%s was built from other sources than this program: make all", file);
    return w->ops->open(w, c);
}

void comm_sum(comm *w, kctx *c, float *v, int64_t n, step_sums *sums) {
    if (w->size > 1) w->ops->sum(w, c, v, n, sums);
}

void comm_end(comm *w) {
    if (w->ops) w->ops->close(w);
    peers_close(w->peers);
    *w = (comm){.size = 1};
}
