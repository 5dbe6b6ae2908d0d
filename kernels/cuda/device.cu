/* The device of backend "cuda" (and of "emu"): its memory, stream and events.
 *
 * Everything is queued on one stream. A put goes through pinned memory in parts, so that it neither waits for the
 * kernels before it nor keeps the caller's bytes; a part is filled again when its last copy is done, which an event
 * says. */
#include "kernels/cuda/device.cuh"

#include <stdlib.h>
#include <string.h>

static const size_t PART_BYTES = DEVICE_STAGE / STAGES;

static device *of(memory *m) { return reinterpret_cast<device *>(m); }

cudaStream_t kstream(const kctx *c) { return device_of(c)->stream; }

void cuda_failed(const char *file, int line, const char *call, int code) {
    const cudaError_t e = (cudaError_t)code;
    fail(EXIT_DEVICE, "backend '%s': %s:%d: %s: %s (%s)", DEVICE_NAME, file, line, call, cudaGetErrorString(e),
         cudaGetErrorName(e));
    exit(fail_report("peft"));
}

/* ---- memory ---- */

static void *device_map(memory *, const char *what, size_t bytes) {
    void *p = NULL;
    const cudaError_t e = cudaMalloc(&p, bytes);
    if (e == cudaSuccess) return p;
    size_t left = 0, all = 0;
    cudaGetLastError();
    cudaMemGetInfo(&left, &all);
    fail(EXIT_MEMORY, "device memory for '%s': %zu bytes, %zu of %zu are free: %s", what, bytes, left, all,
         cudaGetErrorString(e));
    return NULL;
}

static void device_unmap(memory *m, void *base) {
    CU(cudaStreamSynchronize(of(m)->stream));
    CU(cudaFree(base));
}

/* room for n bytes, at most PART_BYTES, in the part that is being filled or in the next one */
static char *stage_room(device *d, size_t n) {
    if (n > PART_BYTES - d->used) {
        CU(cudaEventRecord(d->staged[d->part], d->stream));
        d->part = (d->part + 1) % STAGES, d->used = 0;
        CU(cudaEventSynchronize(d->staged[d->part])); /* long past, unless puts outrun the device */
    }
    char *p = d->stage + (size_t)d->part * PART_BYTES + d->used;
    d->used += (n + 63) / 64 * 64;
    if (d->used > PART_BYTES) d->used = PART_BYTES;
    return p;
}

static void device_put(memory *m, void *to, const void *from, size_t bytes) {
    device *d = of(m);
    if (graph_put(d, to, from, bytes)) return;
    for (size_t at = 0; at < bytes;) {
        const size_t n = bytes - at < PART_BYTES ? bytes - at : PART_BYTES;
        char *room = stage_room(d, n);
        memcpy(room, static_cast<const char *>(from) + at, n);
        CU(cudaMemcpyAsync(static_cast<char *>(to) + at, room, n, cudaMemcpyHostToDevice, d->stream));
        at += n;
    }
}

static void device_get(memory *m, void *to, const void *from, size_t bytes) {
    if (!bytes) return;
    CU(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, of(m)->stream));
    CU(cudaStreamSynchronize(of(m)->stream));
}

static void *device_map_shared(memory *, size_t bytes) {
    void *p = NULL;
    const cudaError_t e = cudaHostAlloc(&p, bytes ? bytes : 1, cudaHostAllocMapped | cudaHostAllocPortable);
    if (e == cudaSuccess) return memset(p, 0, bytes);
    cudaGetLastError();
    fail(EXIT_MEMORY, "pinned host memory: %zu bytes: %s (see ulimit -l)", bytes, cudaGetErrorString(e));
    return NULL;
}

static void device_unmap_shared(memory *m, void *p) {
    CU(cudaStreamSynchronize(of(m)->stream));
    CU(cudaFreeHost(p));
}

static void device_post(memory *m, void *to, const void *from, size_t bytes, int slot) {
    device *d = of(m);
    CU(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, d->stream));
    CU(cudaEventRecord(d->posted[slot], d->stream));
}

static void device_wait(memory *m, int slot) { CU(cudaEventSynchronize(of(m)->posted[slot])); }

/* ---- opening ---- */

/* Which of several: the launcher's LOCAL_RANK (torchrun, and mpirun through the caller), else the first that is
 * visible. */
static int choose(int *index, int *capability) {
    int n = 0, major = 0, minor = 0;
    const char *name = DEVICE_NAME, *local = getenv("LOCAL_RANK");
    const cudaError_t e = cudaGetDeviceCount(&n);
    if (e != cudaSuccess || n < 1) {
        cudaGetLastError();
        return fail(EXIT_DEVICE, "backend '%s': no usable NVIDIA device here: %s; backend: auto computes on the CPU",
                    name, e == cudaSuccess ? "none is visible" : cudaGetErrorString(e));
    }
    *index = local ? atoi(local) % n : 0;
    CU(cudaSetDevice(*index));
    CU(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, *index));
    CU(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, *index));
    *capability = 10 * major + minor;
    if (major >= 8) return 0;
    return fail(EXIT_DEVICE,
                "backend '%s': device %d has compute capability %d.%d, expected 8.0 (Ampere) or newer: bf16 products "
                "on tensor cores begin there; backend: auto computes on the CPU",
                name, *index, major, minor);
}

int device_open(kctx *c) {
    int index, capability = 0;
    if (choose(&index, &capability)) return -1;
    const char *way = getenv("PEFT_CUDA_PRODUCTS");
    if (way && way_named(way) < 0)
        return fail(EXIT_USAGE, "PEFT_CUDA_PRODUCTS: '%s', expected few, stored, panel or library", way);
    device *d = static_cast<device *>(calloc(1, sizeof *d));
    if (!d) return fail(EXIT_MEMORY, "memory for a device's state");
    const memory mem = {device_map,          device_unmap, device_put,  device_get,   device_map_shared,
                        device_unmap_shared, device_post,  device_wait, graph_record, graph_play};
    d->mem = mem, c->mem = &d->mem;
    d->capability = capability, d->way = way_named(way);
    CU(cudaStreamCreateWithFlags(&d->stream, cudaStreamNonBlocking));
    for (int i = 0; i < MEMORY_SLOTS; i++) CU(cudaEventCreateWithFlags(&d->posted[i], cudaEventDisableTiming));
    for (int i = 0; i < STAGES; i++) CU(cudaEventCreateWithFlags(&d->staged[i], cudaEventDisableTiming));
    c->scratch_bytes = DEVICE_SCRATCH;
    c->scratch = static_cast<char *>(device_map(&d->mem, "kernel scratch", c->scratch_bytes));
    d->stage = static_cast<char *>(device_map_shared(&d->mem, DEVICE_STAGE));
    return c->scratch && d->stage ? blas_open(d) : -1;
}

void device_close(kctx *c) {
    device *d = device_of(c);
    CU(cudaStreamSynchronize(d->stream));
    graph_close(d);
    blas_close(d);
    if (c->scratch) CU(cudaFree(c->scratch));
    if (d->stage) CU(cudaFreeHost(d->stage));
    for (int i = 0; i < MEMORY_SLOTS; i++) CU(cudaEventDestroy(d->posted[i]));
    for (int i = 0; i < STAGES; i++) CU(cudaEventDestroy(d->staged[i]));
    CU(cudaStreamDestroy(d->stream));
    free(d);
}
