/* The CUDA runtime as far as the project calls it: memory, streams, events, graphs. Signatures are the toolkit's own
 * headers'.
 *
 * A stream is a queue of work. With EMU_LAZY=1 work runs only when something waits for it (synchronisation, a blocking
 * copy, free), each stream on its own, so that a missing event shows as a wrong result; otherwise at once. */
#include "kernels/emu/emu_parts.h"

#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <vector>

typedef std::function<void()> work;

struct CUstream_st {
    std::deque<work> queue;
    bool blocking = true;            /* the default stream waits for it */
    CUgraph_st *recording = nullptr; /* what a capture puts the work into */
};
struct CUevent_st {
    CUstream_st *stream = nullptr;
    uint64_t recorded = 0, reached = 0;
    double ms = 0;
};
struct CUgraph_st {
    std::vector<work> nodes;
};
struct CUgraphExec_st {
    std::vector<work> nodes;
};

static std::recursive_mutex lock;
static std::map<const char *, emu_allocation> allocations;
static std::set<CUstream_st *> streams;
static CUstream_st default_stream;
static cudaError_t last_error = cudaSuccess;
static size_t device_used;
static const size_t DEVICE_BYTES = (size_t)24 << 30;

#define API std::lock_guard<std::recursive_mutex> held(lock)

static bool lazy(void) {
    static const bool l = atoi(emu_option("EMU_LAZY", "0"));
    return l;
}

cudaError_t emu_error(cudaError_t e) {
    if (e != cudaSuccess) last_error = e;
    return e;
}

/* says what was wrong; CUDA itself would only give the code */
static cudaError_t refuse(const char *call, const char *why) {
    fprintf(stderr, "emu: %s: %s\n", call, why);
    return emu_error(cudaErrorInvalidValue);
}

/* ---- memory ---- */

const emu_allocation *emu_find(const void *p) {
    API;
    auto i = allocations.upper_bound((const char *)p);
    if (i == allocations.begin()) return nullptr;
    const emu_allocation &a = (--i)->second;
    return (const char *)p <= a.base + a.size ? &a : nullptr;
}

const char *emu_range_error(const void *p, size_t n, bool device) {
    if (!n) return "";
    const emu_allocation *a = emu_find(p);
    if (!a) return device ? "not memory of the device" : "";
    if (device && !a->device) return "host memory given as memory of the device";
    if (!device && a->device) return "memory of the device given as host memory";
    return (const char *)p + n <= a->base + a->size ? "" : "beyond the end of its allocation";
}

/* With EMU_GUARD=1 memory of the device can be touched only while its work runs: a program that reads it faults. */
static bool guarded(void) {
    static const bool g = atoi(emu_option("EMU_GUARD", "0"));
    return g;
}

static void guard(const emu_allocation &a, int access) {
    if (a.device && mprotect(a.base, a.size ? a.size : 1, access)) perror("emu: mprotect");
}

static cudaError_t allocate(void **p, size_t bytes, bool device) {
    API;
    *p = nullptr;
    if (device && device_used + bytes > DEVICE_BYTES) return emu_error(cudaErrorMemoryAllocation);
    if (device && guarded())
        *p = mmap(nullptr, bytes ? bytes : 1, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    else if (posix_memalign(p, 256, bytes ? bytes : 1))
        *p = nullptr;
    if (!*p || *p == MAP_FAILED) return *p = nullptr, emu_error(cudaErrorMemoryAllocation);
    if (device) device_used += bytes;
    if (device && !guarded()) memset(*p, 0xff, bytes); /* pages that nobody touched are quick to guard */
    allocations[(const char *)*p] = {(char *)*p, bytes, device};
    if (guarded()) guard(allocations[(const char *)*p], PROT_NONE);
    return cudaSuccess;
}

static void drain_all(bool blocking_only);

static cudaError_t release(void *p, bool device) {
    API;
    if (!p) return cudaSuccess;
    drain_all(false);
    auto i = allocations.find((const char *)p);
    if (i == allocations.end() || i->second.device != device)
        return refuse("free", "not the start of an allocation of this kind");
    if (device) device_used -= i->second.size;
    const size_t size = i->second.size;
    allocations.erase(i);
    if (device && guarded())
        munmap(p, size ? size : 1);
    else
        free(p);
    return cudaSuccess;
}

extern "C" {

cudaError_t cudaMalloc(void **p, size_t n) { return allocate(p, n, true); }
cudaError_t cudaFree(void *p) { return release(p, true); }
cudaError_t cudaMallocHost(void **p, size_t n) { return allocate(p, n, false); }
cudaError_t cudaHostAlloc(void **p, size_t n, unsigned) { return allocate(p, n, false); }
cudaError_t cudaFreeHost(void *p) { return release(p, false); }
cudaError_t cudaHostRegister(void *p, size_t n, unsigned) {
    API;
    allocations[(const char *)p] = {(char *)p, n, false};
    return cudaSuccess;
}
cudaError_t cudaHostUnregister(void *p) {
    API;
    drain_all(false);
    return allocations.erase((const char *)p) ? cudaSuccess : refuse("cudaHostUnregister", "not registered");
}
cudaError_t cudaHostGetDevicePointer(void **d, void *h, unsigned) {
    const emu_allocation *a = emu_find(h);
    if (!a || a->device) return refuse("cudaHostGetDevicePointer", "not pinned memory");
    *d = h;
    return cudaSuccess;
}
cudaError_t cudaMemGetInfo(size_t *left, size_t *total) {
    *left = DEVICE_BYTES - device_used, *total = DEVICE_BYTES;
    return cudaSuccess;
}
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes *a, const void *p) {
    const emu_allocation *m = emu_find(p);
    *a = {};
    a->type = !m ? cudaMemoryTypeUnregistered : m->device ? cudaMemoryTypeDevice : cudaMemoryTypeHost;
    if (m) a->devicePointer = a->hostPointer = (void *)p;
    return cudaSuccess;
}
} /* extern "C" */

/* ---- streams ---- */

static CUstream_st *stream_of(cudaStream_t s) { return s && s != cudaStreamLegacy ? s : &default_stream; }

static void run_one(CUstream_st *s) {
    work w = std::move(s->queue.front());
    s->queue.pop_front();
    static int running; /* work that waits for an event runs other work */
    if (guarded() && running++ == 0)
        for (const auto &i : allocations) guard(i.second, PROT_READ | PROT_WRITE);
    w();
    if (guarded() && --running == 0)
        for (const auto &i : allocations) guard(i.second, PROT_NONE);
}
static void drain(CUstream_st *s) {
    while (!s->queue.empty()) run_one(s);
}
static void drain_all(bool blocking_only) {
    drain(&default_stream);
    for (CUstream_st *s : streams)
        if (s->blocking || !blocking_only) drain(s);
}

void emu_submit(cudaStream_t stream, work w) {
    API;
    CUstream_st *s = stream_of(stream);
    if (s->recording) {
        s->recording->nodes.push_back(w);
        return;
    }
    if (s == &default_stream)
        drain_all(true);
    else if (s->blocking)
        drain(&default_stream);
    s->queue.push_back(w);
    if (!lazy()) drain(s);
}

/* direction as declared against what the pointers are; asynchronous copies of pageable memory would not be asynchronous
 */
static const char *copy_error(void *dst, const void *src, size_t n, cudaMemcpyKind kind) {
    bool to = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
    bool from = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
    if (kind == cudaMemcpyDefault) {
        const emu_allocation *d = emu_find(dst), *s = emu_find(src);
        to = d && d->device, from = s && s->device;
    }
    const char *e = emu_range_error(dst, n, to);
    return *e ? e : emu_range_error(src, n, from);
}

extern "C" {

cudaError_t cudaMemcpyAsync(void *dst, const void *src, size_t n, cudaMemcpyKind kind, cudaStream_t s) {
    const char *e = copy_error(dst, src, n, kind);
    if (*e) return refuse("cudaMemcpy", e);
    const emu_allocation *from = emu_find(src);
    if (from || kind == cudaMemcpyDeviceToDevice) {
        emu_submit(s, [=] { memmove(dst, src, n); });
    } else { /* pageable source: the driver takes a copy before it returns */
        std::shared_ptr<char> copy((char *)malloc(n ? n : 1), free);
        memcpy(copy.get(), src, n);
        emu_submit(s, [=] { memcpy(dst, copy.get(), n); });
    }
    if (!emu_find(dst)) { /* pageable target: it waits */
        API;
        drain(stream_of(s));
    }
    return cudaSuccess;
}
cudaError_t cudaMemcpy(void *dst, const void *src, size_t n, cudaMemcpyKind kind) {
    cudaError_t e = cudaMemcpyAsync(dst, src, n, kind, nullptr);
    API;
    drain(&default_stream);
    return e;
}
cudaError_t cudaMemcpy2DAsync(void *dst, size_t dp, const void *src, size_t sp, size_t width, size_t height,
                              cudaMemcpyKind kind, cudaStream_t s) {
    if (!width || !height) return cudaSuccess;
    const char *e = copy_error(dst, src, (height - 1) * (dp > sp ? sp : dp) + width, kind);
    if (*e) return refuse("cudaMemcpy2D", e);
    emu_submit(s, [=] {
        for (size_t i = 0; i < height; i++) memmove((char *)dst + i * dp, (const char *)src + i * sp, width);
    });
    return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void *p, int value, size_t n, cudaStream_t s) {
    const emu_allocation *a = emu_find(p);
    const char *e = a ? emu_range_error(p, n, a->device) : "not memory of the device";
    if (n && *e) return refuse("cudaMemset", e);
    emu_submit(s, [=] { memset(p, value, n); });
    return cudaSuccess;
}
cudaError_t cudaMemset(void *p, int value, size_t n) { return cudaMemsetAsync(p, value, n, nullptr); }

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, unsigned flags) {
    API;
    *s = new CUstream_st();
    (*s)->blocking = !(flags & cudaStreamNonBlocking);
    streams.insert(*s);
    return cudaSuccess;
}
cudaError_t cudaStreamCreate(cudaStream_t *s) { return cudaStreamCreateWithFlags(s, cudaStreamDefault); }
cudaError_t cudaStreamCreateWithPriority(cudaStream_t *s, unsigned flags, int) {
    return cudaStreamCreateWithFlags(s, flags);
}
cudaError_t cudaStreamDestroy(cudaStream_t s) {
    API;
    if (!streams.erase(s)) return refuse("cudaStreamDestroy", "not a stream");
    drain(s);
    delete s;
    return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t s) {
    API;
    if (stream_of(s) == &default_stream) drain_all(true);
    drain(stream_of(s));
    cudaError_t e = last_error;
    return e;
}
cudaError_t cudaStreamQuery(cudaStream_t s) { return stream_of(s)->queue.empty() ? cudaSuccess : cudaErrorNotReady; }
cudaError_t cudaDeviceSynchronize(void) {
    API;
    drain_all(false);
    return last_error;
}
cudaError_t cudaLaunchHostFunc(cudaStream_t s, cudaHostFn_t f, void *arg) {
    emu_submit(s, [=] { f(arg); });
    return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned) {
    *e = new CUevent_st();
    return cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t *e) { return cudaEventCreateWithFlags(e, 0); }
cudaError_t cudaEventDestroy(cudaEvent_t e) {
    API;
    drain_all(false);
    delete e;
    return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s) {
    API;
    e->stream = stream_of(s);
    uint64_t turn = ++e->recorded;
    emu_submit(s, [=] {
        struct timeval now;
        gettimeofday(&now, nullptr);
        e->reached = turn, e->ms = (double)now.tv_sec * 1e3 + (double)now.tv_usec * 1e-3;
    });
    return cudaSuccess;
}
static void reach(cudaEvent_t e, uint64_t turn) {
    while (e->reached < turn && !e->stream->queue.empty()) run_one(e->stream);
}
cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned) {
    API;
    uint64_t turn = e->recorded;
    emu_submit(s, [=] { reach(e, turn); });
    return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t e) {
    API;
    reach(e, e->recorded);
    return last_error;
}
cudaError_t cudaEventQuery(cudaEvent_t e) { return e->reached == e->recorded ? cudaSuccess : cudaErrorNotReady; }
cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t from, cudaEvent_t to) {
    *ms = (float)(to->ms - from->ms);
    return cudaSuccess;
}

/* ---- graphs: the work of a stream kept for later, with the arguments it had ---- */

cudaError_t cudaStreamBeginCapture(cudaStream_t s, cudaStreamCaptureMode) {
    if (!s || s->recording)
        return refuse("cudaStreamBeginCapture", "the default stream, or one that is captured already");
    s->recording = new CUgraph_st();
    return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t *g) {
    *g = s->recording, s->recording = nullptr;
    return *g ? cudaSuccess : refuse("cudaStreamEndCapture", "no capture has begun");
}
cudaError_t cudaStreamIsCapturing(cudaStream_t s, cudaStreamCaptureStatus *st) {
    *st = stream_of(s)->recording ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
    return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *x, cudaGraph_t g, unsigned long long) {
    *x = new CUgraphExec_st{g->nodes};
    return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t x, cudaStream_t s) {
    for (const work &w : x->nodes) emu_submit(s, w);
    return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t g) {
    delete g;
    return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t x) {
    cudaDeviceSynchronize();
    delete x;
    return cudaSuccess;
}

/* ---- the device and errors ---- */

cudaError_t cudaGetDeviceCount(int *n) {
    *n = 1;
    return cudaSuccess;
}
cudaError_t cudaSetDevice(int d) { return d == 0 ? cudaSuccess : emu_error(cudaErrorInvalidDevice); }
cudaError_t cudaGetDevice(int *d) {
    *d = 0;
    return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int *v, cudaDeviceAttr a, int) {
    static const std::map<int, int> values = {{cudaDevAttrComputeCapabilityMajor, 8},
                                              {cudaDevAttrComputeCapabilityMinor, 0},
                                              {cudaDevAttrMultiProcessorCount, 4},
                                              {cudaDevAttrMaxSharedMemoryPerBlockOptin, 99 << 10},
                                              {cudaDevAttrMaxSharedMemoryPerBlock, 48 << 10},
                                              {cudaDevAttrMaxThreadsPerBlock, 1024},
                                              {cudaDevAttrWarpSize, 32}};
    auto i = values.find(a);
    if (i == values.end()) return refuse("cudaDeviceGetAttribute", "an attribute that the emulation does not have");
    *v = i->second;
    return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp *p, int) {
    *p = {};
    strcpy(p->name, "emulation on the CPU");
    p->major = 8, p->minor = 0, p->multiProcessorCount = 4, p->warpSize = 32;
    p->totalGlobalMem = DEVICE_BYTES, p->sharedMemPerBlock = 48 << 10, p->sharedMemPerBlockOptin = 99 << 10;
    p->maxThreadsPerBlock = 1024, p->regsPerBlock = 65536, p->unifiedAddressing = 1, p->canMapHostMemory = 1;
    p->l2CacheSize = 4 << 20;
    return cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int *v) {
    *v = CUDART_VERSION;
    return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int *v) { return cudaDriverGetVersion(v); }
cudaError_t cudaFuncSetAttribute(const void *, cudaFuncAttribute, int) { return cudaSuccess; }
cudaError_t cudaGetLastError(void) {
    cudaError_t e = last_error;
    last_error = cudaSuccess;
    return e;
}
cudaError_t cudaPeekAtLastError(void) { return last_error; }

static const struct {
    cudaError_t code;
    const char *name, *text;
} errors[] = {{cudaSuccess, "cudaSuccess", "no error"},
              {cudaErrorInvalidValue, "cudaErrorInvalidValue", "invalid argument"},
              {cudaErrorMemoryAllocation, "cudaErrorMemoryAllocation", "out of memory"},
              {cudaErrorInvalidConfiguration, "cudaErrorInvalidConfiguration", "invalid configuration argument"},
              {cudaErrorInvalidDevice, "cudaErrorInvalidDevice", "invalid device ordinal"},
              {cudaErrorNotReady, "cudaErrorNotReady", "device not ready"}};
const char *cudaGetErrorName(cudaError_t e) {
    for (auto &i : errors)
        if (i.code == e) return i.name;
    return "unknown";
}
const char *cudaGetErrorString(cudaError_t e) {
    for (auto &i : errors)
        if (i.code == e) return i.text;
    return "unrecognized error code";
}
} /* extern "C" */
