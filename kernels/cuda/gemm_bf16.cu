/* Products of bf16 operands on tensor cores (mma.m16n8k16), sums in fp32; gemm_tile.cuh has the parts.
 *
 * A block of 8 warps makes a tile of C. Operands come 32 of k at a time through a ring of STAGES buffers that cp.async
 * fills ahead; ldmatrix reads them, transposing what lies across. Every output takes k in steps of 16 from 0 (a tail is
 * padded with zeros), whatever the tile: its bits depend on its own row and column alone. With splits the steps of 32
 * are dealt in pieces whose sums are added in order. */
#include "kernels/cuda/gemm_tile.cuh"

enum { STAGES = 4 };

/* BM x BN by WM x WN warps */
template <int BM, int BN, int WM, int WN, bool AT, bool BT>
static __global__ void __launch_bounds__(THREADS, 2) tile_bf16(product p) {
    constexpr int MT = BM / WM / 16, NT = BN / WN / 8, A_TILE = BM * KSTEP, B_TILE = BN * KSTEP;
    SHARED(bf16, ring);
    const int warp = (int)threadIdx.x / WARP, wi = warp / WN * (BM / WM), wj = warp % WN * (BN / WN);
    const int i0 = (int)blockIdx.x * BM, j0 = (int)blockIdx.y * BN;
    const steps n = steps_of(p);
    float c[MT][NT][4] = {};

    const auto fetch = [&](int step) { /* an empty group behind the end keeps the count of groups */
                                       bf16 *a = ring + (step - n.from) % STAGES * (A_TILE + B_TILE), *b = a + A_TILE;
                                       if (step < n.to) {
                                           const int s = step >= n.first, k0 = (s ? step - n.first : step) * KSTEP;
                                           copy_tile<BM, AT>(a, p.a[s], i0, (int)p.m, k0, (int)p.k[s]);
                                           copy_tile<BN, BT>(b, p.b[s], j0, (int)p.n, k0, (int)p.k[s]);
                                       }
                                       cp_async_commit();
    };
    for (int s = 0; s < STAGES - 1; s++) fetch(n.from + s);
    for (int step = n.from; step < n.to; step++) {
        cp_async_wait<STAGES - 2>();
        __syncthreads();
        fetch(step + STAGES - 1); /* into the buffer that all warps left before the barrier */
        const bf16 *a = ring + (step - n.from) % STAGES * (A_TILE + B_TILE);
        multiply_buffers<BM, BN, AT, BT>(c, a, a + A_TILE, wi, wj);
    }
    put_all(p, c, i0 + wi, j0 + wj);
}

static __global__ void __launch_bounds__(BLOCK) sum_pieces(product p) {
    for (int64_t e = (int64_t)blockIdx.x * BLOCK + threadIdx.x; e < p.m * p.n; e += (int64_t)gridDim.x * BLOCK) {
        float v = 0;
        for (int s = 0; s < p.splits; s++) v += p.part[s * p.m * p.n + e];
        finish(p, e / p.n, e % p.n, v);
    }
}

void add_pieces(kctx *c, const product *p) { LAUNCH(sum_pieces, grid_for(p->m * p->n), BLOCK, 0, c, *p); }

template <int BM, int BN, int WM, int WN> static void launch_tile(kctx *c, const product *p) {
    static_assert(WM * WN * WARP == THREADS, "eight warps");
    const unsigned splits = p->splits > 1 ? (unsigned)p->splits : 1;
    const dim3 grid((unsigned)ceil_div(p->m, BM), (unsigned)ceil_div(p->n, BN), splits);
    const size_t bytes = (size_t)STAGES * (BM + BN) * KSTEP * sizeof(bf16);
    if (p->a[0].across)
        LAUNCH((tile_bf16<BM, BN, WM, WN, true, true>), grid, THREADS, bytes, c, *p);
    else if (p->b[0].across)
        LAUNCH((tile_bf16<BM, BN, WM, WN, false, true>), grid, THREADS, bytes, c, *p);
    else
        LAUNCH((tile_bf16<BM, BN, WM, WN, false, false>), grid, THREADS, bytes, c, *p);
}

static bool aligned(const side *s) { return (uintptr_t)s->data % 16 == 0 && s->ld % CHUNK == 0; }

void product_bf16(kctx *c, const product *p) {
    if (p->m <= 0 || p->n <= 0) return;
    CHECK(p->m < 1 << 30 && p->n < 1 << 30 && p->k[0] < 1 << 30 && p->k[1] < 1 << 30, "a product of %ldx%ldx%ld",
          (long)p->m, (long)p->n, (long)p->k[0]);
    for (int s = 0; s < 2; s++)
        CHECK(!p->k[s] || (aligned(&p->a[s]) && aligned(&p->b[s]) && p->a[s].across == p->a[0].across &&
                           p->b[s].across == p->b[0].across && (!p->a[s].across || p->b[s].across)),
              "operands %p by %ld and %p by %ld", p->a[s].data, (long)p->a[s].ld, p->b[s].data, (long)p->b[s].ld);
    if (p->n <= 32)
        launch_tile<128, 32, 8, 1>(c, p);
    else if (p->m <= 32)
        launch_tile<32, 128, 2, 4>(c, p);
    else
        launch_tile<128, 128, 2, 4>(c, p);
    if (p->splits > 1) add_pieces(c, p);
}
