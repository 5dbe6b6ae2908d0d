/* Decoding as one launch. A step that decodes is some hundreds of short kernels with the same shapes and addresses
 * every time; what changes are the batch's index arrays, which are put. The second time that a key comes its work is
 * captured into a CUDA graph, whose copies read a pinned buffer of the graph's own; from then on the host fills that
 * buffer and launches the graph. A key that comes once (a piece of a prompt) costs a comparison. */
#include "kernels/cuda/device.cuh"

#include <string.h>

static device *of(memory *m) { return reinterpret_cast<device *>(m); }

/* The key's graph when it came before, else NULL; a key that never came again gives its place to a new one. */
static graph *find(device *d, uint64_t key) {
    graph *idle = NULL;
    for (int i = 0; i < d->n_graphs; i++) {
        if (d->graphs[i].key == key) return &d->graphs[i];
        if (!d->graphs[i].puts) idle = &d->graphs[i];
    }
    if (d->n_graphs < GRAPHS) idle = &d->graphs[d->n_graphs++];
    if (idle) idle->key = key, idle->refused = false;
    return NULL;
}

memory_run graph_record(memory *m, uint64_t key) {
    device *d = of(m);
    d->mode = MEMORY_RUNS, d->put = 0;
    graph *g = d->now = find(d, key);
    if (!g || g->refused) return MEMORY_RUNS;
    if (g->exec) {
        CU(cudaStreamSynchronize(
            d->stream)); /* the last launch has read its puts; whoever samples has waited already */
        return d->mode = MEMORY_REPLAYS;
    }
    void *p = NULL;
    g->refused = cudaHostAlloc(&p, MEMORY_RECORDED, cudaHostAllocDefault) != cudaSuccess;
    if (g->refused) return cudaGetLastError(), MEMORY_RUNS;
    g->puts = static_cast<char *>(p);
    CU(cudaStreamBeginCapture(d->stream, cudaStreamCaptureModeThreadLocal));
    return d->mode = MEMORY_RECORDS;
}

bool graph_put(device *d, void *to, const void *from, size_t bytes) {
    if (d->mode == MEMORY_RUNS) return false;
    char *room = d->now->puts + d->put;
    d->put += (bytes + 63) / 64 * 64;
    CHECK(d->put <= MEMORY_RECORDED, "%zu bytes put in a recorded step", d->put);
    memcpy(room, from, bytes);
    if (d->mode == MEMORY_RECORDS && bytes) CU(cudaMemcpyAsync(to, room, bytes, cudaMemcpyHostToDevice, d->stream));
    return true;
}

void graph_play(memory *m) {
    device *d = of(m);
    graph *g = d->now;
    if (d->mode == MEMORY_RECORDS) {
        cudaGraph_t captured;
        CU(cudaStreamEndCapture(d->stream, &captured));
        CU(cudaGraphInstantiate(&g->exec, captured, 0));
        CU(cudaGraphDestroy(captured));
        g->bytes = d->put;
    }
    if (d->mode != MEMORY_RUNS) {
        CHECK(d->put == g->bytes, "%zu bytes put, %zu recorded", d->put, g->bytes);
        CU(cudaGraphLaunch(g->exec, d->stream));
    }
    d->mode = MEMORY_RUNS, d->now = NULL;
}

void graph_close(device *d) {
    for (int i = 0; i < d->n_graphs; i++) {
        if (d->graphs[i].exec) CU(cudaGraphExecDestroy(d->graphs[i].exec));
        if (d->graphs[i].puts) CU(cudaFreeHost(d->graphs[i].puts));
    }
}
