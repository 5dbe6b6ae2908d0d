/* safetensors files: 8 bytes header length, JSON header, data. Reader and writer know files, not models.
 * Spec: github.com/huggingface/safetensors (format section); this reader is stricter where no real file is lost:
 * duplicate names, names with control bytes or "..", holes and overlaps are refused. Tensors without elements may share
 * an offset with others, as the reference writer lays them out. */
#ifndef PEFT_CORE_SAFETENSORS_H
#define PEFT_CORE_SAFETENSORS_H

#include "core/file.h"

#define ST_DIMS_MAX 8
#define ST_TENSORS_MAX 65536 /* of one model, all shards together */
#define ST_NAME_MAX 512
#define ST_HEADER_MAX 100000000 /* the reference reader's bound */
#define ST_METADATA_MAX (1 << 20)
#define ST_ELEMENTS_MAX ((int64_t)1 << 48) /* of one tensor, dimensions of 0 not counted */

typedef enum { ST_F64, ST_F32, ST_F16, ST_BF16, ST_I64, ST_I32, ST_I16, ST_I8, ST_U8, ST_BOOL, ST_DTYPES } st_dtype;

typedef struct {
    char *name;
    st_dtype dtype;
    int dims;
    int64_t shape[ST_DIMS_MAX];
    const uint8_t *data; /* inside the mapping; alignment is that of the file: at least 1 byte */
    uint64_t bytes;
    int file; /* index of the shard it lies in */
} st_tensor;

typedef struct {
    file_map *files; /* one, or the shards of an index */
    int n_files;
    st_tensor *tensors; /* sorted by name */
    int n;
    char **meta_keys, **meta_values; /* __metadata__ of the first file */
    int n_meta;
    char *note; /* NULL, or one line on something odd but harmless, which the program should print once */
} safetensors;

int safetensors_open(safetensors *s, const char *path);       /* one .safetensors file */
int safetensors_open_index(safetensors *s, const char *path); /* model.safetensors.index.json: every shard, checked */
int safetensors_open_dir(safetensors *s, const char *dir,
                         const char *stem); /* stem.safetensors or its index; -1 names both */
void safetensors_close(safetensors *s);
const st_tensor *safetensors_find(const safetensors *s, const char *name); /* NULL when absent */
const char *st_dtype_name(st_dtype t);                                     /* "F32" */
int st_dtype_size(st_dtype t);

/* Writer: declare every tensor, then hand the data over in the same order in pieces of any size; memory stays small. */
typedef struct {
    char *name;
    st_dtype dtype;
    int dims;
    int64_t shape[ST_DIMS_MAX];
} st_decl;
typedef struct {
    file_out out;
    uint64_t left;
} st_writer;
/* metadata: n_meta pairs key, value (HF expects {"format":"pt"}). Data follows in decl order. -1: EXIT_INPUT for
 * names that are not unique or that the reader would refuse, EXIT_IO. */
int st_writer_open(st_writer *w, const char *path, const st_decl *decls, int n, const char *const *metadata,
                   int n_meta);
int st_writer_data(st_writer *w, const void *data, uint64_t bytes);
int st_writer_close(st_writer *w); /* commits; -1 also when data are missing */
void st_writer_abandon(st_writer *w);

#endif
