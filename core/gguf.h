/* GGUF files, versions 2 and 3: key-values and tensors of one mapping. Knows files, not models.
 * Spec: ggml docs/gguf.md. Everything is checked before it is allocated or believed (limits below). */
#ifndef PEFT_CORE_GGUF_H
#define PEFT_CORE_GGUF_H

#include "core/file.h"

#define GGUF_DIMS_MAX 4
#define GGUF_TENSORS_MAX 65536
#define GGUF_KV_MAX 65536
#define GGUF_KEY_MAX 65535          /* bytes */
#define GGUF_NAME_MAX 63            /* bytes of a tensor's name, as in ggml */
#define GGUF_STRING_MAX (16u << 20) /* bytes */
#define GGUF_STRINGS_MAX (1u << 22) /* of the whole file, array elements included */
#define GGUF_ARRAY_MAX (1u << 26)   /* elements */
#define GGUF_ALIGNMENT_MIN 8
#define GGUF_ALIGNMENT_MAX 65536

typedef enum {
    GGUF_U8,
    GGUF_I8,
    GGUF_U16,
    GGUF_I16,
    GGUF_U32,
    GGUF_I32,
    GGUF_F32,
    GGUF_BOOL,
    GGUF_STRING,
    GGUF_ARRAY,
    GGUF_U64,
    GGUF_I64,
    GGUF_F64,
    GGUF_TYPES
} gguf_type;

typedef struct {
    const char *data;
    uint64_t n;
} gguf_str; /* inside the mapping; not terminated */

typedef struct {
    char *key;
    gguf_type type;
    gguf_type elem;      /* of an array */
    uint64_t n;          /* elements of an array, else 1 */
    const uint8_t *data; /* scalars and arrays of scalars, little endian, unaligned */
    gguf_str *strings;   /* [n] for a string or an array of strings */
    uint64_t offset;     /* in the file, for messages */
} gguf_kv;

typedef struct {
    char *name;
    int dims;
    int64_t ne[GGUF_DIMS_MAX]; /* ne[0] is the fastest: in features */
    int ggml_type;             /* id of ggml_type: 0 F32, 1 F16, 2 Q4_0 ... see kernels/formats.def */
    const uint8_t *data;
    uint64_t bytes;
} gguf_tensor;

typedef struct {
    file_map file;
    uint32_t version;
    uint64_t alignment;
    gguf_kv *kv; /* file order */
    int n_kv;
    gguf_tensor *tensors; /* file order */
    int n_tensors;
    int *kv_order, *tensor_order; /* indices sorted by key and by name */
    char *note; /* NULL, or one line on something odd but harmless, which the program should print once */
} gguf;

int gguf_open(gguf *g, const char *path);
void gguf_close(gguf *g);
const gguf_kv *gguf_find(const gguf *g, const char *key);
const gguf_tensor *gguf_tensor_find(const gguf *g, const char *name);

/* Typed getters: an integer of any integer type is accepted when it fits; anything else is an error that names the key.
 * The _or variants use def when the key is absent. 0 or -1. */
int gguf_get_string(const gguf *g, const char *key, gguf_str *out);
int gguf_get_int(const gguf *g, const char *key, int64_t lo, int64_t hi, int64_t *out);
int gguf_get_int_or(const gguf *g, const char *key, int64_t lo, int64_t hi, int64_t def, int64_t *out);
int gguf_get_real_or(const gguf *g, const char *key, double lo, double hi, double def, double *out);
int gguf_get_bool_or(const gguf *g, const char *key, bool def, bool *out);
int gguf_get_string_or(const gguf *g, const char *key, gguf_str def, gguf_str *out);
/* An array of elem type (GGUF_I32 takes any integer type, GGUF_F32 any float type) with n elements (-1: any number);
 * *out is NULL when the key is absent. */
int gguf_get_array_or(const gguf *g, const char *key, gguf_type elem, int64_t n, const gguf_kv **out);
int64_t gguf_array_int(const gguf_kv *kv,
                       uint64_t i); /* element of an integer array; kv->elem must be an integer type */
double gguf_array_real(const gguf_kv *kv, uint64_t i); /* of an array of F32 or F64 */

/* Bytes of `n` elements of a ggml type with block checks; -1 when the type is unknown, removed, or n is no multiple. */
int64_t ggml_type_bytes(int ggml_type, int64_t n);
const char *ggml_type_name(int ggml_type); /* "Q4_1"; "unknown" */
int64_t ggml_type_block(int ggml_type);    /* elements of a block, -1 when the type is unknown or removed */

#endif
