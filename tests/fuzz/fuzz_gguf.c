/* Any bytes as a GGUF file: refused with a reason, or every key and tensor byte of it can be read. */
#include "core/error.h"
#include "core/gguf.h"
#include "tests/fuzz/fuzz_file.h"

static void use(const gguf *g) {
    uint64_t sum = 0;
    for (int i = 0; i < g->n_kv; i++) {
        const gguf_kv *kv = &g->kv[i];
        int64_t v;
        double d;
        bool b;
        gguf_str s = {"", 0};
        if (gguf_find(g, kv->key) != kv) abort();
        if (!gguf_get_int(g, kv->key, INT64_MIN, INT64_MAX, &v)) sum += (uint64_t)v;
        if (!gguf_get_real_or(g, kv->key, -1e300, 1e300, 0, &d)) sum += d > 0;
        if (!gguf_get_bool_or(g, kv->key, false, &b)) sum += b;
        if (!gguf_get_string_or(g, kv->key, s, &s) && s.n) sum += (uint8_t)s.data[s.n - 1];
        fail_clear();
        for (uint64_t k = 0; kv->strings && k < kv->n; k++)
            if (kv->strings[k].n) sum += (uint8_t)kv->strings[k].data[kv->strings[k].n - 1];
        const gguf_kv *a;
        if (!gguf_get_array_or(g, kv->key, GGUF_I32, -1, &a) && a && a->n) sum += (uint64_t)gguf_array_int(a, a->n - 1);
        if (!gguf_get_array_or(g, kv->key, GGUF_F32, -1, &a) && a && a->n) sum += gguf_array_real(a, a->n - 1) > 0;
        fail_clear();
    }
    for (int i = 0; i < g->n_tensors; i++) {
        const gguf_tensor *t = &g->tensors[i];
        if (gguf_tensor_find(g, t->name) != t || !t->bytes) abort();
        for (uint64_t k = 0; k < t->bytes; k++) sum += t->data[k];
    }
    fuzz_consume(sum);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    gguf g;
    fail_clear();
    if (gguf_open(&g, fuzz_path(data, n))) {
        fuzz_refused(fail_code(), fail_text(), EXIT_INPUT);
        return 0;
    }
    use(&g);
    gguf_close(&g);
    return 0;
}
