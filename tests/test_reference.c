/* What the reference backend computes, against formulas in double: the plain mathematics, written another way.
 * Derivatives are central differences of that double function, so that no derivative formula stands on both sides.
 * Tolerances are relative to the largest value of the compared vector: fp32 rounding of n-term sums, 1e-6 for the short
 * sums used here, and 2e-6 where exponentials of scores enter. Differences are taken at 1e-5 and are good to 1e-9. */
#include "core/json.h"
#include "core/rng.h"
#include "kernels/backend.h"
#include "kernels/ref/ref.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static kctx ctx = {.be = &backend_ref, .threads = 1};

enum { MAX = 4096 };
typedef struct values {
    int n;
    float f[MAX];
    double d[MAX];
} values; /* the same numbers in both precisions */

static void fill(values *x, int n, uint64_t stream) {
    assert_true(n <= MAX);
    x->n = n;
    for (int i = 0; i < n; i++) x->d[i] = x->f[i] = rng_normal(11, STREAM_TEST, stream << 32 | (uint64_t)i);
}

static void close_to(const char *what, const float *got, const double *want, int n, double tolerance) {
    double top = 0;
    for (int i = 0; i < n; i++) top = fmax(top, fabs(want[i]));
    for (int i = 0; i < n; i++)
        if (!(fabs(got[i] - want[i]) <= tolerance * top))
            fail_msg("%s[%d]: %.9g, expected %.9g", what, i, (double)got[i], want[i]);
}

/* d loss / d x by central differences, loss = dot(weights, f(x)) where f reads x->d */
typedef void function(double *y, void *args);

static void differences(double *slope, values *x, const values *dy, function *f, void *args) {
    double *a = test_malloc(MAX * sizeof *a), *b = test_malloc(MAX * sizeof *b);
    for (int i = 0; i < x->n; i++) {
        const double keep = x->d[i], h = 1e-5;
        x->d[i] = keep + h, f(a, args);
        x->d[i] = keep - h, f(b, args);
        x->d[i] = keep, slope[i] = 0;
        for (int k = 0; k < dy->n; k++) slope[i] += dy->d[k] * (a[k] - b[k]) / (2 * h);
    }
    test_free(a), test_free(b);
}

static void exp_is_accurate(void **state) {
    (void)state;
    for (int i = 0; i < 128000; i++) {
        const double x = -87.3 + i * (88.69 + 87.3) / 128000;
        double want = exp((float)x);
        if (fabs((double)ref_exp((float)x) / want - 1) > 0x1p-23) fail_msg("exp(%.9g)", x);
    }
    assert_true(ref_exp(0) == 1 && ref_exp(-0.0f) == 1 && ref_exp(-INFINITY) == 0 && ref_exp(-1e30f) == 0);
    assert_true(isinf(ref_exp(INFINITY)) && isinf(ref_exp(89)) && isnan(ref_exp(NAN)));
}

/* norm */

enum { N_ROWS = 3, N_COLS = 37 };
typedef struct {
    values x, g, dy;
} norm_args;

static void norm_double(double *y, void *args) {
    const norm_args *a = args;
    for (int i = 0; i < N_ROWS; i++) {
        double mean = 0;
        for (int k = 0; k < N_COLS; k++) mean += pow(a->x.d[i * N_COLS + k], 2) / N_COLS;
        for (int k = 0; k < N_COLS; k++) y[i * N_COLS + k] = a->x.d[i * N_COLS + k] / sqrt(mean + 1e-3) * a->g.d[k];
    }
}

static void norm_is_right(void **state) {
    (void)state;
    static norm_args a;
    static float y[N_ROWS * N_COLS], dx[N_ROWS * N_COLS], rstd[N_ROWS];
    static double want[N_ROWS * N_COLS];
    fill(&a.x, N_ROWS * N_COLS, 1), fill(&a.g, N_COLS, 2), fill(&a.dy, N_ROWS * N_COLS, 3);
    mat x = mat_f32(a.x.f, N_ROWS, N_COLS), dy = mat_f32(a.dy.f, N_ROWS, N_COLS);
    rmsnorm_fwd_ref(&ctx, mat_f32(y, N_ROWS, N_COLS), rstd, x, a.g.f, 1e-3f);
    norm_double(want, &a);
    close_to("y", y, want, N_ROWS * N_COLS, 1e-6);
    rmsnorm_bwd_ref(&ctx, mat_f32(dx, N_ROWS, N_COLS), dy, x, rstd, a.g.f);
    differences(want, &a.x, &a.dy, norm_double, &a);
    close_to("dx", dx, want, N_ROWS * N_COLS, 1e-6);
    rmsnorm_bwd_ref(&ctx, mat_f32(dx, N_ROWS, N_COLS), dy, x, rstd, a.g.f); /* += */
    for (int i = 0; i < N_ROWS * N_COLS; i++) want[i] *= 2;
    close_to("2 dx", dx, want, N_ROWS * N_COLS, 1e-6);
}

/* gated unit */

typedef struct {
    values gate, up, dy;
    activation act;
} glu_args;

static void glu_double(double *y, void *args) {
    const glu_args *a = args;
    for (int i = 0; i < a->gate.n; i++) {
        double g = a->gate.d[i], gelu = 0.5 * g * (1 + tanh(sqrt(2 / M_PI) * (g + 0.044715 * g * g * g)));
        y[i] = (a->act == ACT_SILU ? g / (1 + exp(-g)) : gelu) * a->up.d[i];
    }
}

static void glu_is_right(void **state) {
    (void)state;
    enum { N = 60 };
    static glu_args a;
    static float y[N], dgate[N], dup[N];
    static double want[N];
    for (a.act = ACT_SILU; a.act <= ACT_GELU_TANH; a.act++) {
        fill(&a.gate, N, 4), fill(&a.up, N, 5), fill(&a.dy, N, 6);
        for (int i = 0; i < N; i++) a.gate.d[i] = a.gate.f[i] *= 3;
        mat gate = mat_f32(a.gate.f, 2, 30), up = mat_f32(a.up.f, 2, 30);
        glu_fwd_ref(&ctx, mat_f32(y, 2, 30), gate, up, a.act);
        glu_double(want, &a);
        close_to("y", y, want, N, 1e-6);
        glu_bwd_ref(&ctx, mat_f32(dgate, 2, 30), mat_f32(dup, 2, 30), mat_f32(a.dy.f, 2, 30), gate, up, a.act);
        differences(want, &a.gate, &a.dy, glu_double, &a);
        close_to("dgate", dgate, want, N, 1e-6);
        differences(want, &a.up, &a.dy, glu_double, &a);
        close_to("dup", dup, want, N, 1e-6);
    }
}

/* rotary embedding: a complex number times e^(i angle); the other sign turns it back */
static void rope_is_a_rotation(void **state) {
    (void)state;
    enum { DIM = 10, HEADS = 2, ROWS = 5, COLS = DIM * HEADS };
    static values x;
    static float cosines[8 * DIM / 2], sines[8 * DIM / 2], y[ROWS * COLS];
    static double want[ROWS * COLS];
    const int32_t pos[ROWS] = {0, 7, 3, 3, 1};
    fill(&x, ROWS * COLS, 7);
    for (int p = 0; p < 8; p++)
        for (int d = 0; d < DIM / 2; d++) {
            double angle = p * pow(100, -2.0 * d / DIM);
            cosines[p * DIM / 2 + d] = (float)cos(angle), sines[p * DIM / 2 + d] = (float)sin(angle);
        }
    const rope r = {cosines, sines, DIM, 8};
    for (int i = 0; i < ROWS * COLS; i++) {
        int d = i % DIM, pair = d % (DIM / 2), low = i - d + pair;
        int32_t at = pos[i / COLS];
        double angle = at * pow(100, -2.0 * pair / DIM), re = x.d[low], im = x.d[low + DIM / 2];
        want[i] = d < DIM / 2 ? re * cos(angle) - im * sin(angle) : re * sin(angle) + im * cos(angle);
    }
    rope_fwd_ref(&ctx, mat_f32(y, ROWS, COLS), mat_f32(x.f, ROWS, COLS), pos, &r, 1);
    close_to("y", y, want, ROWS * COLS, 1e-6);
    rope_fwd_ref(&ctx, mat_f32(y, ROWS, COLS), mat_f32(y, ROWS, COLS), pos, &r, -1);
    close_to("x", y, x.d, ROWS * COLS, 1e-6);
}

/* attention over two sequences, the second after cached keys: a full matrix of weights per head */

enum { HEADS = 4, KV = 2, DIM = 6, A_ROWS = 11, A_KEYS = 16, A_Q = HEADS * DIM, A_KV = KV * DIM };
typedef struct {
    values q, k, v, dout;
    attn a;
} attn_args;

static void attention_double(double *y, void *args) {
    const attn_args *x = args;
    const attn *a = &x->a;
    for (int n = 0; n < a->seqs; n++)
        for (int i = a->start[n]; i < a->start[n + 1]; i++)
            for (int h = 0; h < HEADS; h++) {
                double w[A_KEYS], sum = 0;
                int number = a->past[n] + i - a->start[n], at = h / (HEADS / KV) * DIM;
                for (int j = 0; j <= number; j++) {
                    const double *k = x->k.d + (a->first[n] + j) * A_KV + at, *q = x->q.d + i * A_Q + h * DIM;
                    w[j] = 0;
                    for (int d = 0; d < DIM; d++) w[j] += k[d] * q[d];
                    w[j] = a->window && j <= number - a->window ? 0 : exp(w[j] * (double)a->scale);
                    sum += w[j];
                }
                for (int d = 0; d < DIM; d++) {
                    double *o = &y[i * A_Q + h * DIM + d];
                    *o = 0;
                    for (int j = 0; j <= number; j++) *o += w[j] / sum * x->v.d[(a->first[n] + j) * A_KV + at + d];
                }
            }
}

static void attention_is_right(void **state) {
    (void)state;
    static attn_args x;
    static float o[A_ROWS * A_Q], lse[A_ROWS * HEADS];
    static double want[A_ROWS * A_Q];
    const int32_t start[] = {0, 5, A_ROWS}, past[] = {0, 4}, first[] = {0, 6};
    for (int window = 0; window <= 4; window += 4) {
        static float dq[A_ROWS * A_Q], dk[A_KEYS * A_KV], dv[A_KEYS * A_KV];
        memset(dq, 0, sizeof dq), memset(dk, 0, sizeof dk), memset(dv, 0, sizeof dv);
        x.a = (attn){HEADS, KV, DIM, 0.5f, window, 2, start, past, first};
        fill(&x.q, A_ROWS * A_Q, 8), fill(&x.k, A_KEYS * A_KV, 9), fill(&x.v, A_KEYS * A_KV, 10);
        fill(&x.dout, A_ROWS * A_Q, 12);
        mat q = mat_f32(x.q.f, A_ROWS, A_Q), k = mat_f32(x.k.f, A_KEYS, A_KV), v = mat_f32(x.v.f, A_KEYS, A_KV);
        mat out = mat_f32(o, A_ROWS, A_Q);
        attn_fwd_ref(&ctx, out, lse, q, k, v, &x.a);
        attention_double(want, &x);
        close_to("o", o, want, A_ROWS * A_Q, 2e-6);
        attn_bwd_ref(&ctx, mat_f32(dq, A_ROWS, A_Q), mat_f32(dk, A_KEYS, A_KV), mat_f32(dv, A_KEYS, A_KV),
                     mat_f32(x.dout.f, A_ROWS, A_Q), q, k, v, out, lse, &x.a);
        differences(want, &x.q, &x.dout, attention_double, &x);
        close_to("dq", dq, want, A_ROWS * A_Q, 2e-6);
        differences(want, &x.k, &x.dout, attention_double, &x);
        close_to("dk", dk, want, A_KEYS * A_KV, 2e-6);
        differences(want, &x.v, &x.dout, attention_double, &x);
        close_to("dv", dv, want, A_KEYS * A_KV, 2e-6);
    }
}

/* products with a matrix, head */

enum { TOKENS = 5, OUT = 13, IN = 17, WORDS = 800 };
typedef struct {
    values x, w;
    int words;
    const int32_t *target;
} product_args;

static void product_double(double *y, void *args) {
    const product_args *a = args;
    for (int i = 0; i < TOKENS; i++)
        for (int o = 0; o < OUT; o++) {
            y[i * OUT + o] = 0;
            for (int k = 0; k < IN; k++) y[i * OUT + o] += a->x.d[i * IN + k] * a->w.d[o * IN + k];
        }
}

static void products_are_right(void **state) {
    (void)state;
    static product_args a;
    static values dy;
    static float y[TOKENS * OUT], dx[TOKENS * IN], dw[OUT * IN];
    static double want[OUT * IN];
    fill(&a.x, TOKENS * IN, 13), fill(&a.w, OUT * IN, 14), fill(&dy, TOKENS * OUT, 15);
    const weight w = weight_f32(a.w.f, OUT, IN);
    weight_fwd_ref(&ctx, mat_f32(y, TOKENS, OUT), mat_f32(a.x.f, TOKENS, IN), &w);
    product_double(want, &a);
    close_to("y", y, want, TOKENS * OUT, 1e-6);
    weight_bwd_ref(&ctx, mat_f32(dx, TOKENS, IN), mat_f32(dy.f, TOKENS, OUT), &w);
    differences(want, &a.x, &dy, product_double, &a);
    close_to("dx", dx, want, TOKENS * IN, 1e-6);
    weight_grad_ref(&ctx, mat_f32(dw, OUT, IN), mat_f32(dy.f, TOKENS, OUT), mat_f32(a.x.f, TOKENS, IN));
    differences(want, &a.w, &dy, product_double, &a);
    close_to("dw", dw, want, OUT * IN, 1e-6);
}

enum { H_DIM = 5 };

static void head_double(double *y, void *args) {
    const product_args *a = args;
    for (int i = 0; i < TOKENS; i++) {
        double sum = 0, hit = 0;
        for (int j = 0; j < WORDS; j++) {
            double s = 0;
            for (int k = 0; k < H_DIM; k++) s += a->x.d[i * H_DIM + k] * a->w.d[j * H_DIM + k];
            sum += exp(s);
            if (j == a->target[i]) hit = s;
        }
        y[i] = hit - log(sum);
    }
}

static void head_is_right(void **state) {
    (void)state;
    static product_args a;
    static float logprob[TOKENS], dh[TOKENS * H_DIM];
    static double want[TOKENS * H_DIM];
    static values minus;
    const int32_t target[TOKENS] = {0, 383, 384, 799, 5};
    a.target = target, minus.n = TOKENS;
    for (int i = 0; i < TOKENS; i++) minus.d[i] = -1;
    fill(&a.x, TOKENS * H_DIM, 16), fill(&a.w, WORDS * H_DIM, 17);
    const weight w = weight_f32(a.w.f, WORDS, H_DIM);
    head_loss_ref(&ctx, logprob, mat_f32(dh, TOKENS, H_DIM), mat_f32(a.x.f, TOKENS, H_DIM), &w, target);
    head_double(want, &a);
    close_to("logprob", logprob, want, TOKENS, 1e-6);
    differences(want, &a.x, &minus, head_double, &a);
    close_to("dh", dh, want, TOKENS * H_DIM, 2e-6);
}

static void sums_are_right(void **state) {
    (void)state;
    const float logprob[] = {-1, -2, -0.5f}, w[] = {1, 0.5f, 2};
    step_sums s = {.loss = 1};
    loss_sum_ref(&ctx, &s, logprob, w, 3);
    assert_true(s.loss == 4 && s.weight == 3.5 && s.targets == 3);
    float *x = test_malloc(9001 * sizeof *x);
    double want = 3;
    for (int i = 0; i < 9001; i++) x[i] = rng_normal(12, STREAM_TEST, (uint64_t)i), want += (double)x[i] * (double)x[i];
    s.sumsq = 3;
    sumsq_ref(&ctx, &s, x, 9001);
    assert_true(fabs(s.sumsq / want - 1) < 1e-13 && s.nonfinite == 0);
    x[17] = NAN, x[9000] = -INFINITY;
    sumsq_ref(&ctx, &s, x, 9001);
    assert_int_equal(s.nonfinite, 2);
    test_free(x);
}

/* ten steps in double; one step of fp32 rounds at 6e-8, so 1e-6 */
static void adamw_is_right(void **state) {
    (void)state;
    enum { N = 40 };
    static values p, g;
    static float m[N], v[N];
    static double dm[N], dv[N];
    const double lr = 1e-2, b1 = 0.9, b2 = 0.999, eps = 1e-8, decay = 0.1;
    fill(&p, N, 18);
    for (int t = 1; t <= 10; t++) {
        fill(&g, N, 18 + (uint64_t)t);
        const step_sums sums = {.grad_scale = 0.25};
        adamw_hp hp = {lr, b1, b2, eps, decay, 1 - pow(b1, t), sqrt(1 - pow(b2, t)), &sums};
        adamw_ref(&ctx, p.f, g.f, m, v, N, &hp);
        for (int i = 0; i < N; i++) {
            double grad = g.d[i] / 4;
            dm[i] = b1 * dm[i] + (1 - b1) * grad, dv[i] = b2 * dv[i] + (1 - b2) * grad * grad;
            double mean = dm[i] / (1 - pow(b1, t)), var = dv[i] / (1 - pow(b2, t));
            p.d[i] = p.d[i] - lr * decay * p.d[i] - lr * mean / (sqrt(var) + eps);
        }
    }
    close_to("p", p.f, p.d, N, 1e-6);
    close_to("m", m, dm, N, 1e-6);
    close_to("v", v, dv, N, 1e-6);
}

/* the kept share, the scale, and independence of where a row stands */
static void dropout_is_right(void **state) {
    (void)state;
    enum { ROWS = 64, COLS = 50 };
    static float x[ROWS * COLS], y[ROWS * COLS], z[COLS];
    uint64_t sample[ROWS];
    int32_t pos[ROWS], kept = 0, same = 0;
    for (int i = 0; i < ROWS; i++) sample[i] = 900 + (uint64_t)i / 8, pos[i] = i % 8;
    for (int i = 0; i < ROWS * COLS; i++) x[i] = 1 + (float)i;
    dropout d = {0.3f, 42, 1, 2, sample, pos};
    dropout_fwd_ref(&ctx, mat_f32(y, ROWS, COLS), mat_f32(x, ROWS, COLS), &d);
    for (int i = 0; i < ROWS * COLS; i++) {
        kept += y[i] != 0;
        assert_true(y[i] == 0 || fabsf(y[i] / x[i] * 0.7f - 1) < 1e-6f);
    }
    assert_true(abs(kept - 2240) < 104); /* 4 sigma of a binomial of 3200 x 0.7 */
    for (int i = 1; i < ROWS; i++)
        for (int k = 0; k < COLS; k++) same += (y[i * COLS + k] == 0) == (y[k] == 0);
    assert_true(abs(same - 1827) < 120); /* 0.58 of 3150 pairs agree when rows are independent */
    d.sample += 37, d.pos += 37;
    dropout_fwd_ref(&ctx, mat_f32(z, 1, COLS), mat_f32(x + 37 * COLS, 1, COLS), &d);
    assert_memory_equal(z, y + 37 * COLS, sizeof z);
    d.epoch++;
    dropout_fwd_ref(&ctx, mat_f32(z, 1, COLS), mat_f32(x + 37 * COLS, 1, COLS), &d);
    assert_memory_not_equal(z, y + 37 * COLS, sizeof z);
}

/* torch */

/* array `key` of case `name`, rounded to float (inputs are exact in it) */
static values *golden(const json_t *root, const char *name, const char *key) {
    const json_t *a = json_object_get(json_object_get(root, name), key);
    values *x = test_calloc(1, sizeof *x);
    x->n = (int)json_array_size(a);
    assert_true(x->n > 0 && x->n <= MAX);
    for (int i = 0; i < x->n; i++) x->d[i] = json_real_value(json_array_get(a, (size_t)i)), x->f[i] = (float)x->d[i];
    return x;
}

static void equal_golden(const json_t *root, const char *name, const char *key, const float *got) {
    values *want = golden(root, name, key);
    close_to(key, got, want->d, want->n, 2e-6);
    test_free(want);
}

static void torch_agrees_on_layernorm(const json_t *root) {
    values *x = golden(root, "layernorm", "x"), *g = golden(root, "layernorm", "g"),
           *b = golden(root, "layernorm", "b");
    values *dy = golden(root, "layernorm", "dy");
    float y[60], dx[60] = {0}, stats[6];
    layernorm_fwd_ref(&ctx, mat_f32(y, 3, 20), stats, mat_f32(x->f, 3, 20), g->f, b->f, 1e-3f);
    layernorm_bwd_ref(&ctx, mat_f32(dx, 3, 20), mat_f32(dy->f, 3, 20), mat_f32(x->f, 3, 20), stats, g->f);
    equal_golden(root, "layernorm", "y", y), equal_golden(root, "layernorm", "dx", dx);
    test_free(x), test_free(g), test_free(b), test_free(dy);
}

static void torch_agrees_on_rows(const json_t *root) {
    values *x = golden(root, "norm", "x"), *g = golden(root, "norm", "g"), *dy = golden(root, "norm", "dy");
    float y[60], dx[60] = {0}, rstd[3];
    rmsnorm_fwd_ref(&ctx, mat_f32(y, 3, 20), rstd, mat_f32(x->f, 3, 20), g->f, 1e-3f);
    rmsnorm_bwd_ref(&ctx, mat_f32(dx, 3, 20), mat_f32(dy->f, 3, 20), mat_f32(x->f, 3, 20), rstd, g->f);
    equal_golden(root, "norm", "y", y), equal_golden(root, "norm", "dx", dx);
    test_free(x), test_free(g), test_free(dy);
    torch_agrees_on_layernorm(root);
    const char *const names[] = {[ACT_SILU] = "silu", [ACT_GELU_TANH] = "gelu"};
    for (activation act = ACT_SILU; act <= ACT_GELU_TANH; act++) {
        values *gate = golden(root, names[act], "gate"), *up = golden(root, names[act], "up");
        float dgate[34], dup[34];
        dy = golden(root, names[act], "dy");
        mat gates = mat_f32(gate->f, 2, 17), ups = mat_f32(up->f, 2, 17);
        glu_fwd_ref(&ctx, mat_f32(y, 2, 17), gates, ups, act);
        glu_bwd_ref(&ctx, mat_f32(dgate, 2, 17), mat_f32(dup, 2, 17), mat_f32(dy->f, 2, 17), gates, ups, act);
        equal_golden(root, names[act], "y", y);
        equal_golden(root, names[act], "dgate", dgate), equal_golden(root, names[act], "dup", dup);
        test_free(gate), test_free(up), test_free(dy);
    }
}

static void torch_agrees_on_attention(const json_t *root, const char *name, int window) {
    enum { ROWS = 9 };
    const int32_t start[] = {0, ROWS}, zero[] = {0};
    const attn a = {HEADS, KV, DIM, 0.5f, window, 1, start, zero, zero};
    values *x[] = {golden(root, name, "q"), golden(root, name, "k"), golden(root, name, "v"),
                   golden(root, name, "dout")};
    float o[ROWS * A_Q], dq[ROWS * A_Q] = {0}, dk[ROWS * A_KV] = {0}, dv[ROWS * A_KV] = {0}, lse[ROWS * HEADS];
    mat q = mat_f32(x[0]->f, ROWS, A_Q), k = mat_f32(x[1]->f, ROWS, A_KV), v = mat_f32(x[2]->f, ROWS, A_KV);
    attn_fwd_ref(&ctx, mat_f32(o, ROWS, A_Q), lse, q, k, v, &a);
    attn_bwd_ref(&ctx, mat_f32(dq, ROWS, A_Q), mat_f32(dk, ROWS, A_KV), mat_f32(dv, ROWS, A_KV),
                 mat_f32(x[3]->f, ROWS, A_Q), q, k, v, mat_f32(o, ROWS, A_Q), lse, &a);
    equal_golden(root, name, "o", o), equal_golden(root, name, "dq", dq);
    equal_golden(root, name, "dk", dk), equal_golden(root, name, "dv", dv);
    for (int i = 0; i < 4; i++) test_free(x[i]);
}

static void torch_agrees(void **state) {
    (void)state;
    json_t *root = json_read("tests/golden/kernels.json");
    assert_non_null(root);
    torch_agrees_on_rows(root);
    torch_agrees_on_attention(root, "attention", 0);
    torch_agrees_on_attention(root, "attention_window", 4);
    values *h = golden(root, "head", "h"), *w = golden(root, "head", "w");
    const int32_t target[] = {0, 383, 384, 699};
    const weight words = weight_f32(w->f, 700, 5);
    float logprob[4], dh[20];
    head_loss_ref(&ctx, logprob, mat_f32(dh, 4, 5), mat_f32(h->f, 4, 5), &words, target);
    equal_golden(root, "head", "logprob", logprob), equal_golden(root, "head", "dh", dh);
    test_free(h), test_free(w);
    json_decref(root);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(exp_is_accurate),    cmocka_unit_test(norm_is_right),
        cmocka_unit_test(glu_is_right),       cmocka_unit_test(rope_is_a_rotation),
        cmocka_unit_test(attention_is_right), cmocka_unit_test(products_are_right),
        cmocka_unit_test(head_is_right),      cmocka_unit_test(sums_are_right),
        cmocka_unit_test(adamw_is_right),     cmocka_unit_test(dropout_is_right),
        cmocka_unit_test(torch_agrees),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
