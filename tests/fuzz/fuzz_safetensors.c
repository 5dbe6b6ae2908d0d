/* Any bytes as a safetensors file: refused with a reason, or every tensor byte of it can be read, the data are covered,
 * and writing the same tensors makes a file that reads the same. */
#include "core/error.h"
#include "core/safetensors.h"
#include "tests/fuzz/fuzz_file.h"

static void use(const safetensors *s) {
    uint64_t sum = 0, bytes = 0;
    for (int i = 0; i < s->n; i++) {
        const st_tensor *t = &s->tensors[i];
        if (safetensors_find(s, t->name) != t || t->dims < 0 || t->dims > ST_DIMS_MAX) abort();
        for (uint64_t k = 0; k < t->bytes; k++) sum += t->data[k];
        bytes += t->bytes;
    }
    if (bytes > s->files[0].size) abort();
    for (int i = 0; i < s->n_meta; i++) sum += strlen(s->meta_keys[i]) + strlen(s->meta_values[i]);
    fuzz_consume(sum);
}

static void write_again(const safetensors *s) {
    st_decl decls[16];
    const char *metadata[16];
    char path[64];
    if (s->n > 16 || s->n_meta > 8) return;
    for (int i = 0; i < s->n; i++) {
        decls[i] = (st_decl){.name = s->tensors[i].name, .dtype = s->tensors[i].dtype, .dims = s->tensors[i].dims};
        memcpy(decls[i].shape, s->tensors[i].shape, sizeof decls[i].shape);
    }
    for (int i = 0; i < s->n_meta; i++) metadata[2 * i] = s->meta_keys[i], metadata[2 * i + 1] = s->meta_values[i];
    snprintf(path, sizeof path, "/dev/shm/fuzz_safetensors.%ld", (long)getpid());
    st_writer w;
    safetensors back;
    if (st_writer_open(&w, path, decls, s->n, metadata, s->n_meta)) abort();
    for (int i = 0; i < s->n; i++)
        if (st_writer_data(&w, s->tensors[i].data, s->tensors[i].bytes)) abort();
    if (st_writer_close(&w) || safetensors_open(&back, path) || back.n != s->n || back.n_meta != s->n_meta) {
        fprintf(stderr, "%s\n", fail_text());
        abort();
    }
    for (int i = 0; i < s->n; i++)
        if (strcmp(back.tensors[i].name, s->tensors[i].name) != 0 || back.tensors[i].bytes != s->tensors[i].bytes ||
            memcmp(back.tensors[i].data, s->tensors[i].data, s->tensors[i].bytes) != 0)
            abort();
    safetensors_close(&back);
    unlink(path);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    safetensors s;
    fail_clear();
    if (safetensors_open(&s, fuzz_path(data, n))) {
        fuzz_refused(fail_code(), fail_text(), EXIT_INPUT);
        return 0;
    }
    use(&s);
    write_again(&s);
    safetensors_close(&s);
    return 0;
}
