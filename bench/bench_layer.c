/* The seven products of a decoder layer with NF4 weights, forward and dx, 1,024 tokens: share of the FMA peak, and
 * speed against OpenBLAS's sgemm in the same process on the same matrices already in fp32, each called in turn.
 *
 *   bench_layer [--isa NAME] [--threads N] [--rows T] [--runs N] [WORD]     only lines whose name contains WORD
 *
 * One line of JSON a figure. A layer's matrices are different memory, as in a model, so none of them waits in a near
 * cache. Both sides add to what stands in y. OpenBLAS is loaded when the program starts, and left out when it is not
 * there.
 *
 * Traps: under OMP_PROC_BIND OpenBLAS's threads inherit the mask of one core and run at half speed, so it is refused.
 * They also spin for a while after a call, so ours waits until they sleep. */
#include "bench/measure.h"
#include "core/error.h"

#include <dlfcn.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { PRODUCTS = 7, CBLAS_ROWS = 101, CBLAS_PLAIN = 111, CBLAS_TRANSPOSED = 112, SPIN_US = 60000, LAYERS_MAX = 8 };

typedef void sgemm_fn(int order, int ta, int tb, int m, int n, int k, float alpha, const float *a, int lda,
                      const float *b, int ldb, float beta, float *c, int ldc);
typedef struct openblas {
    void *lib;
    sgemm_fn *sgemm;
    const char *config;
} openblas;

/* name, width, width of keys and values, width of the MLP; layers: as many as a run of some milliseconds needs */
typedef struct shape {
    const char *name;
    int64_t dim, kv, ffn;
    int layers;
} shape;
static const shape shapes[] = {
    {"SmolLM2-135M", 576, 192, 1536, 3}, {"TinyLlama-1.1B", 2048, 256, 5632, 1}, {"Llama-2-7B", 4096, 4096, 11008, 1}};

typedef struct product {
    made_weight w;
    float *values; /* the same matrix in fp32, for OpenBLAS */
} product;
typedef struct problem {
    kctx c;
    openblas blas;
    product *p;
    int n;
    int64_t rows;
    float *in, *out; /* [rows, widest] */
} problem;

static void ours_forward(void *ctx) {
    problem *q = ctx;
    for (int i = 0; i < q->n; i++) {
        const weight *w = &q->p[i].w.w;
        q->c.be->weight_fwd(&q->c, mat_f32(q->out, q->rows, w->rows), mat_f32(q->in, q->rows, w->cols), w);
    }
}

static void ours_dx(void *ctx) {
    problem *q = ctx;
    for (int i = 0; i < q->n; i++) {
        const weight *w = &q->p[i].w.w;
        q->c.be->weight_bwd(&q->c, mat_f32(q->out, q->rows, w->cols), mat_f32(q->in, q->rows, w->rows), w);
    }
}

static void blas_forward(void *ctx) {
    problem *q = ctx;
    for (int i = 0; i < q->n; i++) {
        const int out = (int)q->p[i].w.w.rows, in = (int)q->p[i].w.w.cols;
        q->blas.sgemm(CBLAS_ROWS, CBLAS_PLAIN, CBLAS_TRANSPOSED, (int)q->rows, out, in, 1, q->in, in, q->p[i].values,
                      in, 1, q->out, out);
    }
}

static void blas_dx(void *ctx) {
    problem *q = ctx;
    for (int i = 0; i < q->n; i++) {
        const int out = (int)q->p[i].w.w.rows, in = (int)q->p[i].w.w.cols;
        q->blas.sgemm(CBLAS_ROWS, CBLAS_PLAIN, CBLAS_PLAIN, (int)q->rows, in, out, 1, q->in, out, q->p[i].values, in, 1,
                      q->out, in);
    }
}

static const struct {
    const char *name;
    timed *ours, *blas;
} directions[] = {{"forward", ours_forward, blas_forward}, {"dx", ours_dx, blas_dx}};

static void open_blas(openblas *b, int threads) {
    static const char *const names[] = {"libopenblas.so.0", "libopenblas.so"};
    for (int i = 0; i < 2 && !b->lib; i++) b->lib = dlopen(names[i], RTLD_NOW | RTLD_LOCAL);
    if (!b->lib) return;
    void (*set_threads)(int);
    char *(*config)(void);
    /* through memory: ISO C has no conversion of object pointers to function pointers */
    *(void **)&b->sgemm = dlsym(b->lib, "cblas_sgemm");
    *(void **)&set_threads = dlsym(b->lib, "openblas_set_num_threads");
    *(void **)&config = dlsym(b->lib, "openblas_get_config");
    CHECK(b->sgemm && set_threads && config, "OpenBLAS lacks one of its functions: %s", dlerror());
    set_threads(threads);
    b->config = config();
}

/* Both sides must mean the same product; the tolerance is that of sums of 11,008 terms in another order. */
static void compare(problem *q, timed *ours, timed *blas) {
    const int64_t n = q->rows * (q->p[q->n - 1].w.w.rows < q->p[q->n - 1].w.w.cols ? q->p[q->n - 1].w.w.rows
                                                                                   : q->p[q->n - 1].w.w.cols);
    float *first = xcalloc((size_t)n, sizeof *first);
    double error = 0, size = 0;
    const size_t bytes = (size_t)n * sizeof *first;
    memset(q->out, 0, bytes);
    ours(q);
    memcpy(first, q->out, bytes);
    memset(q->out, 0, bytes);
    blas(q);
    for (int64_t i = 0; i < n; i++) {
        error = fmax(error, fabs((double)first[i] - q->out[i]));
        size = fmax(size, fabs((double)q->out[i]));
    }
    CHECK(error <= 1e-4 * size, "ours and OpenBLAS differ by %g of %g", error, size);
    free(first);
    usleep(SPIN_US);
}

static void bench_direction(problem *q, const shape *s, size_t d, double flops, const bench_options *o) {
    figure ours = {0};
    samples blas = {0}, faster = {0};
    const int calls = figure_calls(directions[d].ours, q, o->threads);
    if (q->blas.sgemm) {
        problem last = *q; /* its last product alone writes the front of out */
        last.p = q->p + q->n - 1, last.n = 1;
        compare(&last, directions[d].ours, directions[d].blas);
    }
    for (int r = 0; r < o->runs; r++) {
        figure_add(&ours, directions[d].ours, q, flops, calls, o);
        if (!q->blas.sgemm) continue;
        const double t = bench_now(o->threads);
        for (int i = 0; i < calls; i++) directions[d].blas(q);
        samples_add(&blas, (bench_now(o->threads) - t) / calls);
        samples_add(&faster, blas.x[blas.n - 1] / ours.seconds.x[ours.seconds.n - 1]);
        usleep(SPIN_US);
    }
    printf("{\"what\": \"gemm\", \"name\": \"%s %s\", \"rows\": %ld, ", s->name, directions[d].name, (long)q->rows);
    figure_print(&ours, flops, o);
    if (q->blas.sgemm)
        printf(", \"openblas_gflops\": %.1f, \"openblas_ratio\": %.3f, \"openblas\": \"%s\"",
               1e-9 * flops / samples_median(&blas), samples_median(&faster), q->blas.config);
    printf("}\n");
    fflush(stdout);
}

static void bench_shape(const shape *s, const openblas *blas, const bench_options *o) {
    const int64_t sizes[PRODUCTS][2] = {{s->dim, s->dim}, {s->kv, s->dim},  {s->kv, s->dim}, {s->dim, s->dim},
                                        {s->ffn, s->dim}, {s->ffn, s->dim}, {s->dim, s->ffn}};
    product p[PRODUCTS * LAYERS_MAX];
    problem q = {.c = {.be = o->be, .threads = o->threads, .scratch_bytes = backend_scratch(o->threads)},
                 .blas = *blas,
                 .p = p,
                 .rows = o->rows};
    size_t bytes = q.c.scratch_bytes + (size_t)(2 * 4 * o->rows * s->ffn) + (1 << 16);
    double params = 0;
    for (int i = 0; i < PRODUCTS; i++) {
        const int64_t out = sizes[i][0], in = sizes[i][1];
        bytes += (size_t)s->layers * (made_weight_bytes(FMT_NF4, out, in) + (blas->sgemm ? (size_t)(4 * out * in) : 0));
        params += (double)s->layers * (double)(out * in);
    }
    arena a;
    CHECK(!arena_open(&a, "bench", bytes), "%s", fail_text());
    q.c.scratch = arena_alloc(&a, q.c.scratch_bytes);
    q.in = filled(&a, o->rows * s->ffn), q.out = filled(&a, o->rows * s->ffn);
    for (int l = 0; l < s->layers; l++)
        for (int i = 0; i < PRODUCTS; i++, q.n++) {
            const int64_t out = sizes[i][0], in = sizes[i][1];
            p[q.n].values = blas->sgemm ? arena_array(&a, (size_t)(out * in), sizeof(float)) : NULL;
            make_weight(&p[q.n].w, &a, FMT_NF4, out, in, p[q.n].values);
        }
    const double flops = 2.0 * (double)o->rows * params;
    for (size_t d = 0; d < sizeof directions / sizeof *directions; d++) bench_direction(&q, s, d, flops, o);
    arena_close(&a);
}

int main(int argc, char **argv) {
    bench_options o = {.isa = "auto", .word = "", .rows = 1024, .runs = 5};
    openblas blas = {0};
    (void)argc;
    if (getenv("OMP_PROC_BIND") || getenv("OMP_PLACES"))
        fail(EXIT_USAGE, "OMP_PROC_BIND or OMP_PLACES is set: OpenBLAS's threads would share one core; unset them");
    if (fail_code() || bench_begin(&o, argv)) return fail_report("bench_layer");
    open_blas(&blas, o.threads);
    if (!blas.lib) fprintf(stderr, "bench_layer: no OpenBLAS here (Debian: libopenblas-dev); its ratio is left out\n");
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        if (strstr(shapes[i].name, o.word)) bench_shape(&shapes[i], &blas, &o);
    return 0;
}
