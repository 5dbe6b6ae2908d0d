/* Copies, elementwise maps, dropout (Srivastava et al. 2014) and the sum of the loss; formulas in kernels/ref/ref.h. x
 * of the grid walks a row, y the rows; four elements a thread where the rows allow. All are bound by memory. */
#include "kernels/cuda/cuda.h"
extern "C" {
#include "kernels/ref/ref.h"
}

/* first element of this thread's part of a row, and the step to its next one */
#define FOR_PARTS(i, k, rows_, cols_, V)                                                                               \
    for (int64_t i = blockIdx.y; i < (rows_); i += gridDim.y)                                                          \
        for (int64_t k = (blockIdx.x * (int64_t)BLOCK + threadIdx.x) * V; k < (cols_);                                 \
             k += (int64_t)gridDim.x * BLOCK * V)

/* the launch with V = 4 or 1 as the mats allow */
#define LAUNCH_PARTS(fours, rows_, cols_, c, V, ...)                                                                   \
    do {                                                                                                               \
        if (fours) {                                                                                                   \
            enum { V = 4 };                                                                                            \
            const dim3 grid = grid_for_rows(rows_, (cols_) + 3, V);                                                    \
            __VA_ARGS__;                                                                                               \
        } else {                                                                                                       \
            enum { V = 1 };                                                                                            \
            const dim3 grid = grid_for_rows(rows_, cols_, V);                                                          \
            __VA_ARGS__;                                                                                               \
        }                                                                                                              \
    } while (0)

void zero_cuda(kctx *c, void *p, size_t bytes) {
    if (bytes) CU(cudaMemsetAsync(p, 0, bytes, kstream(c)));
}

template <class Y, class X, int V> static __global__ void copy_kernel(mat y, mat x) {
    FOR_PARTS(i, k, x.rows, x.cols, V) {
        float v[V];
        load_part<V>(v, row_of<X>(x, i) + k);
        store_part<V>(row_of<Y>(y, i) + k, v);
    }
}

/* also between types: a value is rounded once */
void copy_cuda(kctx *c, mat y, mat x) {
    WITH_VALUES(y.type, Y,
                WITH_VALUES(x.type, X,
                            LAUNCH_PARTS(by_fours(x) && by_fours(y), x.rows, x.cols, c, V,
                                         LAUNCH((copy_kernel<Y, X, V>), grid, BLOCK, 0, c, y, x))));
}

template <class T, int V> static __global__ void add_kernel(mat y, mat a, mat b) {
    FOR_PARTS(i, k, y.rows, y.cols, V) {
        float v[V], w[V];
        load_part<V>(v, row_of<T>(a, i) + k);
        load_part<V>(w, row_of<T>(b, i) + k);
        for (int e = 0; e < V; e++) v[e] += w[e];
        store_part<V>(row_of<T>(y, i) + k, v);
    }
}

void add_cuda(kctx *c, mat y, mat a, mat b) {
    CHECK(y.type == a.type && y.type == b.type, "types %d %d %d", y.type, a.type, b.type);
    WITH_VALUES(y.type, T,
                LAUNCH_PARTS(by_fours(y) && by_fours(a) && by_fours(b), y.rows, y.cols, c, V,
                             LAUNCH((add_kernel<T, V>), grid, BLOCK, 0, c, y, a, b)));
}

/* y[i,:] = x[i,:] times s, or times weight[i] where there is one */
template <class Y, class X, int V> static __global__ void scale_kernel(mat y, mat x, float s, const float *weight) {
    FOR_PARTS(i, k, x.rows, x.cols, V) {
        float v[V], f = weight ? weight[i] : s;
        load_part<V>(v, row_of<X>(x, i) + k);
        for (int e = 0; e < V; e++) v[e] *= f;
        store_part<V>(row_of<Y>(y, i) + k, v);
    }
}

static void scale_by(kctx *c, mat y, mat x, float s, const float *weight) {
    WITH_VALUES(y.type, Y,
                WITH_VALUES(x.type, X,
                            LAUNCH_PARTS(by_fours(x) && by_fours(y), x.rows, x.cols, c, V,
                                         LAUNCH((scale_kernel<Y, X, V>), grid, BLOCK, 0, c, y, x, s, weight))));
}

void scale_cuda(kctx *c, mat y, mat x, float s) { scale_by(c, y, x, s, NULL); }
void scale_rows_cuda(kctx *c, mat y, mat x, const float *weight) { scale_by(c, y, x, 0, weight); }

template <class T> static __global__ void bias_kernel(mat y, const float *bias) {
    FOR_PARTS(i, k, y.rows, y.cols, 1) {
        T *p = row_of<T>(y, i) + k;
        store(p, load(p) + bias[k]);
    }
}

void add_bias_cuda(kctx *c, mat y, const float *bias) {
    WITH_VALUES(y.type, T, LAUNCH((bias_kernel<T>), grid_for_rows(y.rows, y.cols, 1), BLOCK, 0, c, y, bias));
}

/* one block of rng_philox (core/rng.c): four words, for four features */
static __device__ uint4 philox(uint64_t key, uint64_t hi, uint64_t lo) {
    unsigned k0 = (unsigned)key, k1 = (unsigned)(key >> 32);
    unsigned c0 = (unsigned)lo, c1 = (unsigned)(lo >> 32), c2 = (unsigned)hi, c3 = (unsigned)(hi >> 32);
    for (int round = 0; round < 10; round++) {
        unsigned a = __umulhi(c0, 0xD2511F53u), b = __umulhi(c2, 0xCD9E8D57u);
        unsigned n0 = b ^ c1 ^ k0, n2 = a ^ c3 ^ k1;
        c1 = c2 * 0xCD9E8D57u, c3 = c0 * 0xD2511F53u, c0 = n0, c2 = n2;
        k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
    }
    return make_uint4(c0, c1, c2, c3);
}

template <class T>
static __global__ void dropout_kernel(mat y, mat x, dropout d, uint64_t key, unsigned threshold, float inv) {
    FOR_PARTS(i, k, x.rows, x.cols, 4) {
        uint4 r = philox(key, d.sample[i], (uint64_t)(unsigned)d.pos[i] << 32 | (uint64_t)(k / 4));
        const unsigned word[4] = {r.x, r.y, r.z, r.w};
        for (int e = 0; e < 4 && k + e < x.cols; e++)
            store(row_of<T>(y, i) + k + e, word[e] >= threshold ? load(row_of<T>(x, i) + k + e) * inv : 0.0f);
    }
}

void dropout_fwd_cuda(kctx *c, mat y, mat x, const dropout *d) {
    CHECK(y.type == x.type, "types %d %d", y.type, x.type);
    const dim3 grid = grid_for_rows(x.rows, x.cols + 3, 4);
    WITH_VALUES(x.type, T,
                LAUNCH((dropout_kernel<T>), grid, BLOCK, 0, c, y, x, *d, dropout_key(d), dropout_threshold(d->p),
                       1.0f / (1.0f - d->p)));
}

/* y[to(i),:] = x[from(i),:], the rows' numbers at one side from `row` */
template <class T, bool GATHER> static __global__ void move_rows(mat y, mat x, const int32_t *row) {
    const int64_t rows = GATHER ? y.rows : x.rows, others = GATHER ? x.rows : y.rows;
    FOR_PARTS(i, k, rows, y.cols, 1) {
        int64_t other = row[i];
        DEVICE_CHECK(other >= 0 && other < others);
        row_of<T>(y, GATHER ? i : other)[k] = row_of<T>(x, GATHER ? other : i)[k];
    }
}

void gather_rows_cuda(kctx *c, mat y, mat x, const int32_t *row) {
    CHECK(y.type == x.type, "types %d %d", y.type, x.type);
    WITH_VALUES(x.type, T, LAUNCH((move_rows<T, true>), grid_for_rows(y.rows, y.cols, 1), BLOCK, 0, c, y, x, row));
}

void scatter_rows_cuda(kctx *c, mat y, mat x, const int32_t *row) {
    CHECK(y.type == x.type, "types %d %d", y.type, x.type);
    WITH_VALUES(x.type, T, LAUNCH((move_rows<T, false>), grid_for_rows(x.rows, x.cols, 1), BLOCK, 0, c, y, x, row));
}

static __global__ void pack_kernel(uint16_t *y, const float *x, int64_t n) {
    for (int64_t i = (blockIdx.x * (int64_t)BLOCK + threadIdx.x) * 4; i < n; i += (int64_t)gridDim.x * BLOCK * 4) {
        float v[4];
        load_part<4>(v, x + i);
        store_part<4>(reinterpret_cast<bf16 *>(y) + i, v);
    }
}
static __global__ void unpack_kernel(float *y, const uint16_t *x, int64_t n) {
    for (int64_t i = (blockIdx.x * (int64_t)BLOCK + threadIdx.x) * 4; i < n; i += (int64_t)gridDim.x * BLOCK * 4) {
        float v[4];
        load_part<4>(v, reinterpret_cast<const bf16 *>(x) + i);
        store_part<4>(y + i, v);
    }
}

void bf16_pack_cuda(kctx *c, uint16_t *y, const float *x, int64_t n) {
    LAUNCH(pack_kernel, grid_for(n / 4), BLOCK, 0, c, y, x, n);
}
void bf16_unpack_cuda(kctx *c, float *y, const uint16_t *x, int64_t n) {
    LAUNCH(unpack_kernel, grid_for(n / 4), BLOCK, 0, c, y, x, n);
}

/* One block: a step has some thousand targets. Each thread a chain over its own, then the tree of block_sum, in double.
 */
static __global__ void loss_kernel(step_sums *sums, const float *logprob, const float *weight, int64_t n) {
    __shared__ double partial[WARP];
    double loss = 0, total = 0;
    for (int64_t i = threadIdx.x; i < n; i += BLOCK)
        loss -= (double)weight[i] * (double)logprob[i], total += (double)weight[i];
    loss = block_sum(loss, partial);
    total = block_sum(total, partial);
    if (threadIdx.x == 0) sums->loss += loss, sums->weight += total, sums->targets += n;
}

void loss_sum_cuda(kctx *c, step_sums *sums, const float *logprob, const float *weight, int64_t n) {
    LAUNCH(loss_kernel, 1, BLOCK, 0, c, sums, logprob, weight, n);
}
