/* NCCL between processes of one machine, over shared memory: all ranks copy a piece of theirs in, wait for each other,
 * and each adds all pieces in the order of ranks. (The real library's order of addition is another one.) A rank that
 * does not come within EMU_NCCL_TIMEOUT seconds is gone: ncclRemoteError. Signatures are the library's own header's. */
#include "kernels/emu/emu_parts.h"

#include "kernels/cuda/nccl.cuh"

#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { RANKS = 16, PIECE = 1 << 20 };

namespace {
struct board {
    int arrived, generation, attached;
    struct {
        size_t count;
        int type;
    } call[RANKS]; /* what each rank asks for: they must agree */
    char piece[RANKS][PIECE];
};
} // namespace

struct ncclComm {
    int rank, size;
    board *b;
    double timeout;
};

static double seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* until all ranks are here */
static void meet(const ncclComm *c, const char *what) {
    board *b = c->b;
    const int turn = __atomic_load_n(&b->generation, __ATOMIC_ACQUIRE);
    if (__atomic_add_fetch(&b->arrived, 1, __ATOMIC_ACQ_REL) == c->size) {
        __atomic_store_n(&b->arrived, 0, __ATOMIC_RELAXED);
        __atomic_add_fetch(&b->generation, 1, __ATOMIC_RELEASE);
        return;
    }
    const double until = seconds() + c->timeout;
    while (__atomic_load_n(&b->generation, __ATOMIC_ACQUIRE) == turn) {
        if (seconds() > until) {
            fprintf(stderr, "emu: %s on rank %d: another rank did not come within %g s\n", what, c->rank, c->timeout);
            exit(EXIT_PEER);
        }
        sched_yield();
    }
}

template <class T> static void add(T *to, const board *b, int size, size_t n) {
    for (size_t i = 0; i < n; i++) {
        T sum = 0;
        for (int r = 0; r < size; r++) sum += ((const T *)b->piece[r])[i];
        to[i] = sum;
    }
}

static size_t bytes_of(ncclDataType_t t) { return t == ncclFloat ? 4 : t == ncclDouble || t == ncclInt64 ? 8 : 0; }

static void reduce(const ncclComm *c, const void *from, void *to, size_t count, ncclDataType_t type) {
    const size_t each = bytes_of(type), most = PIECE / each;
    board *b = c->b;
    b->call[c->rank].count = count, b->call[c->rank].type = type;
    for (size_t at = 0; at < count; at += most) {
        const size_t n = count - at < most ? count - at : most;
        memcpy(b->piece[c->rank], (const char *)from + at * each, n * each);
        meet(c, "ncclAllReduce");
        for (int r = 0; r < c->size; r++)
            if (b->call[r].count != count || b->call[r].type != type) {
                fprintf(stderr, "emu: ncclAllReduce of %zu elements on rank %d, of %zu on rank %d\n", count, c->rank,
                        b->call[r].count, r);
                abort();
            }
        void *out = (char *)to + at * each;
        if (type == ncclFloat) add((float *)out, b, c->size, n);
        if (type == ncclDouble) add((double *)out, b, c->size, n);
        if (type == ncclInt64) add((long long *)out, b, c->size, n);
        meet(c, "ncclAllReduce");
    }
}

extern "C" {

ncclResult_t ncclGetUniqueId(ncclUniqueId *id) {
    *id = {};
    snprintf(id->internal, sizeof id->internal, "/peft-emu-nccl-%d-%lld", (int)getpid(), (long long)(seconds() * 1e9));
    int fd = shm_open(id->internal, O_CREAT | O_EXCL | O_RDWR, 0600);
    if (fd < 0 || ftruncate(fd, sizeof(board))) return ncclSystemError;
    close(fd);
    return ncclSuccess;
}

ncclResult_t ncclCommInitRank(ncclComm_t *out, int size, ncclUniqueId id, int rank) {
    if (size > RANKS || rank < 0 || rank >= size) return ncclInvalidArgument;
    int fd = shm_open(id.internal, O_RDWR, 0600);
    void *m = fd < 0 ? MAP_FAILED : mmap(nullptr, sizeof(board), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (fd >= 0) close(fd);
    if (m == MAP_FAILED) return ncclSystemError;
    ncclComm *c = new ncclComm{rank, size, (board *)m, atof(emu_option("EMU_NCCL_TIMEOUT", "60"))};
    meet(c, "ncclCommInitRank");
    if (rank == 0) shm_unlink(id.internal); /* all have it; nothing stays behind whatever happens */
    *out = c;
    return ncclSuccess;
}

ncclResult_t ncclCommDestroy(ncclComm_t c) {
    cudaDeviceSynchronize();
    munmap(c->b, sizeof(board));
    delete c;
    return ncclSuccess;
}

ncclResult_t ncclAllReduce(const void *from, void *to, size_t count, ncclDataType_t type, ncclRedOp_t op, ncclComm_t c,
                           cudaStream_t s) {
    if (op != ncclSum || !bytes_of(type)) return ncclInvalidUsage;
    if (*emu_range_error(from, count * bytes_of(type), true) || *emu_range_error(to, count * bytes_of(type), true))
        return ncclInvalidArgument;
    emu_submit(s, [=] { reduce(c, from, to, count, type); });
    return ncclSuccess;
}

ncclResult_t ncclGroupStart(void) { return ncclSuccess; }
ncclResult_t ncclGroupEnd(void) { return ncclSuccess; }
const char *ncclGetErrorString(ncclResult_t r) {
    return r == ncclSystemError ? "unhandled system error"
           : r == ncclSuccess   ? "no error"
                                : "invalid argument or usage";
}
} /* extern "C" */

const nccl_calls *nccl_find(void) {
    static const nccl_calls calls = {ncclGetUniqueId, ncclCommInitRank, ncclCommDestroy,   ncclAllReduce,
                                     ncclGroupStart,  ncclGroupEnd,     ncclGetErrorString};
    return &calls;
}
