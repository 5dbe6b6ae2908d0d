/* Writing GGUF version 3: keys first, then the tensors in the order declared, each handed over in pieces of any size,
 * so that memory stays small. The file appears under its name only when it is complete (core/file.h). Spec: ggml
 * docs/gguf.md. Data start, and every tensor, at a multiple of 32. */
#ifndef PEFT_CORE_GGUF_WRITE_H
#define PEFT_CORE_GGUF_WRITE_H

#include "core/gguf.h"

#define GGUF_WRITE_ALIGNMENT 32

/* Keys and values, encoded as they are put. A key that is put twice is the programmer's mistake; what is copied from a
 * file goes through gguf_meta_has first. {0} is empty; gguf_meta_free. */
typedef struct gguf_meta {
    uint8_t *bytes;
    size_t n, cap;
    char **keys;
    int count;
} gguf_meta;

bool gguf_meta_has(const gguf_meta *m, const char *key);
void gguf_meta_free(gguf_meta *m);
void gguf_put_text(gguf_meta *m, const char *key, const char *s);
void gguf_put_string(gguf_meta *m, const char *key, gguf_str s);
void gguf_put_u32(gguf_meta *m, const char *key, uint32_t v);
void gguf_put_f32(gguf_meta *m, const char *key, float v);
void gguf_put_bool(gguf_meta *m, const char *key, bool v);
void gguf_put_strings(gguf_meta *m, const char *key, const gguf_str *s, uint64_t n);
void gguf_put_i32s(gguf_meta *m, const char *key, const int32_t *v, uint64_t n);
void gguf_put_kv(gguf_meta *m, const gguf_kv *kv); /* as a file has it */

typedef struct gguf_decl {
    const char *name; /* at most GGUF_NAME_MAX bytes */
    int ggml_type;
    int dims;
    int64_t ne[GGUF_DIMS_MAX]; /* ne[0] is the fastest */
} gguf_decl;

typedef struct gguf_writer {
    file_out out;
    uint64_t *bytes; /* [n] of the tensors */
    int n, at;       /* tensor that is being written */
    uint64_t left;   /* bytes of it that are still to come */
} gguf_writer;

/* -1: EXIT_INPUT for names that are not unique or that the reader would refuse, EXIT_IO. */
int gguf_writer_open(gguf_writer *w, const char *path, const gguf_meta *m, const gguf_decl *decls, int n);
/* A piece of the current tensor; with its last byte the next one becomes current. */
int gguf_writer_data(gguf_writer *w, const void *data, uint64_t bytes);
int gguf_writer_close(gguf_writer *w); /* commits; -1 also when data are missing */
void gguf_writer_abandon(gguf_writer *w);

#endif
