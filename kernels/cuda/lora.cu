/* Adapters of a mixed batch (BGMV and SGMV: Chen et al. 2023, Punica): y_i += (scale x A_i^T) B_i^T, each item on its own rows.
 * Items of few rows, which decoding makes, go together: two launches for all of them, both bound by reading A and B once.
 *
 *   lora_down   a block has one tile of rows of one item and DEPTH of k; warps take k in turn, lanes the columns of A^T; the
 *               warps' sums are added in order
 *   lora_up     a block has one tile of rows of one item and 256 outputs of one projection; it adds the pieces of k in order
 *
 * A row's bits follow from the row and its adapter alone. Items of many rows are products like others (weight.cu). Items that
 * share rows never meet in one launch, since they add one after another. */
#include "kernels/cuda/gemm.cuh"

enum { FEW = 16 };                       /* rows of an item that goes through these kernels, at most */
enum { TILE = 4, DEPTH = 512 };          /* rows of a block; of k */
enum { ITEMS = 24, THREADS = 256, WARPS = THREADS / WARP };

typedef struct few_item {
    const void *down, *up[PROJ_MAX];
    int row, rows, columns, tile; /* columns of down; number of its first tile */
    int rank[PROJ_MAX], at[PROJ_MAX];
    float scale;
    bool half; /* matrices are BF16, else F32 */
} few_item;
/* by value: constant memory */
typedef struct few {
    mat x, y[PROJ_MAX];
    float *part; /* [pieces of k, tiles * TILE, columns] sums of lora_down */
    int columns, pieces, items, tiles;
    few_item item[ITEMS];
} few;

static __device__ __forceinline__ float number(const void *p, bool half, int64_t at) {
    return half ? load(static_cast<const bf16 *>(p) + at) : static_cast<const float *>(p)[at];
}
/* the item of a tile */
static __device__ __forceinline__ const few_item &item_of(const few &f, int tile) {
    int i = 0;
    while (i + 1 < f.items && f.item[i + 1].tile <= tile) i++;
    return f.item[i];
}
static __device__ __forceinline__ float *part_of(const few &f, int piece, int tile, int row) {
    return f.part + ((int64_t)(piece * f.tiles + tile) * TILE + row) * f.columns;
}

template <class T> static __global__ void __launch_bounds__(THREADS) lora_down(const few f) {
    __shared__ float x[TILE][DEPTH], sum[WARPS][TILE][WARP];
    const int tile = (int)blockIdx.y, from = (int)blockIdx.x * DEPTH, depth = min((int)f.x.cols - from, (int)DEPTH);
    const few_item &w = item_of(f, tile);
    const int row = (tile - w.tile) * TILE, rows = min(w.rows - row, (int)TILE);
    const int warp = (int)threadIdx.x / WARP, lane = (int)threadIdx.x % WARP;
    for (int e = (int)threadIdx.x; e < TILE * DEPTH; e += THREADS) {
        const int i = e / DEPTH, k = e % DEPTH;
        x[i][k] = i < rows && k < depth ? load(row_of<const T>(f.x, w.row + row + i) + from + k) : 0.0f;
    }
    __syncthreads();
    for (int c = 0; c < w.columns; c += WARP) {
        float acc[TILE] = {};
        if (c + lane < w.columns)
#pragma unroll 4
            for (int k = warp; k < depth; k += WARPS) {
                const float a = number(w.down, w.half, (int64_t)(from + k) * w.columns + c + lane);
#pragma unroll
                for (int i = 0; i < TILE; i++) acc[i] = fmaf(x[i][k], a, acc[i]);
            }
#pragma unroll
        for (int i = 0; i < TILE; i++) sum[warp][i][lane] = acc[i];
        __syncthreads();
        if (warp < TILE && c + lane < w.columns) {
            float all = 0;
            for (int i = 0; i < WARPS; i++) all += sum[i][warp][lane];
            part_of(f, (int)blockIdx.x, tile, warp)[c + lane] = all;
        }
        __syncthreads();
    }
}

template <class T> static __global__ void __launch_bounds__(THREADS) lora_up(const few f) {
    SHARED(float, h); /* [rank, TILE] */
    const int tile = (int)blockIdx.y, p = (int)blockIdx.z;
    const few_item &w = item_of(f, tile);
    const int row = (tile - w.tile) * TILE, rows = min(w.rows - row, (int)TILE), rank = w.rank[p];
    const mat y = f.y[p];
    const int64_t o = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (!rank || !y.data) return;
    for (int e = (int)threadIdx.x; e < rank * TILE; e += THREADS) {
        float sum = 0;
        for (int k = 0; k < f.pieces; k++) sum += part_of(f, k, tile, e % TILE)[w.at[p] + e / TILE];
        h[e] = w.scale * sum;
    }
    __syncthreads();
    if (o >= y.cols) return;
    float acc[TILE] = {};
#pragma unroll 4
    for (int r = 0; r < rank; r++) {
        const float b = number(w.up[p], w.half, (int64_t)r * y.cols + o);
#pragma unroll
        for (int i = 0; i < TILE; i++) acc[i] = fmaf(h[r * TILE + i], b, acc[i]);
    }
#pragma unroll
    for (int i = 0; i < TILE; i++)
        if (i < rows) {
            T *to = row_of<T>(y, w.row + row + i) + o;
            store(to, load(to) + acc[i]);
        }
}

static void launch(kctx *c, few *f) {
    int64_t outputs = 0;
    size_t shared = 0;
    dtype type = f->x.type;
    if (!f->items) return;
    f->pieces = (int)ceil_div(f->x.cols, DEPTH), f->part = reinterpret_cast<float *>(c->scratch);
    for (int p = 0; p < PROJ_MAX; p++) {
        if (f->y[p].data) type = f->y[p].type, outputs = f->y[p].cols > outputs ? f->y[p].cols : outputs;
        for (int i = 0; i < f->items; i++) {
            const size_t bytes = (size_t)f->item[i].rank[p] * TILE * sizeof(float);
            shared = bytes > shared ? bytes : shared;
        }
    }
    const size_t bytes = (size_t)f->pieces * (size_t)f->tiles * TILE * (size_t)f->columns * sizeof(float);
    CHECK(bytes <= c->scratch_bytes, "%zu bytes of scratch for sums of adapters, %zu there", bytes, c->scratch_bytes);
    const dim3 up((unsigned)ceil_div(outputs, THREADS), (unsigned)f->tiles, PROJ_MAX);
    WITH_VALUES(f->x.type, T, LAUNCH((lora_down<T>), dim3((unsigned)f->pieces, (unsigned)f->tiles), THREADS, 0, c, *f));
    if (outputs) WITH_VALUES(type, T, LAUNCH((lora_up<T>), up, THREADS, shared, c, *f));
    f->items = f->tiles = f->columns = 0;
}

static void add_item(few *f, const lora_fwd_args *a, const lora_item *it) {
    const lora_part *p = it->part;
    few_item *w = &f->item[f->items++];
    *w = few_item{};
    w->down = p->down.data, w->row = it->row, w->rows = it->rows, w->columns = (int)p->down.cols, w->scale = it->scale;
    w->half = p->down.fmt->id == FMT_BF16, w->tile = f->tiles;
    for (int i = 0; i < a->n; i++) {
        CHECK(!p->up[i].rows || (p->up[i].fmt == p->down.fmt && (!a->y[i].data || p->up[i].cols == a->y[i].cols)),
              "an adapter's B of %ld columns in %s", (long)p->up[i].cols, p->up[i].fmt->name);
        w->up[i] = p->up[i].data, w->rank[i] = (int)p->up[i].rows, w->at[i] = p->at[i];
    }
    f->tiles += (int)ceil_div(it->rows, TILE);
    f->columns = w->columns > f->columns ? w->columns : f->columns;
}

static bool meets(const few *f, const lora_item *it) {
    for (int i = 0; i < f->items; i++)
        if (f->item[i].row < it->row + it->rows && it->row < f->item[i].row + f->item[i].rows) return true;
    return false;
}

extern "C" void lora_fwd_cuda(kctx *c, const lora_fwd_args *a) {
    few f = {};
    f.x = a->x;
    for (int i = 0; i < a->n; i++) f.y[i] = a->y[i];
    for (int j = 0; j < a->items; j++) {
        const lora_item *it = &a->item[j];
        const weight *down = &it->part->down;
        if (!down->cols || !it->rows) continue;
        CHECK((down->fmt->id == FMT_F32 || down->fmt->id == FMT_BF16) && down->rows == a->x.cols,
              "an adapter's A of %ld rows in %s", (long)down->rows, down->fmt->name);
        if (f.items == ITEMS || meets(&f, it)) launch(c, &f);
        if (it->rows <= FEW)
            add_item(&f, a, it);
        else
            lora_product(c, a, it);
    }
    launch(c, &f);
}
