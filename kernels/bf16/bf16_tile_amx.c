/* Blocks of 32 x 32 on the tile registers: accumulators 0..3, A in 4 and 5, B in 6 and 7. Intel 64 and IA-32
 * Architectures Software Developer's Manual, volume 1, chapter 18, and TDPBF16PS in volume 2. */
#include "kernels/bf16/bf16.h"

typedef struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t colsb[16];
    uint8_t rows[16];
} tile_config;

/* gcc's tile intrinsics are assembly that does not say which memory it reads and writes */
#define MEMORY_SETTLED __asm__ volatile("" ::: "memory")

static void begin(void) {
    tile_config t = {.palette = 1};
    for (int i = 0; i < 8; i++) t.colsb[i] = 64, t.rows[i] = 16;
    MEMORY_SETTLED;
    _tile_loadconfig(&t);
}

static void end(void) { _tile_release(); }

/* c: of whole tiles */
static void block_22(const bf16_block *b, float *c, int64_t cs) {
    const int64_t line = cs * 4;
    const uint16_t *a0 = b->a0, *a1 = b->a1, *b0 = b->b0, *b1 = b->b1;
    if (b->fresh) {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    } else {
        _tile_loadd(0, c, line);
        _tile_loadd(1, c + TILE, line);
        _tile_loadd(2, c + TILE * cs, line);
        _tile_loadd(3, c + TILE * cs + TILE, line);
    }
    for (int64_t s = 0; s < b->steps; s++) {
        _tile_stream_loadd(6, b0, 64);
        _tile_loadd(4, a0, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_stream_loadd(7, b1, 64);
        _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(5, a1, 64);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
        a0 += TILE_VALUES, a1 += TILE_VALUES, b0 += TILE_VALUES, b1 += TILE_VALUES;
    }
    _tile_stored(0, c, line);
    _tile_stored(1, c + TILE, line);
    _tile_stored(2, c + TILE * cs, line);
    _tile_stored(3, c + TILE * cs + TILE, line);
}

static void block_12(const bf16_block *b, float *c, int64_t cs) {
    const int64_t line = cs * 4;
    const uint16_t *a0 = b->a0, *b0 = b->b0, *b1 = b->b1;
    if (b->fresh) {
        _tile_zero(0);
        _tile_zero(1);
    } else {
        _tile_loadd(0, c, line);
        _tile_loadd(1, c + TILE, line);
    }
    for (int64_t s = 0; s < b->steps; s++) {
        _tile_loadd(4, a0, 64);
        _tile_loadd(6, b0, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, b1, 64);
        _tile_dpbf16ps(1, 4, 7);
        a0 += TILE_VALUES, b0 += TILE_VALUES, b1 += TILE_VALUES;
    }
    _tile_stored(0, c, line);
    _tile_stored(1, c + TILE, line);
}

static void block_21(const bf16_block *b, float *c, int64_t cs) {
    const int64_t line = cs * 4;
    const uint16_t *a0 = b->a0, *a1 = b->a1, *b0 = b->b0;
    if (b->fresh) {
        _tile_zero(0);
        _tile_zero(2);
    } else {
        _tile_loadd(0, c, line);
        _tile_loadd(2, c + TILE * cs, line);
    }
    for (int64_t s = 0; s < b->steps; s++) {
        _tile_loadd(6, b0, 64);
        _tile_loadd(4, a0, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(5, a1, 64);
        _tile_dpbf16ps(2, 5, 6);
        a0 += TILE_VALUES, a1 += TILE_VALUES, b0 += TILE_VALUES;
    }
    _tile_stored(0, c, line);
    _tile_stored(2, c + TILE * cs, line);
}

static void block_11(const bf16_block *b, float *c, int64_t cs) {
    const int64_t line = cs * 4;
    if (b->fresh) {
        _tile_zero(0);
    } else {
        _tile_loadd(0, c, line);
    }
    for (int64_t s = 0; s < b->steps; s++) {
        _tile_loadd(4, b->a0 + s * TILE_VALUES, 64);
        _tile_loadd(6, b->b0 + s * TILE_VALUES, 64);
        _tile_dpbf16ps(0, 4, 6);
    }
    _tile_stored(0, c, line);
}

static void block(const bf16_block *b) {
    static void (*const blocks[2][2])(const bf16_block *, float *, int64_t) = {{block_11, block_12},
                                                                               {block_21, block_22}};
    const int mt = b->m > TILE, nt = b->n > TILE;
    MEMORY_SETTLED;
    if (b->m == (mt + 1) * TILE && b->n == (nt + 1) * TILE) {
        blocks[mt][nt](b, b->c, b->cs);
        MEMORY_SETTLED;
        return;
    }
    _Alignas(64) float t[2 * TILE * 2 * TILE]; /* a tile register is stored whole */
    if (!b->fresh) {
        memset(t, 0, sizeof t);
        for (int i = 0; i < b->m; i++) memcpy(t + i * 2 * TILE, b->c + i * b->cs, (size_t)b->n * sizeof *t);
    }
    MEMORY_SETTLED;
    blocks[mt][nt](b, t, 2 * TILE);
    MEMORY_SETTLED;
    for (int i = 0; i < b->m; i++) memcpy(b->c + i * b->cs, t + i * 2 * TILE, (size_t)b->n * sizeof *t);
}

const bf16_engine bf16_amx = {begin, block, end, 400};
