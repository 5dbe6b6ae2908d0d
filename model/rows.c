/* Rows of a stored matrix as the model uses them: in Hugging Face order, as fp32, or quantised to NF4 piece by piece.
 */
#include "model/rows.h"
#include "core/arena.h"

#include <stdlib.h>

int64_t rows_file_row(int64_t r, int heads, int64_t rows) {
    if (!heads) return r;
    int64_t d = rows / heads, head = r / d, i = r % d;
    return head * d + (i < d / 2 ? 2 * i : 2 * (i - d / 2) + 1);
}

int64_t rows_hf_row(int64_t file_row, int heads, int64_t rows) {
    if (!heads) return file_row;
    int64_t d = rows / heads, head = file_row / d, i = file_row % d;
    return head * d + i % 2 * (d / 2) + i / 2;
}

void rows_dequant(const weight *w, int heads, int64_t row, int64_t n, float *out) {
    if (!heads) {
        w->fmt->dequant(w, row * w->cols, n * w->cols, out);
        return;
    }
    for (int64_t i = 0; i < n; i++)
        w->fmt->dequant(w, rows_file_row(row + i, heads, w->rows) * w->cols, w->cols, out + i * w->cols);
}

/* Rows per piece so that pieces end at block borders: a multiple of 64 elements, about 64 Ki of them. */
static int64_t piece_rows(int64_t cols) {
    int64_t step = 1;
    while (step * cols % 64) step *= 2;
    int64_t many = 65536 / (step * cols);
    return many > 1 ? step * many : step;
}

static void quantise(const weight *w, int heads, uint8_t *codes, float *absmax) {
    int64_t rows = piece_rows(w->cols), pieces = (w->rows + rows - 1) / rows;
#pragma omp parallel
    {
        float *buf = xcalloc((size_t)(rows * w->cols), sizeof *buf);
#pragma omp for schedule(dynamic)
        for (int64_t p = 0; p < pieces; p++) {
            int64_t row = p * rows, n = row + rows < w->rows ? rows : w->rows - row;
            rows_dequant(w, heads, row, n, buf);
            nf4_quant(buf, n * w->cols, codes + row * w->cols / 2, absmax + row * w->cols / 64);
        }
        free(buf);
    }
}

weight rows_nf4(const weight *w, int heads, bool double_quant, arena *run) {
    int64_t n = w->rows * w->cols, blocks = (n + 63) / 64, nested = (blocks + 255) / 256;
    bool plan = run->planning, device = run->mem && !plan;
    nf4_meta *meta = xcalloc(1, sizeof *meta);
    uint8_t *data = arena_alloc(run, nf4_data_bytes(n)), *codes = device ? xcalloc(nf4_data_bytes(n), 1) : data;
    float *absmax = plan ? NULL : xcalloc((size_t)blocks, sizeof *absmax);
    *meta = (nf4_meta){.blocksize = 64, .nested_block = double_quant ? 256 : 0, .map = nf4_dynamic_map};
    if (!plan) quantise(w, heads, codes, absmax);
    if (double_quant) {
        uint8_t *code = plan ? NULL : xcalloc((size_t)blocks, 1);
        float *outer = plan ? NULL : xcalloc((size_t)nested, sizeof *outer);
        if (!plan) meta->offset = nf4_quant_scales(absmax, blocks, code, outer);
        meta->code = arena_copy(run, code, (size_t)blocks);
        meta->nested_absmax = arena_copy(run, outer, (size_t)nested * sizeof *outer);
        if (run->mem) meta->map = arena_copy(run, nf4_dynamic_map, sizeof nf4_dynamic_map);
        free(code), free(outer);
    } else
        meta->absmax = arena_copy(run, absmax, (size_t)blocks * sizeof *absmax);
    free(absmax);
    if (device) arena_put(run, data, codes, nf4_data_bytes(n)), free(codes);
    return (weight){&weight_formats[FMT_NF4], w->rows, w->cols, 1, data, meta};
}
