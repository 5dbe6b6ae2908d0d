/* Rows of keys and values into pages, as kernels/kv_page.h stores them on the CPU, bit for bit. A warp stores 32 features of
 * one token, keys and values: the block that KV_Q8_0 quantises together. */
#include "kernels/cuda/kv_page.cuh"

static __device__ __forceinline__ void page_put(const kv_pages &p, char *page, int64_t at, int64_t scale, bool mine, float x) {
    if (p.type == KV_F32) {
        if (mine) reinterpret_cast<float *>(page)[at] = x;
        return;
    }
    if (p.type == KV_BF16) {
        if (mine) store(reinterpret_cast<bf16 *>(page) + at, x);
        return;
    }
    const float d = __fdiv_rn(warp_max(fabsf(x)), 127.0f), inv = d != 0 ? __fdiv_rn(1.0f, d) : 0.0f;
    const float q = roundf(__fmul_rn(x, inv));
    if (!mine) return;
    reinterpret_cast<signed char *>(page)[at] = (signed char)(q == q ? q : 0);
    if (threadIdx.x % WARP == 0) reinterpret_cast<__half *>(page + page_width(p) * KV_PAGE)[scale] = __float2half_rn(d);
}

template <class T>
static __global__ void __launch_bounds__(BLOCK) store_rows(kv_pages p, mat k, mat v, const int32_t *slot) {
    const int64_t width = page_width(p), blocks = (width + KV_BLOCK - 1) / KV_BLOCK;
    const int64_t n = (int64_t)blockIdx.x * (BLOCK / WARP) + threadIdx.x / WARP, i = n / blocks, b = n % blocks;
    const int64_t f = b * KV_BLOCK + threadIdx.x % WARP;
    if (i >= k.rows) return; /* the whole warp, and there is no barrier */
    const int64_t page = slot[i] / KV_PAGE * p.stride, t = slot[i] % KV_PAGE;
    const bool mine = f < width;
    const float x = mine ? load(row_of<const T>(k, i) + f) : 0, y = mine ? load(row_of<const T>(v, i) + f) : 0;
    page_put(p, p.k + page, f * KV_PAGE + t, b * KV_PAGE + t, mine, x);
    page_put(p, p.v + page, t * width + f, t * (width / KV_BLOCK) + b, mine, y);
}

extern "C" void kv_store_cuda(kctx *c, const kv_pages *p, mat k, mat v, const int32_t *slot) {
    if (k.rows == 0) return;
    CHECK(p->type != KV_Q8_0 || p->heads * p->dim % KV_BLOCK == 0, "%d heads of %d in blocks", p->heads, p->dim);
    CHECK(k.type == v.type && k.cols == (int64_t)p->heads * p->dim, "keys of %ld columns", (long)k.cols);
    const int64_t warps = k.rows * ((k.cols + KV_BLOCK - 1) / KV_BLOCK);
    const unsigned blocks = (unsigned)((warps + BLOCK / WARP - 1) / (BLOCK / WARP));
    WITH_VALUES(k.type, T, LAUNCH((store_rows<T>), blocks, BLOCK, 0, c, *p, k, v, slot));
}
