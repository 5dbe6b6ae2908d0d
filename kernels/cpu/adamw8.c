/* AdamW with 8-bit moments; ref_adamw8.c has the arithmetic. Threads share the blocks of all tensors alike. A block is
 * decoded into L1, updated by vectors, and coded again through a table of cells of the floats: a cell is a binary
 * exponent and the next 7 bits of the magnitude, narrow enough to hold one midpoint of the map at most, so that a code
 * is one lookup and one comparison. */
#include "core/error.h"
#include "kernels/cpu/team.h"

enum { CELL_SHIFT = 16, CELL_FIRST = (127 - 24) << 7, CELLS = (24 << 7) + 1 }; /* from 2^-24 (and all below) to 1 */

/* rank[cell]: midpoints below the cell's floats; mid[rank]: the next one. Of the signed map, which is symmetric but for
 * its last value, the part from zero up. */
typedef struct {
    float mid[257];
    uint8_t rank[CELLS];
} coder;
typedef struct {
    coder mean, square;
} coders;

typedef struct {
    v16 keep, step, scale, a1, b2, a2, root, eps;
} constants;

static void coder_fill(coder *t, const float *map, int n) {
    for (int i = 0; i + 1 < n; i++) t->mid[i] = (map[i] + map[i + 1]) / 2;
    t->mid[n - 1] = INFINITY;
    for (int cell = 0, below = 0; cell < CELLS; cell++) {
        const float from = cell ? float_of((uint32_t)(CELL_FIRST + cell) << CELL_SHIFT) : 0;
        while (t->mid[below] < from) below++;
        t->rank[cell] = (uint8_t)below;
    }
}

static inline int cell_of(float magnitude) {
    const int cell = (int)(bits_of(magnitude) >> CELL_SHIFT) - CELL_FIRST;
    return cell > 0 ? cell : 0;
}

static inline uint8_t code_square(const coder *t, float x) {
    const int r = t->rank[cell_of(x)];
    return (uint8_t)(r + (t->mid[r] < x));
}

/* Zero is code 127, and the lowest code is 127 below it; a tie goes down on either side. No branch: signs are random.
 */
static inline uint8_t code_mean(const coder *t, float x) {
    const float size = fabsf(x);
    const int minus = (int)(bits_of(x) >> 31), cell = t->rank[cell_of(size)];
    const int r = cell + ((t->mid[cell] < size) | (minus & (t->mid[cell] == size)));
    return (uint8_t)(127 + ((r - (minus & (r == 128))) ^ -minus) + minus);
}

/* x [n, padded to 16] becomes x / top, at most 1 */
static void normalise(float *x, int64_t n, float top) {
    const v16 divisor = v16_set1(top > 0 ? top : 1), one = v16_set1(1);
    for (int64_t i = 0; i < n; i += 16) v16_store(x + i, v16_min(v16_div(v16_load(x + i), divisor), one));
}

static void block_step(float *p, const float *g, int64_t n, uint8_t *mc, uint8_t *vc, float *m_scale, float *v_scale,
                       const constants *k, const coders *t) {
    float m[ADAMW8_BLOCK] = {0}, v[ADAMW8_BLOCK] = {0};
    v16 m_top = v16_zero(), v_top = v16_zero();
    const v16i magnitude = v16i_set1(0x7fffffff);
    for (int64_t i = 0; i < n; i++) m[i] = nf4_dynamic_map[mc[i]] * *m_scale;
    for (int64_t i = 0; i < n; i++) v[i] = adamw8_map[vc[i]] * *v_scale;
    for (int64_t i = 0; i < n; i += 16) {
        const v16 grad = v16_mul(part_load(g + i, n - i), k->scale),
                  decayed = v16_mul(part_load(p + i, n - i), k->keep);
        v16 mi = v16_load(m + i), vi = v16_load(v + i);
        mi = v16_fma(k->a1, v16_sub(grad, mi), mi);
        vi = v16_fma(v16_mul(k->a2, grad), grad, v16_mul(k->b2, vi));
        const v16 denom = v16_add(v16_div(v16_sqrt(vi), k->root), k->eps);
        part_store(p + i, v16_fnma(k->step, v16_div(mi, denom), decayed), n - i);
        v16_store(m + i, mi), v16_store(v + i, vi);
        m_top = v16_max(v16_of_bits(v16i_and(v16_bits(mi), magnitude)), m_top), v_top = v16_max(vi, v_top);
    }
    *m_scale = v16_hmax(m_top), *v_scale = v16_hmax(v_top);
    normalise(m, n, *m_scale), normalise(v, n, *v_scale);
    for (int64_t i = 0; i < n; i++) mc[i] = code_mean(&t->mean, m[i]);
    for (int64_t i = 0; i < n; i++) vc[i] = code_square(&t->square, v[i]);
}

/* the tensor that holds this block: the last one that does not begin after it */
static const adamw8_tensor *tensor_of(const adamw8 *s, int64_t block) {
    int64_t lo = 0, hi = s->tensors - 1;
    while (lo < hi) {
        const int64_t at = (lo + hi + 1) / 2;
        if (s->tensor[at].block <= block)
            lo = at;
        else
            hi = at - 1;
    }
    return &s->tensor[lo];
}

void ISA(adamw_8bit)(kctx *c, float *p, const float *g, const adamw8 *s, const adamw_hp *hp) {
    if (hp->sums->nonfinite) return;
    coders *t = (coders *)c->scratch;
    const constants k = {.keep = v16_set1((float)(1.0 - hp->lr * hp->weight_decay)),
                         .step = v16_set1((float)(hp->lr / hp->bias1)),
                         .scale = v16_set1((float)hp->sums->grad_scale),
                         .a1 = v16_set1((float)(1.0 - hp->beta1)),
                         .b2 = v16_set1((float)hp->beta2),
                         .a2 = v16_set1((float)(1.0 - hp->beta2)),
                         .root = v16_set1((float)hp->bias2_sqrt),
                         .eps = v16_set1((float)hp->eps)};
    CHECK(c->scratch_bytes >= sizeof *t, "%zu bytes of scratch", c->scratch_bytes);
    coder_fill(&t->mean, nf4_dynamic_map + 127, 129), coder_fill(&t->square, adamw8_map, 256);
    const int threads = team(c, 4 * s->blocks * ADAMW8_BLOCK);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t b = 0; b < s->blocks; b++) {
        const adamw8_tensor *e = tensor_of(s, b);
        const int64_t at = (b - e->block) * ADAMW8_BLOCK, left = e->n - at;
        block_step(p + e->begin + at, g + e->begin + at, left < ADAMW8_BLOCK ? left : ADAMW8_BLOCK, s->m + e->code + at,
                   s->v + e->code + at, s->m_scale + b, s->v_scale + b, &k, t);
    }
}
