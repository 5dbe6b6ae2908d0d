#include "autograd/fixture.h"
#include "core/error.h"
#include "core/rng.h"

#include <math.h>
#include <string.h>

static float draw(op_fixture *f) { return rng_normal(11, STREAM_TEST, f->draws++); }

const float *fixture_floats(op_fixture *f, int64_t n, float mean, float scale) {
    float *x = arena_array(&f->mem, (size_t)n, sizeof *x);
    for (int64_t i = 0; i < n; i++) x[i] = mean + scale * draw(f);
    return x;
}

const weight *fixture_weight(op_fixture *f, int fmt, int64_t rows, int64_t cols) {
    const float *x = fixture_floats(f, rows * cols, 0, 1 / sqrtf((float)cols));
    weight *w = arena_alloc(&f->mem, sizeof *w);
    *w = weight_f32(x, rows, cols);
    if (fmt == FMT_F32) return w;
    CHECK(fmt == FMT_NF4, "fixture format %d", fmt);
    nf4_meta *meta = memset(arena_alloc(&f->mem, sizeof *meta), 0, sizeof *meta);
    uint8_t *codes = arena_alloc(&f->mem, nf4_data_bytes(rows * cols));
    float *absmax = arena_array(&f->mem, (size_t)((rows * cols + 63) / 64), sizeof *absmax);
    nf4_quant(x, rows * cols, codes, absmax);
    meta->blocksize = 64, meta->absmax = absmax;
    *w = (weight){&weight_formats[FMT_NF4], rows, cols, 1, codes, meta};
    return w;
}

const batch *fixture_batch(op_fixture *f, const int *lengths, int seqs) {
    int32_t ids[64];
    CHECK(f->n_batches < FIXTURE_BATCHES, "%d batches", f->n_batches);
    batch *b = &f->batches[f->n_batches++];
    batch_open(b, 64, seqs);
    batch_clear(b);
    for (int s = 0; s < seqs; s++) {
        for (int i = 0; i < lengths[s]; i++) ids[i] = (int32_t)rng_below(5, STREAM_TEST, f->draws++, 32);
        batch_add(b, ids, ids, lengths[s], 77 + (uint64_t)s);
    }
    return b;
}

const rope *fixture_rope(op_fixture *f, int dim, int positions) {
    float *cosines = arena_array(&f->mem, (size_t)(positions * dim / 2), sizeof(float));
    float *sines = arena_array(&f->mem, (size_t)(positions * dim / 2), sizeof(float));
    for (int i = 0; i < positions * dim / 2; i++) {
        double angle = i / (dim / 2) * pow(100, -2.0 * (i % (dim / 2)) / dim);
        cosines[i] = (float)cos(angle), sines[i] = (float)sin(angle);
    }
    rope *r = arena_alloc(&f->mem, sizeof *r);
    *r = (rope){cosines, sines, dim, positions};
    return r;
}

void fixture_release(op_fixture *f) {
    for (int i = 0; i < f->n_batches; i++) batch_close(&f->batches[i]);
    arena_release(&f->mem, 0);
    f->draws = 0, f->n_batches = 0;
}
