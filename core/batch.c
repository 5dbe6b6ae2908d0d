#include "core/batch.h"
#include "core/arena.h"
#include "core/error.h"

#include <stdlib.h>
#include <string.h>

int batch_open(batch *b, int rows_max, int seqs_max) {
    size_t r = (size_t)rows_max, s = (size_t)seqs_max;
    *b = (batch){.rows_max = rows_max, .seqs_max = seqs_max};
    b->token = xcalloc(r, sizeof *b->token), b->target = xcalloc(r, sizeof *b->target);
    b->pos = xcalloc(r, sizeof *b->pos), b->weight = xcalloc(r, sizeof *b->weight);
    b->row_sample = xcalloc(r, sizeof *b->row_sample);
    b->start = xcalloc(s + 1, sizeof *b->start), b->past = xcalloc(s, sizeof *b->past);
    b->adapter = xcalloc(s, sizeof *b->adapter), b->sample = xcalloc(s, sizeof *b->sample);
    b->run = xcalloc(s, sizeof *b->run);
    return 0;
}

void batch_close(batch *b) {
    free(b->token), free(b->target), free(b->pos), free(b->weight), free(b->row_sample);
    free(b->start), free(b->past), free(b->adapter), free(b->sample), free(b->run);
    *b = (batch){0};
}

void batch_clear(batch *b) {
    b->rows = b->seqs = b->targets = b->runs = 0;
    b->start[0] = 0;
}

void batch_add(batch *b, const int32_t *ids, const int32_t *labels, int n, uint64_t sample) {
    CHECK(n > 0 && b->rows + n <= b->rows_max && b->seqs < b->seqs_max,
          "batch of %d/%d rows, %d/%d sequences: %d more rows", b->rows, b->rows_max, b->seqs, b->seqs_max, n);
    for (int i = 0; i < n; i++) {
        int r = b->rows + i, target = i + 1 < n && labels ? labels[i + 1] : -100;
        b->token[r] = ids[i];
        b->target[r] = target < 0 ? -1 : target;
        b->pos[r] = i;
        b->weight[r] = 1;
        b->row_sample[r] = sample;
        b->targets += target >= 0;
    }
    b->past[b->seqs] = 0, b->adapter[b->seqs] = 0, b->sample[b->seqs] = sample;
    b->rows += n;
    b->start[++b->seqs] = b->rows;
}

void batch_find_runs(batch *b) {
    b->runs = 0;
    for (int s = 0; s < b->seqs; s++) {
        batch_run *last = b->runs ? &b->run[b->runs - 1] : NULL;
        int rows = b->start[s + 1] - b->start[s];
        if (last && last->set == b->adapter[s])
            last->rows += rows;
        else
            b->run[b->runs++] = (batch_run){b->start[s], rows, b->adapter[s]};
    }
}
