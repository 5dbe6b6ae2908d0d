/* A backend is a table of kernels: "ref" "avx2" "avx512" "neon" (CPU), "plan" (does nothing, sizes only), "cuda" and
 * "emu" (the same sources on a GPU and on the CPU; shared objects, see plugin.h). kernels.def declares a kernel once
 * for all of them, so a backend that misses one fails to link.
 *
 * On a device (cuda, emu) the arenas run, act, tmp and window and kctx.scratch are the device's memory (core/memory.h),
 * and so is every pointer that a kernel is given, but for the small structs themselves (weight, attn, rope, dropout,
 * adamw_hp, adamw8), which the host reads and hands to the kernel by value. Values may be F32 or BF16 there (mat.type);
 * gradients, everything with "+=", statistics, adapters and the optimiser are F32. CPU backends compute on F32.
 *
 * Canonical numerics, which every CPU backend keeps to the bit, whatever its vector width and number of threads:
 *   - a GEMM output is ONE chain over k = 0, 1, ... of acc = fma(a[k], b[k], acc), started at the value that stands in
 * y;
 *   - a sum along a row (norm, dot, softmax denominator) uses 16 virtual lanes, lane i taking elements i, i+16, ...,
 * and the fixed tree (l[i] + l[i+8]), then +4, +2, +1; a tail adds nothing to the missing lanes;
 *   - exp is the polynomial of ref_exp (ref.h), which is v16_exp (cpu/simd.h); other transcendental functions are
 * tables of the host;
 *   - attention walks the row's own keys in blocks of ATTN_BLOCK counted from key 0 of the sequence;
 *   - the head walks the vocabulary in chunks of HEAD_CHUNK words counted from word 0, each row on its own: m' = max(m,
 *     logits), corr = exp(m - m'), p = exp(logit - m'), s = fma(s, corr, 16-lane sum of p), dh = dh * corr and then one
 *     fma chain over the chunk's words; ref_loss.c has the start and the end;
 *   - a sum over rows (weight_grad) is one chain over the rows in order; where partial sums are used their number and
 *     borders follow from the shape alone and they are reduced in order.
 * So a row's result depends on that row alone: not on threads, ISA, batch, packing or prefill against decode. */
#ifndef PEFT_KERNELS_BACKEND_H
#define PEFT_KERNELS_BACKEND_H

#include "core/arena.h"
#include "kernels/weight.h"

#include <stdbool.h>

enum { ATTN_BLOCK = 96, HEAD_CHUNK = 384, HEAD_DIM_MAX = 256, THREADS_MAX = 256 };
enum { THREAD_SCRATCH = 7 << 19 }; /* bytes of kctx.scratch per thread; each kernel asserts that its share is enough */

/* What attention needs of kctx.scratch per thread, in floats: 13 tiles of a block by a head, 2 of block by block */
enum { ATTN_SCRATCH_FLOATS = 13 * ATTN_BLOCK * HEAD_DIM_MAX + 2 * ATTN_BLOCK * ATTN_BLOCK };

typedef struct backend backend;

/* Where a kernel runs. scratch is the backend's memory, 64-byte aligned; kctx_open sizes it. */
typedef struct kctx {
    const backend *be;
    int threads;
    char *scratch;
    size_t scratch_bytes;
    dtype products; /* of a device: what operands of a product are rounded to where all of them are F32 (gradients) */
    memory *mem;    /* NULL: the host's. A device's state begins with its memory: streams and handles lie behind it */
} kctx;

/* Which keys a query row sees. Query row i belongs to sequence s (start[s] <= i < start[s+1]) and is that sequence's
 * token number past[s] + i - start[s]; it sees keys 0 .. that number, at most `window` of them (0 = all).
 * Key j of sequence s is row first[s] + j of k and v: in training first == start and past == 0. */
typedef struct attn {
    int heads, kv_heads, dim; /* dim of one head; q is [rows, heads * dim], k and v [keys, kv_heads * dim] */
    float scale;
    int window;
    int seqs;
    const int32_t *start; /* [seqs + 1] */
    const int32_t *past;  /* [seqs] */
    const int32_t *first; /* [seqs] */
} attn;

/* Cached keys and values of one layer, in pages of KV_PAGE tokens, so that a sequence holds what it needs and sequences
 * share what they have in common (Kwon et al. 2023). Key j of sequence s is token j % KV_PAGE of page
 * table[s * columns + j / KV_PAGE]; pages that no row of the batch sees may be anything, -1 too. Page p lies at
 * k + p * stride and v + p * stride (bytes). With feature f = head * dim + d and width = heads * dim:
 *     keys    element f * KV_PAGE + t: transposed, so that a score is a chain of whole vectors
 *     values  element t * width + f
 * as float, bf16 (to nearest even) or int8. KV_Q8_0 quantises 32 features of a token together as ggml's Q8_0 does
 * (width is a multiple of 32); the fp16 scales follow the elements: keys [width / 32][KV_PAGE], values
 * [KV_PAGE][width / 32]. A row that was stored gives the same bits whatever was stored with it. */
enum { KV_PAGE = 16, KV_BLOCK = 32 };
typedef enum { KV_F32, KV_BF16, KV_Q8_0, KV_TYPES } kv_type;
typedef struct kv_pages {
    kv_type type;
    int heads, dim; /* key heads */
    char *k, *v;
    int64_t stride;
    const int32_t *table; /* [seqs][columns]; kv_store does not read it */
    int columns;
} kv_pages;

/* Rotary tables: cos and sin [positions, dim / 2], made on the host; pairs are (i, i + dim/2) of each head (NEOX). */
typedef struct rope {
    const float *cos, *sin;
    int dim;
    int64_t positions;
} rope;

typedef enum { ACT_SILU, ACT_GELU_TANH } activation;

/* What dropout is a function of, per row: (seed, epoch, sample id, position in the sample, site, feature). */
typedef struct dropout {
    float p;
    uint64_t seed;
    uint32_t epoch, site;
    const uint64_t *sample; /* [rows] id of the row's sample */
    const int32_t *pos;     /* [rows] */
} dropout;

/* A group of projections that read the same rows (q, k, v; gate, up; a single one is a group of one), with their
 * low-rank adapters. T rows; i < n. The weights may be of any format, the adapters' matrices are F32 without gaps
 * (ld == cols), and whatever a product with a weight does to its operands (an overlay's rounding) happens to adapters
 * too.
 *
 *     y_i = bias_i + x W_i^T + h_i B_i^T         (=, not +=)
 *
 * Each output is ONE chain: 0 + bias (or 0), then over k = 0 .. in - 1 of x W_i^T, then over the r_i columns of h_i. A
 * result type narrower than fp32 is rounded once, at the end of it. h_i is the adapter's scaled x A_i^T, made before;
 * a row of zeros in it takes no part, so rows of a batch may belong to different adapters: side by side in h_i and
 * up_i, each row zero but in the columns of its own. More adapters than pay for that way: h_i without data here, and
 * weight_fwd of each adapter's rows behind, which continues the same chain. */
enum { PROJ_MAX = 3 };
typedef struct proj_fwd_args {
    int n;
    mat x;                       /* [T, in] */
    mat y[PROJ_MAX];             /* [T, out_i] */
    const weight *w[PROJ_MAX];   /* [out_i, in] */
    const float *bias[PROJ_MAX]; /* [out_i]; NULL: none */
    mat h[PROJ_MAX];             /* [T, r_i]; data NULL: no adapter */
    mat up[PROJ_MAX];            /* B_i [out_i, r_i] */
} proj_fwd_args;

/*     dx += sum over i of dy_i W_i, then + dh A         one chain in that order, started at dx or at 0 (fresh)
 *
 * dh is [dh_0, dh_1, ...] (scaled), down the A's below each other. */
typedef struct proj_bwd_args {
    int n;
    bool fresh;                /* dx = instead of dx += */
    mat dx;                    /* [T, in] F32 */
    mat dy[PROJ_MAX];          /* [T, out_i] F32; data NULL: no gradient came */
    const weight *w[PROJ_MAX]; /* [out_i, in] */
    mat dh;                    /* [T, sum r]; data NULL: none */
    mat down;                  /* A [sum r, in] */
} proj_bwd_args;

/* Adapters at inference: many in one batch, each for its own rows (as SGMV and BGMV: Chen et al. 2023, Punica). One
 * adapter's matrices for one group of projections lie transposed, vectors along the outputs; F32 or BF16. */
typedef struct lora_part {
    weight down;         /* [in, columns] A_0^T, A_1^T ... side by side, then zeros to a multiple of 16; cols 0: none */
    weight up[PROJ_MAX]; /* [r_i, out_i] B_i^T; rows 0: none */
    int at[PROJ_MAX];    /* column of down where projection i begins */
} lora_part;
/* Rows [row, row + rows) take `part`. Where rows take several, each is an item of its own, in the order of the sum. */
typedef struct lora_item {
    int row, rows;
    const lora_part *part;
    float scale;
    float *h; /* [rows, down.cols] scratch of this item alone */
} lora_item;
/*     y_i += h_i B_i^T,  h_i = scale * (x A_i^T)         over an item's rows; other rows stay as they are
 *
 * h is a chain over k from 0, then multiplied; y's chain goes on where it stands: after proj_fwd the bits are those of
 * proj_fwd with that adapter in h_i and up_i. */
typedef struct lora_fwd_args {
    int n;
    mat x;           /* [T, in] */
    mat y[PROJ_MAX]; /* [T, out_i]; data NULL: not wanted */
    int items;
    const lora_item *item; /* host memory */
} lora_fwd_args;

/* Results of a step, in the run arena; the host reads them one step late. step_end fills the second line. */
typedef struct step_sums {
    double loss, weight, sumsq;
    double norm, grad_scale; /* of the mean gradient before clipping; 1 / weight, times the clip factor */
    int64_t targets, nonfinite;
} step_sums;

/* Doubles: 1 - 0.999f differs from 0.001 by 1e-5 of itself, and torch has no such error. */
typedef struct adamw_hp {
    double lr, beta1, beta2, eps, weight_decay;
    double bias1, bias2_sqrt; /* 1 - beta1^t, sqrt(1 - beta2^t) */
    const step_sums *sums;    /* grad_scale is read there; nothing is changed when nonfinite is not 0 */
} adamw_hp;

/* AdamW's moments in 8 bits (Dettmers et al. 2022, as bitsandbytes.optim.AdamW8bit): a moment is map[code] * scale,
 * where the scale is the largest absolute value of its block of ADAMW8_BLOCK elements of one tensor (a tensor's last
 * block may be shorter). The map is nf4_dynamic_map for the mean and adamw8_map for the mean square. Memory of zeros is
 * moments of zero. */
enum { ADAMW8_BLOCK = 256 };
typedef struct adamw8_tensor {
    int64_t begin, n, code, block;
} adamw8_tensor; /* elements; its first code and scale */
typedef struct adamw8 {
    const adamw8_tensor *tensor; /* [tensors], code and block ascending */
    int64_t tensors, blocks;
    uint8_t *m, *v;           /* [sum of n] */
    float *m_scale, *v_scale; /* [blocks] */
} adamw8;
extern const float adamw8_map[256]; /* bitsandbytes' unsigned dynamic map, ascending from 0 to 1 */

/* open: NULL on the CPU. On a device it gives c->mem and c->scratch for a c whose be and threads are set, or returns -1
 * after fail(EXIT_DEVICE or EXIT_MEMORY); close takes them back. */
struct backend {
    const char *name;
    int (*open)(kctx *c);
    void (*close)(kctx *c);
#define K(name, args) void(*name) args;
#include "kernels/kernels.def"
#undef K
};

/* proj_fwd and proj_bwd by the other kernels of c->be: what they are defined to equal to the bit, and the entries of a
 * backend that has no fused ones. A backend that replaces weight_fwd must not keep another's proj_fwd. */
void proj_fwd_compose(kctx *c, const proj_fwd_args *p);
void proj_bwd_compose(kctx *c, const proj_bwd_args *p);
void lora_fwd_compose(kctx *c, const lora_fwd_args *a); /* likewise */

size_t backend_scratch(int threads); /* bytes that kctx.scratch must have on a CPU */

int kctx_open(kctx *c, const backend *be, int threads); /* threads 0: one a core; -1 after fail() */
void kctx_close(kctx *c);                               /* after the arenas in its memory; a zeroed c is closed */

/* name: "auto" takes the best of this machine (or $PEFT_ISA); otherwise one of backend_names(). NULL after
 * fail(EXIT_USAGE) when unknown or not supported by this CPU. */
const backend *backend_open(const char *name);
const char *const *backend_names(void); /* NULL-terminated: those compiled in and supported here, "ref" first */
/* Two overlays leave the canonical numerics by multiplying weights in bf16 (kernels/bf16/bf16.h): "avx512-bf16" and
 * "amx". backend_open takes their names, and "bf16" for the best of them, or fails likewise; backend_names has none of
 * them. Nor of the overlays of inference's fast mode (kernels/int8/int8.h): "int8" is the best of them, or the best
 * over the instruction set that $PEFT_ISA names. */
const char *backend_for(const char *name,
                        const char *compute_dtype); /* for backend_open; NULL after fail where they clash */
/* What inference opens for its fast mode when `name` was asked for: integer products for "auto" and over an instruction
 * set, `name` itself where it is a device's or another mode's. */
const char *backend_fast(const char *name);
bool backend_is_int8(const char *name);      /* opens a backend with integer products */
bool backend_reads_rows16(const char *name); /* weights are worth packing for it (kernels/rows16.h) */
bool backend_is_device(
    const char *name); /* "cuda" or "emu", whether or not it is here: kernels have memory of their own */
extern const backend backend_plan;

#endif
