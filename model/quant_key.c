/* The key of a cached 4-bit base, and the memory of what files hold.
 *
 * A file is known again by device, inode, size, mtime, ctime and a hash of 32 of its pages. ctime cannot be set, so
 * writing to a file and restoring its times is seen; the pages are for file systems whose numbers mean little. Times
 * are coarse (a clock tick, or two seconds on old file systems): what was changed less than that before it was read may
 * change again without a trace, and is not remembered. */
#include "model/quant_key.h"
#include "core/error.h"
#include "core/rng.h"
#include "core/xxh64.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { VERSION = 1, PIECE = 4 << 20, SAMPLES = 32, SAMPLE = 4096 };
#define SETTLED_NS INT64_C(2000000000)

const file_map *model_source_files(const model_source *s, int *n) {
    *n = s->is_gguf ? 1 : s->st.n_files;
    return s->is_gguf ? &s->g.file : s->st.files;
}

/* Of 4 MiB pieces, hashed in any order, and of their hashes in order. Pages are given back: they are not needed now. */
static uint64_t hash_file(const file_map *m) {
    int64_t pieces = (int64_t)((m->size + PIECE - 1) / PIECE);
    uint64_t *h = xcalloc((size_t)pieces, sizeof *h);
#pragma omp parallel for schedule(dynamic)
    for (int64_t i = 0; i < pieces; i++) {
        uint64_t at = (uint64_t)i * PIECE, left = m->size - at;
        size_t n = (size_t)(left < PIECE ? left : PIECE);
        h[i] = xxh64(m->data + at, n, 0);
        file_drop(m->data + at, n);
    }
    uint64_t all = xxh64(h, (size_t)pieces * sizeof *h, m->size);
    free(h);
    return all;
}

static uint64_t hash_samples(const file_map *m) {
    uint64_t h = m->size;
    if (m->size <= (uint64_t)SAMPLES * SAMPLE) return xxh64(m->data, (size_t)m->size, h);
    for (uint64_t i = 0; i < SAMPLES; i++) {
        uint64_t at = (uint64_t)((__extension__(unsigned __int128) i) * (m->size - SAMPLE) / (SAMPLES - 1));
        h = xxh64(m->data + at, SAMPLE, h);
    }
    return h;
}

/* ---- remembered hashes: DIR/base-HASH.txt, one line that ends in 16 hexadecimal digits ---- */

static char *memo_path(const file_map *m, const char *dir) {
    uint64_t who[2] = {m->id.device, m->id.inode};
    return xprintf("%s/base-%016" PRIx64 ".txt", dir, xxh64(who, sizeof who, 0));
}

static char *memo_line(const file_map *m) {
    return xprintf("peft.c %d device %" PRIu64 " inode %" PRIu64 " size %" PRIu64 " mtime %" PRId64 " ctime %" PRId64
                   " sample %016" PRIx64 " content ",
                   VERSION, m->id.device, m->id.inode, m->size, m->id.mtime, m->id.ctime, hash_samples(m));
}

static bool recall(const char *path, const char *line, uint64_t *hash) {
    file_map f;
    size_t n = strlen(line);
    char digits[17] = "", *end = digits;
    if (!path_exists(path)) return false;
    if (file_open(&f, path)) return fail_clear(), false;
    if (f.size == n + 17 && !memcmp(f.data, line, n) && f.data[n + 16] == '\n') {
        memcpy(digits, f.data + n, 16);
        *hash = strtoull(digits, &end, 16);
    }
    file_close(&f);
    return end == digits + 16;
}

/* A hash that cannot be remembered is computed again: silence is right here. */
static void remember(const char *path, const file_map *m, const char *line, uint64_t hash) {
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    int64_t now = (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
    if (!file_unchanged(m) || now - m->id.mtime < SETTLED_NS || now - m->id.ctime < SETTLED_NS) return;
    char *text = xprintf("%s%016" PRIx64 "\n", line, hash);
    if (file_save(path, text, strlen(text))) fail_clear();
    free(text);
}

static uint64_t content_of(const file_map *m, const char *dir, bool verify) {
    char *path = memo_path(m, dir), *line = memo_line(m);
    file_drop(m->data, m->size); /* the system maps many pages around a sample */
    uint64_t hash = 0;
    if (verify || !recall(path, line, &hash)) {
        hash = hash_file(m);
        remember(path, m, line, hash);
    }
    free(path), free(line);
    return hash;
}

/* ---- the rest of the key ---- */

/* What this program's quantiser makes of 260 blocks and a broken one of fixed numbers: a change of a bit there is a new
 * key. */
static uint64_t hash_quantiser(void) {
    enum { N = 64 * 260 + 10, BLOCKS = 261 };
    float *x = xcalloc(N, sizeof *x), absmax[BLOCKS], nested[2];
    uint8_t *codes = xcalloc(nf4_data_bytes(N), 1), scales[BLOCKS];
    for (int i = 0; i < N; i += 4) {
        rng_block r = rng_philox(VERSION, STREAM_TEST, (uint64_t)i);
        for (int k = 0; k < 4 && i + k < N; k++)
            x[i + k] = (float)((double)(int32_t)r.v[k] * 0x1p-31) * (float)(1 + i / 64 % 7);
    }
    nf4_quant(x, N, codes, absmax);
    float offset = nf4_quant_scales(absmax, BLOCKS, scales, nested);
    uint64_t h = xxh64(codes, nf4_data_bytes(N), 0);
    h = xxh64(absmax, sizeof absmax, h), h = xxh64(scales, sizeof scales, h);
    h = xxh64(nested, sizeof nested, h), h = xxh64(&offset, sizeof offset, h);
    free(x), free(codes);
    return h;
}

static uint64_t hash_modules(const quant_module *m, int n) {
    uint64_t h = (uint64_t)n;
    for (int i = 0; i < n; i++) {
        int64_t shape[3] = {m[i].rows, m[i].cols, m[i].heads};
        h = xxh64(m[i].name, strlen(m[i].name), h);
        h = xxh64(shape, sizeof shape, h);
    }
    return h;
}

void quant_key_make(quant_key *k, const model_source *s, const char *dir, bool verify, const quant_module *modules,
                    int n, bool double_quant) {
    int n_files;
    const file_map *files = model_source_files(s, &n_files);
    uint64_t content = (uint64_t)n_files, bytes = 0;
    for (int i = 0; i < n_files; i++) {
        uint64_t part[2] = {files[i].size, content_of(&files[i], dir, verify)};
        content = xxh64(part, sizeof part, content);
        bytes += files[i].size;
    }
    snprintf(k->text, sizeof k->text,
             "version %d, %s of %" PRIu64 " bytes %016" PRIx64 ", %d modules %016" PRIx64
             ", double quantisation %s, quantiser %016" PRIx64,
             VERSION, s->is_gguf ? "gguf" : "safetensors", bytes, content, n, hash_modules(modules, n),
             double_quant ? "true" : "false", hash_quantiser());
    k->hash = xxh64(k->text, strlen(k->text), 0);
}
