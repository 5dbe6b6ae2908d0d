/* Reads the files, splits the held-out rows off, and hands out micro-batches. Epoch order: Fisher-Yates (Knuth, TAOCP
 * 2, 3.4.2 algorithm P) with random numbers that are a function of (seed, epoch, position). */
#include "data/dataset.h"
#include "core/arena.h"
#include "core/error.h"
#include "core/rng.h"
#include "data/dataset_read.h"
#include "data/jsonl.h"

#include <inttypes.h>
#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* What is being collected. Pointers into the pool are set when it no longer moves: rows lie in it one after the other,
 * the n ids and then the n labels of each. */
typedef struct {
    dataset *ds;
    sample *row;
    int n, cap;
    int64_t used, size; /* of the pool, in int32_t */
} collector;

static void collect(collector *k, const row_builder *r) {
    dataset *ds = k->ds;
    int64_t n = r->n;
    if (n > ds->sequence_len) n = ds->sequence_len, ds->truncated++;
    int targets = 0;
    for (int64_t i = 1; i < n; i++) targets += r->labels[i] >= 0;
    if (n < 2 || !targets) {
        ds->dropped++;
        ds->dropped_short += n < 2;
        return;
    }
    if (k->used + 2 * n > k->size) {
        k->size = (k->used + 2 * n) * 3 / 2 + 65536;
        ds->pool = xrealloc(ds->pool, (size_t)k->size, sizeof *ds->pool);
    }
    if (k->n == k->cap) {
        k->cap = k->cap ? k->cap + k->cap / 2 : 1024;
        k->row = xrealloc(k->row, (size_t)k->cap, sizeof *k->row);
    }
    size_t bytes = (size_t)n * sizeof *ds->pool;
    memcpy(ds->pool + k->used, r->ids, bytes);
    memcpy(ds->pool + k->used + n, r->labels, bytes);
    k->used += 2 * n;
    uint64_t id = hash_bytes(hash_bytes(HASH_SEED, r->ids, bytes), r->labels, bytes);
    k->row[k->n++] = (sample){.n = (int)n, .targets = targets, .id = id};
}

static int read_rows(collector *k, row_builder *r, const row_type *type, jsonl *j) {
    json_t *row;
    int more, rows = 0;
    while ((more = jsonl_next_object(j, &row)) == 1) {
        r->line = j->line;
        int bad = row_build(r, type, row);
        json_decref(row);
        if (bad) return -1;
        collect(k, r);
        if (k->n > INT_MAX / 4) return fail(EXIT_INPUT, "%s:%d: more than %d rows", j->path, j->line, INT_MAX / 4);
        rows++;
    }
    if (more < 0) return -1;
    return rows ? 0 : fail(EXIT_INPUT, "%s: 0 samples: the file is empty or holds blank lines only", j->path);
}

static int read_entry(collector *k, row_builder *r, const dataset_entry *e) {
    const row_type *type = row_type_find(e->type);
    jsonl j;
    if (jsonl_open(&j, e->path)) return -1;
    r->path = e->path;
    r->field = e->field ? e->field : type->field;
    int bad = read_rows(k, r, type, &j);
    jsonl_close(&j);
    return bad;
}

/* What can be said before a file is opened. */
static int check_entry(const config *c, const dataset_entry *e, const tokenizer *tok, const chat_template *chat) {
    const char *file = c->path ? c->path : "command line";
    const row_type *type = row_type_find(e->type);
    if (!e->path || !*e->path) return fail(EXIT_USAGE, "%s:%d: datasets: an entry without path", file, e->line);
    if (!type)
        return fail(EXIT_USAGE, "%s:%d: datasets: type '%s' is unknown, expected one of %s", file, e->line,
                    e->type ? e->type : "", row_type_names());
    if (e->field && !type->field)
        return fail(EXIT_USAGE, "%s:%d: datasets: field '%s' means nothing to type %s", file, e->line, e->field,
                    type->name);
    if (type->text && !tok)
        return fail(EXIT_USAGE,
                    "%s:%d: datasets: type %s needs a tokenizer, and the model has none: use type tokenized", file,
                    e->line, type->name);
    if (type->text && !type->chat && tokenizer_eos(tok) < 0)
        return fail(EXIT_INPUT, "%s:%d: datasets: rows of type %s end with EOS, and the tokenizer has none", file,
                    e->line, type->name);
    if (type->chat && !chat)
        return fail(EXIT_USAGE,
                    "%s:%d: datasets: type %s needs a chat template, and the model has none: set chat_template", file,
                    e->line, type->name);
    return 0;
}

static int read_all(collector *k, const config *c, const tokenizer *tok, const chat_template *chat, int vocab) {
    if (c->datasets.n <= 0)
        return fail(EXIT_USAGE, "%s: datasets: expected at least one entry", c->path ? c->path : "command line");
    for (int i = 0; i < c->datasets.n; i++)
        if (check_entry(c, &c->datasets.item[i], tok, chat)) return -1;
    row_builder r;
    int bad = row_builder_open(&r, tok, chat, vocab, c->train_on_inputs);
    for (int i = 0; !bad && i < c->datasets.n; i++) bad = read_entry(k, &r, &c->datasets.item[i]);
    row_builder_close(&r);
    if (bad || k->n) return bad;
    return fail(EXIT_INPUT,
                "%s: 0 samples: all %" PRId64 " rows were dropped (%" PRId64 " shorter than two tokens, %" PRId64
                " without a target within sequence_len %d)",
                c->datasets.item[0].path, k->ds->dropped, k->ds->dropped_short, k->ds->dropped - k->ds->dropped_short,
                k->ds->sequence_len);
}

/* Gives back what the pool and the rows have too much, and sets the pointers. */
static void settle(collector *k) {
    dataset *ds = k->ds;
    ds->pool = xrealloc(ds->pool, (size_t)k->used, sizeof *ds->pool);
    k->row = xrealloc(k->row, (size_t)k->n, sizeof *k->row);
    int32_t *at = ds->pool;
    for (int i = 0; i < k->n; i++) {
        k->row[i].ids = at, k->row[i].labels = at + k->row[i].n;
        at += 2 * (int64_t)k->row[i].n;
    }
    ds->train = k->row, ds->n_train = k->n;
    k->row = NULL;
}

static uint64_t split_key(const dataset *ds, const sample *s) {
    rng_block r = rng_philox(ds->seed, STREAM_SPLIT, s->id);
    return (uint64_t)r.v[1] << 32 | r.v[0];
}

static int by_key(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

/* The largest key of the held-out rows: that of the `want`-th smallest, so that copies of a row stay together; one
 * distinct key less when that would take everything. */
static int split_bound(const dataset *ds, int want, uint64_t *bound) {
    int n = ds->n_train;
    uint64_t *keys = xcalloc((size_t)n, sizeof *keys);
    for (int i = 0; i < n; i++) keys[i] = split_key(ds, &ds->train[i]);
    qsort(keys, (size_t)n, sizeof *keys, by_key);
    int last = want - 1;
    while (last >= 0 && keys[last] == keys[n - 1]) last--;
    if (last >= 0) *bound = keys[last];
    free(keys);
    return last >= 0 ? 0 : fail(EXIT_USAGE, "val_set_size: all %d rows are the same, so none can be held out", n);
}

static int split(dataset *ds, double val) {
    int n = ds->n_train;
    if (val == 0) return 0;
    double want = val < 1 ? ceil(val * n) : val;
    if (!(val > 0) || want != floor(want))
        return fail(EXIT_USAGE, "val_set_size: found %g, expected a fraction below 1 or a whole number of rows", val);
    if (want >= n)
        return fail(EXIT_USAGE, "val_set_size: %g would hold out %.0f of %d rows and leave none to train on", val, want,
                    n);
    uint64_t bound = 0;
    if (split_bound(ds, (int)want, &bound)) return -1;
    for (int i = 0; i < n; i++) ds->n_eval += split_key(ds, &ds->train[i]) <= bound;
    ds->eval = xcalloc((size_t)ds->n_eval, sizeof *ds->eval);
    ds->n_train = ds->n_eval = 0;
    for (int i = 0; i < n; i++) {
        sample s = ds->train[i];
        if (split_key(ds, &s) <= bound)
            ds->eval[ds->n_eval++] = s;
        else
            ds->train[ds->n_train++] = s;
    }
    return 0;
}

static int64_t tokens_of(const sample *s, int n) {
    int64_t sum = 0;
    for (int i = 0; i < n; i++) sum += s[i].n;
    return sum;
}

static int by_length(const void *a, const void *b) {
    int x = *(const int *)a, y = *(const int *)b;
    return x < y ? -1 : x > y;
}

/* Upper bounds over every order: unpacked, the longest micro_batch samples; packed, full bins, and as many sequences as
 * the shortest samples make. Both are at most what the set has. */
static int count_worst(dataset *ds, const sample *s, int n) {
    int *length = xcalloc((size_t)n, sizeof *length), seqs = 0;
    for (int i = 0; i < n; i++) length[i] = s[i].n;
    qsort(length, (size_t)n, sizeof *length, by_length);
    int64_t rows = 0, room = (int64_t)ds->micro_batch * ds->sequence_len, all = tokens_of(s, n);
    if (ds->packing) {
        rows = all < room ? all : room;
        for (int64_t sum = 0; seqs < n && sum + length[seqs] <= room; seqs++) sum += length[seqs];
    } else {
        for (; seqs < n && seqs < ds->micro_batch; seqs++) rows += length[n - 1 - seqs];
    }
    free(length);
    if (rows > INT_MAX / 4)
        return fail(EXIT_USAGE,
                    "micro_batch_size %d with sequence_len %d makes batches of %" PRId64 " tokens: more than %d",
                    ds->micro_batch, ds->sequence_len, rows, INT_MAX / 4);
    if (rows > ds->rows_max) ds->rows_max = (int)rows;
    if (seqs > ds->seqs_max) ds->seqs_max = seqs;
    return 0;
}

static void plan_eval(dataset *ds) {
    bins_open(&ds->eval_bins, ds->n_eval, tokens_of(ds->eval, ds->n_eval), ds->sequence_len);
    bins_begin(&ds->eval_bins);
    for (int i = 0; i < ds->n_eval; i++) bins_add(&ds->eval_bins, i, ds->eval[i].n);
    bins_end(&ds->eval_bins);
}

static int plan(dataset *ds) {
    if (count_worst(ds, ds->train, ds->n_train) || count_worst(ds, ds->eval, ds->n_eval)) return -1;
    ds->order = xcalloc((size_t)ds->n_train, sizeof *ds->order);
    if (ds->packing) {
        bins_open(&ds->train_bins, ds->n_train, tokens_of(ds->train, ds->n_train), ds->sequence_len);
        plan_eval(ds);
    }
    dataset_begin_epoch(ds, 0);
    return 0;
}

int dataset_open(dataset *ds, const config *c, const tokenizer *tok, const chat_template *chat, int vocab) {
    CHECK(vocab > 0 && c->sequence_len > 1 && c->sequence_len <= INT_MAX / 4 && c->micro_batch_size > 0 &&
              c->micro_batch_size <= INT_MAX / 4,
          "vocab %d, sequence_len %" PRId64 ", micro_batch_size %" PRId64, vocab, c->sequence_len, c->micro_batch_size);
    *ds = (dataset){.seed = (uint64_t)c->seed,
                    .shuffle = c->shuffle_merged_datasets,
                    .packing = c->sample_packing,
                    .sequence_len = (int)c->sequence_len,
                    .micro_batch = (int)c->micro_batch_size};
    collector k = {.ds = ds};
    int bad = read_all(&k, c, tok, chat, vocab);
    if (!bad) settle(&k);
    free(k.row);
    if (!bad && !split(ds, c->val_set_size) && !plan(ds)) return 0;
    dataset_close(ds);
    return -1;
}

void dataset_close(dataset *ds) {
    free(ds->train), free(ds->eval), free(ds->order), free(ds->pool);
    bins_close(&ds->train_bins);
    bins_close(&ds->eval_bins);
    *ds = (dataset){0};
}

static int micro_batches(const dataset *ds, const bin_list *bins, int n) {
    int units = ds->packing ? bins->n_bins : n;
    return units / ds->micro_batch + (units % ds->micro_batch != 0);
}

int dataset_begin_epoch(dataset *ds, int epoch) {
    ds->epoch = epoch;
    for (int i = 0; i < ds->n_train; i++) ds->order[i] = i;
    for (int i = ds->n_train - 1; ds->shuffle && i > 0; i--) {
        uint64_t draw = (uint64_t)(uint32_t)epoch << 32 | (uint32_t)i;
        int j = (int)rng_below(ds->seed, STREAM_SHUFFLE, draw, (uint64_t)i + 1), t = ds->order[i];
        ds->order[i] = ds->order[j], ds->order[j] = t;
    }
    if (ds->packing) {
        bins_begin(&ds->train_bins);
        for (int i = 0; i < ds->n_train; i++) bins_add(&ds->train_bins, ds->order[i], ds->train[ds->order[i]].n);
        bins_end(&ds->train_bins);
    }
    return micro_batches(ds, &ds->train_bins, ds->n_train);
}

int dataset_eval_batches(const dataset *ds) { return micro_batches(ds, &ds->eval_bins, ds->n_eval); }

/* Micro-batch `index` of n samples: those that item (NULL: 0, 1, ...) names, cut into units by the bins or one by one.
 */
static void fill_batch(const dataset *ds, const sample *s, int n, const bin_list *bins, const int *item, int index,
                       batch *b) {
    int units = ds->packing ? bins->n_bins : n, first = index * ds->micro_batch;
    CHECK(index >= 0 && index < micro_batches(ds, bins, n), "micro-batch %d of %d", index, micro_batches(ds, bins, n));
    int last = units - first < ds->micro_batch ? units : first + ds->micro_batch;
    if (ds->packing) first = bins->start[first], last = bins->start[last], item = bins->item;
    batch_clear(b);
    for (int i = first; i < last; i++) {
        const sample *x = &s[item ? item[i] : i];
        batch_add(b, x->ids, x->labels, x->n, x->id);
    }
}

void dataset_batch(const dataset *ds, int index, batch *b) {
    fill_batch(ds, ds->train, ds->n_train, &ds->train_bins, ds->order, index, b);
    b->epoch = (uint32_t)ds->epoch;
}

void dataset_eval_batch(const dataset *ds, int index, batch *b) {
    fill_batch(ds, ds->eval, ds->n_eval, &ds->eval_bins, NULL, index, b);
    b->epoch = 0;
}

int dataset_rows_max(const dataset *ds) { return ds->rows_max; }
int dataset_seqs_max(const dataset *ds) { return ds->seqs_max; }

void dataset_summary(const dataset *ds, FILE *f) {
    int64_t tokens = tokens_of(ds->train, ds->n_train), targets = 0;
    for (int i = 0; i < ds->n_train; i++) targets += ds->train[i].targets;
    fprintf(f, "data: %d rows, %" PRId64 " tokens (%.1f %% are targets), %d held-out rows, %" PRId64 " tokens",
            ds->n_train, tokens, 100.0 * (double)targets / (double)tokens, ds->n_eval, tokens_of(ds->eval, ds->n_eval));
    if (ds->packing)
        fprintf(f, "; %d bins of %d, %.1f %% full", ds->train_bins.n_bins, ds->sequence_len,
                100.0 * (double)tokens / ((double)ds->train_bins.n_bins * ds->sequence_len));
    fputc('\n', f);
    if (!ds->dropped && !ds->truncated) return;
    fprintf(f,
            "data: %" PRId64 " rows truncated to sequence_len %d; %" PRId64 " dropped: %" PRId64
            " without a target left, %" PRId64 " shorter than two tokens\n",
            ds->truncated, ds->sequence_len, ds->dropped, ds->dropped - ds->dropped_short, ds->dropped_short);
}
