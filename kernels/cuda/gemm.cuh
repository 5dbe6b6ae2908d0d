/* The products of the CUDA backend, between the files that make them: gemm_f32.cu and gemm_bf16.cu multiply dense
 * operands, panel.cu makes such operands of weights and of mats, weight.cu chooses. Nothing here allocates: panels and
 * partial sums lie in kctx.scratch. */
#ifndef PEFT_KERNELS_CUDA_GEMM_CUH
#define PEFT_KERNELS_CUDA_GEMM_CUH

#include "kernels/cuda/dequant.cuh"

/* An operand [rows, k] in device memory: element (r, k) is data[r * ld + k], or data[k * ld + r] where it lies across.
 */
typedef struct side {
    const void *data;
    int64_t ld;
    bool across;
} side;

/* C(i, j) = start + sum over s and k of A_s(i, k) B_s(j, k), s = 0, 1: one sum over both pieces, rounded once to C's
 * type. start = C(i, j) where add, else bias[j] or 0. Orientations: A and B plain; B across; both across (one piece).
 */
typedef struct product {
    int64_t m, n, k[2]; /* k[1] = 0: one piece */
    side a[2], b[2];
    void *c;
    dtype type; /* of C */
    int64_t cs;
    bool add;
    const float *bias;
    int splits;  /* bf16: k is cut into that many pieces, whose sums are added in order; 0 and 1: not cut */
    float *part; /* [splits, m, n] when cut */
} product;

/* operands of float: one chain of fused multiply-adds over k from `start`, the canonical bits of backend.h */
void product_f32(kctx *c, const product *p);
/* operands of bf16 whose rows begin at multiples of 16 bytes. An output's bits follow from its own row and column and
 * from k and splits: tiles and m and n leave no trace in them. */
void product_bf16(kctx *c, const product *p);

wview view_of(const weight *w);
/* out[i * ld + k] = W[row + i][k] as F32 or BF16, i < rows; ld >= cols, a multiple of 8, out 16-byte aligned */
void panel_of_weight(kctx *c, const weight *w, int64_t row, int64_t rows, void *out, dtype type, int64_t ld);
/* out[i * ld + k] = x[i][k] rounded to bf16 */
void panel_of_mat(kctx *c, mat x, bf16 *out, int64_t ld);

/* The columns behind what fills a panel's rows, n of them from out on: zeros, two ones and zeros, or a bias as the sum
 * of two numbers of bf16 and zeros */
typedef enum { PANEL_ZEROS, PANEL_ONES, PANEL_BIAS } panel_end;
void panel_tail(kctx *c, bf16 *out, int64_t ld, int64_t rows, int64_t n, panel_end end, const float *bias);

/* bump allocation over a part of kctx.scratch */
typedef struct room {
    char *at, *end;
} room;
static inline room room_of(const kctx *c) { return room{c->scratch, c->scratch + c->scratch_bytes}; }
static inline size_t room_left(const room *r) { return (size_t)(r->end - r->at); }
static inline void *room_take(room *r, size_t bytes) {
    char *p = r->at;
    bytes = (bytes + 255) / 256 * 256;
    CHECK(bytes <= room_left(r), "%zu bytes of scratch, %zu left", bytes, room_left(r));
    r->at += bytes;
    return p;
}

/* The type of a product's operands: BF16 where one of them is, or where the context says so, for which F32 operands are
 * rounded; else F32. */
dtype product_type(const kctx *c, mat a, mat b);
void multiply(kctx *c, const product *p, dtype t);

/* Operands of type t: the memory itself where it serves, else a panel in r. The _rows_fit say how many rows at a time
 * an operand in `bytes` of scratch can have, all where it takes none. */
side mat_side(kctx *c, room *r, mat x, dtype t);
int64_t mat_rows_fit(mat x, dtype t, size_t bytes);
side weight_side(kctx *c, room *r, const weight *w, int64_t row, int64_t rows, dtype t);
int64_t weight_rows_fit(const weight *w, dtype t, size_t bytes);
bool weight_fits(const weight *w, dtype t);

static inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
static inline int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }
static inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

static inline side across(side s) { return side{s.data, s.ld, true}; }

static inline side from_offset(side s, int64_t offset, dtype t) {
    return side{static_cast<const char *>(s.data) + offset * mat_bytes(t), s.ld, s.across};
}

/* weight.cu: one item of lora_fwd by products with its adapter's matrices; where y is bf16 it is rounded once more */
void lora_product(kctx *c, const lora_fwd_args *a, const lora_item *it);

#endif
