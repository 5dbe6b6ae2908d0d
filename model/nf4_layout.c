#include "model/nf4_layout.h"
#include "core/error.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

static const struct {
    const char *suffix;
    st_dtype dtype;
} parts[NF4_PARTS] = {
    [NF4_PLAIN] = {".absmax", ST_F32},
    [NF4_NESTED] = {".nested_absmax", ST_F32},
    [NF4_NESTED_MAP] = {".nested_quant_map", ST_F32},
    [NF4_MAP] = {".quant_map", ST_F32},
    [NF4_CODES] = {"", ST_U8},
    [NF4_SCALES] = {".absmax", ST_U8},
    [NF4_STATE] = {".quant_state.bitsandbytes__nf4", ST_U8},
};

const char *nf4_part_suffix(int part) { return parts[part].suffix; }
st_dtype nf4_part_dtype(int part) { return parts[part].dtype; }

void nf4_part_sizes(int64_t rows, int64_t cols, bool twice, int64_t n[NF4_PARTS]) {
    int64_t elements = rows * cols, blocks = (elements + 63) / 64, nested = (blocks + 255) / 256;
    n[NF4_PLAIN] = twice ? 0 : blocks, n[NF4_NESTED] = twice ? nested : 0, n[NF4_NESTED_MAP] = twice ? 256 : 0;
    n[NF4_MAP] = 16, n[NF4_CODES] = (int64_t)nf4_data_bytes(elements), n[NF4_SCALES] = twice ? blocks : 0;
    n[NF4_STATE] = NF4_STATE_BYTES + (8 - (4 * (n[NF4_PLAIN] + n[NF4_NESTED]) + n[NF4_CODES] + n[NF4_SCALES]) % 8) % 8;
}

uint64_t nf4_part_bytes(int part, const int64_t n[NF4_PARTS]) {
    return (uint64_t)n[part] * (uint64_t)st_dtype_size(parts[part].dtype);
}

/* %.17g: the offset comes back to the bit. */
int nf4_print_state(const char *name, int64_t rows, int64_t cols, const char *dtype, bool twice, float offset,
                    int64_t n, char *text) {
    char nested[96] = "";
    if (!isfinite(offset)) return fail(EXIT_INPUT, "module '%s' has values that are not finite", name);
    if (twice)
        snprintf(nested, sizeof nested,
                 ", \"nested_blocksize\": 256, \"nested_dtype\": \"float32\", \"nested_offset\": %.17g",
                 (double)offset);
    int used = snprintf(text, (size_t)n,
                        "{\"quant_type\": \"nf4\", \"blocksize\": 64, \"dtype\": \"%s\", \"shape\": [%" PRId64
                        ", %" PRId64 "]%s}",
                        dtype, rows, cols, nested);
    CHECK(used < NF4_STATE_BYTES, "%d bytes of state", used);
    memset(text + used, ' ', (size_t)(n - used));
    return 0;
}
