/* Sums over ranks on the device: queued on the stream of the kernels, so that nothing waits. Symbol `peft_comm`. */
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/nccl.cuh"

extern "C" {
#include "kernels/comm.h"
extern const comm_ops peft_comm __attribute__((visibility("default")));
}

#include <stdlib.h>

static const nccl_calls *nccl;

static int said(ncclResult_t r, const char *call) {
    return r == ncclSuccess ? 0 : fail(EXIT_PEER, "%s: %s", call, nccl->text(r));
}

/* in a step there is no way back: this rank ends, and the others learn it from core/peers */
static void must(ncclResult_t r, const char *call) {
    if (said(r, call)) exit(fail_report("peft"));
}

static int nccl_open(comm *w, kctx *) {
    ncclUniqueId id = {};
    ncclComm_t c;
    if (!nccl && !(nccl = nccl_find())) return -1;
    if (w->rank == 0 && said(nccl->id(&id), "ncclGetUniqueId")) return -1;
    peers_broadcast(w->peers, &id, sizeof id);
    if (said(nccl->init(&c, w->size, id, w->rank), "ncclCommInitRank")) return -1;
    w->state = c;
    return 0;
}

/* loss and weight lie together, so do targets and nonfinite */
static void nccl_sum(comm *w, kctx *k, float *v, int64_t n, step_sums *sums) {
    const ncclComm_t c = static_cast<ncclComm_t>(w->state);
    const cudaStream_t s = kstream(k);
    must(nccl->begin(), "ncclGroupStart");
    if (n) must(nccl->all_reduce(v, v, (size_t)n, ncclFloat, ncclSum, c, s), "ncclAllReduce");
    must(nccl->all_reduce(&sums->loss, &sums->loss, 2, ncclDouble, ncclSum, c, s), "ncclAllReduce");
    must(nccl->all_reduce(&sums->targets, &sums->targets, 2, ncclInt64, ncclSum, c, s), "ncclAllReduce");
    must(nccl->end(), "ncclGroupEnd");
}

static void nccl_close(comm *w) {
    if (w->state) nccl->destroy(static_cast<ncclComm_t>(w->state));
    w->state = NULL;
}

static_assert(offsetof(step_sums, weight) == offsetof(step_sums, loss) + sizeof(double), "neighbours");
static_assert(offsetof(step_sums, nonfinite) == offsetof(step_sums, targets) + sizeof(int64_t), "neighbours");

const comm_ops peft_comm = {"nccl", COMM_BYTES, nccl_open, nccl_sum, nccl_close};
