/* A QLoRA run, scores and greedy text on a device against the reference backend, from the configuration to the files.
 *
 *   cuda_train BACKEND      emu, or cuda where there is one
 *
 * The model has 2 layers of width 64; 20 steps of two micro-batches with packing, checkpointing and dropout. With fp32
 * activations only the order of sums differs: losses within 1e-4, the gradients of one state within 1e-4 of their norm.
 * With bf16 every value that a layer hands on has 8 bits, a relative error of up to 2^-9 = 2e-3 that averages out in a
 * loss (found: 4e-4) and adds up over some ten roundings in a gradient (found: 2e-2). */
#include "train_log.h"
int unused_main(int argc, char **argv);
#define main unused_main
#include "../train.c"
#undef main
#include "core/json.h"
#include "core/safetensors.h"
#include "engine/engine.h"
#include "tests/scratch.h"

#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <unistd.h>
#include <cmocka.h>

#define TINY "tests/golden/tiny_train/"
#define MODEL "tests/golden/tiny_llama"
#define FP32 1e-4
#define BF16_LOSS 2e-3
#define BF16_GRADIENT 4e-2

enum { STEPS = 20, CONTEXT = 96, ANSWER = 32 };

static const char *device;

static const char base_yaml[] =
    "base_model: " MODEL "\nlora_model_dir: " TINY "adapter_init\nadapter: qlora\nlora_dropout: 0.1\n"
    "datasets:\n  - path: " TINY "rows.jsonl\n    type: tokenized\n"
    "sequence_len: 64\nsample_packing: true\nmicro_batch_size: 1\ngradient_accumulation_steps: 2\n"
    "gradient_checkpointing: true\nlearning_rate: 1e-3\nwarmup_steps: 3\nmax_steps: 20\nweight_decay: 0.01\n"
    "max_grad_norm: 0.5\nsave_steps: 10\nval_set_size: 8\neval_steps: 10\n";

/* Runs ./train on base_yaml; output to DIR/NAME, the first step's gradient to DIR/NAME.grad. */
static int run_train(const char *name, const char *backend, const char *overrides) {
    char text[1024], *argv[32] = {"train"};
    int argc = 1;
    char *yaml = xprintf("%s/train.yaml", dir), *log = xprintf("%s/%s.log", dir, name);
    snprintf(text, sizeof text, "%s --backend=%s --output_dir=%s/%s --dump-gradients=%s/%s.grad %s", yaml, backend, dir,
             name, dir, name, overrides);
    assert_int_equal(file_save(yaml, base_yaml, sizeof base_yaml - 1), 0);
    argc = add_words(argv, argc, text);
    capture c = capture_begin(log, O_TRUNC);
    fail_clear();
    int code = train_main(argc, argv);
    capture_end(&c);
    free(yaml), free(log);
    return code;
}

static void expect_ok(const char *name, const char *backend, const char *overrides) {
    int code = run_train(name, backend, overrides);
    if (!code) return;
    char command[160];
    snprintf(command, sizeof command, "tail -5 %s/%s.log", dir, name);
    if (system(command)) fail_msg("no log of %s", name);
    fail_msg("%s on %s: exit %d", overrides, backend, code);
}

typedef struct curve {
    double loss[STEPS], norm[STEPS], eval[3];
    int64_t tokens;
} curve;

static double real(const json_t *o, const char *key) { return json_number_value(json_object_get(o, key)); }

/* Every line of metrics.jsonl, in the order that ./train promises: steps, and evaluations between them. */
static curve read_curve(const char *name) {
    curve c = {0};
    file_map m;
    char *path = xprintf("%s/%s/metrics.jsonl", dir, name);
    int step = 0, evals = 0;
    assert_int_equal(file_open(&m, path), 0);
    for (const char *p = (const char *)m.data, *last = p + m.size, *end; p < last; p = end + 1) {
        end = memchr(p, '\n', (size_t)(last - p));
        json_t *row = json_parse(path, p, (size_t)(end - p), 0);
        assert_non_null(row);
        if (json_object_get(row, "eval_loss")) {
            assert_true(real(row, "step") == step && step == 10 * evals && evals < 3);
            c.eval[evals++] = real(row, "eval_loss");
        } else {
            assert_true(step < STEPS && real(row, "step") == step + 1);
            c.loss[step] = real(row, "loss"), c.norm[step] = real(row, "grad_norm");
            c.tokens += (int64_t)real(row, "tokens") + 1000000 * (int64_t)real(row, "target_tokens");
            step++;
        }
        json_decref(row);
    }
    assert_true(step == STEPS && evals == 3);
    file_close(&m);
    free(path);
    return c;
}

static double apart(double a, double b) { return fabs(a - b) / fabs(b); }

static void same_curves(const char *name, const char *want, double tolerance) {
    const curve a = read_curve(name), b = read_curve(want);
    double worst = 0, norms = 0;
    for (int i = 0; i < STEPS; i++) {
        worst = fmax(worst, apart(a.loss[i], b.loss[i])), norms = fmax(norms, apart(a.norm[i], b.norm[i]));
        if (!(apart(a.loss[i], b.loss[i]) <= tolerance))
            fail_msg("%s, step %d: loss %.9g, %s %.9g", name, i + 1, a.loss[i], want, b.loss[i]);
    }
    for (int i = 0; i < 3; i++)
        if (!(apart(a.eval[i], b.eval[i]) <= tolerance))
            fail_msg("%s: evaluation %d: %.9g, %s %.9g", name, i, a.eval[i], want, b.eval[i]);
    assert_true(a.tokens == b.tokens);
    assert_true(b.loss[0] - b.loss[STEPS - 1] > 10 * FP32); /* something was learnt that could have differed */
    print_message("  %s: losses within %.1e, gradient norms within %.1e\n", name, worst, norms);
}

/* |a - b| <= tolerance * |b| over all tensors together, and for each a tenth as strict. */
static void same_tensors(const char *name, const char *want, const char *file, double tolerance) {
    safetensors a, b;
    char *a_path = xprintf("%s/%s%s", dir, name, file), *b_path = xprintf("%s/%s%s", dir, want, file);
    if (safetensors_open(&a, a_path) || safetensors_open(&b, b_path)) fail_msg("%s", fail_text());
    assert_true(a.n == b.n && a.n > 0);
    double all = 0, all_norm = 0, worst = 0;
    for (int i = 0; i < b.n; i++) {
        const st_tensor *t = safetensors_find(&a, b.tensors[i].name);
        if (!t || t->bytes != b.tensors[i].bytes) fail_msg("%s: tensor '%s'", name, b.tensors[i].name);
        double d = 0, norm = 0;
        for (uint64_t j = 0; j < t->bytes; j += 4) {
            float x, y;
            memcpy(&x, t->data + j, 4), memcpy(&y, b.tensors[i].data + j, 4);
            d += ((double)x - (double)y) * ((double)x - (double)y), norm += (double)y * (double)y;
        }
        worst = fmax(worst, norm > 0 ? sqrt(d / norm) : d);
        all += d, all_norm += norm;
    }
    print_message("  %s%s: %.1e of the norm; worst tensor %.1e\n", name, file, sqrt(all / all_norm), worst);
    if (!(sqrt(all / all_norm) <= tolerance) || !(worst <= 10 * tolerance))
        fail_msg("%s%s: differs from %s by %.2e of its norm (worst tensor %.2e), allowed %.0e", name, file, want,
                 sqrt(all / all_norm), worst, tolerance);
    safetensors_close(&a), safetensors_close(&b);
    free(a_path), free(b_path);
}

/* Also from the state that the reference has reached after 20 steps. */
static void check_run(const char *name, const char *types, double loss, double gradient) {
    char *later = xprintf("%s_later", name);
    char *from = xprintf("%s --max_steps=1 --lora_model_dir=%s/ref", types, dir);
    expect_ok(name, device, types);
    same_curves(name, "ref", loss);
    same_tensors(name, "ref", ".grad", gradient);
    expect_ok(later, device, from);
    same_tensors(later, "ref_later", ".grad", gradient);
    free(later), free(from);
}

static void test_reference(void **state) {
    (void)state;
    char from[128];
    snprintf(from, sizeof from, "--max_steps=1 --lora_model_dir=%s/ref", dir);
    expect_ok("ref", "ref", "");
    expect_ok("ref_later", "ref", from);
}

static void test_fp32(void **state) {
    (void)state;
    check_run("fp32", "--activation_dtype=f32", FP32, FP32);
    same_tensors("fp32", "ref", "/adapter_model.safetensors", 1e-2); /* AdamW divides small gradients by their size */
    expect_ok("kept", device, "--activation_dtype=f32 --gradient_checkpointing=false --max_steps=1");
    same_tensors("kept", "fp32", ".grad", 0); /* made again are the same bits */
}

static void test_bf16(void **state) {
    (void)state;
    check_run("bf16", "", BF16_LOSS, BF16_GRADIENT); /* the default of a device */
    expect_ok("again", device, "--max_steps=1");
    same_tensors("again", "bf16", ".grad", 0);
}

static void test_adamw_8bit(void **state) {
    (void)state;
#define WIDE                                                                                                           \
    "--gradient_accumulation_steps=1 --lora_model_dir= --lora_r=63 --lora_target_modules=[gate_proj,down_proj] --optimizer=adamw_8bit"
    expect_ok("wide_ref", "ref", WIDE);
    expect_ok("wide", device, WIDE " --activation_dtype=f32");
    same_curves("wide", "wide_ref", FP32);
}

/* A copy of the first adapter whose elements are all 1e18: products of two layers overflow. */
static void huge_adapter(void) {
    file_map m;
    char *to = xprintf("%s/huge", dir), *file = xprintf("%s/adapter_model.safetensors", to);
    char *config = xprintf("cp " TINY "adapter_init/adapter_config.json %s", to);
    uint64_t header;
    const float big = 1e18f;
    assert_int_equal(file_open(&m, TINY "adapter_init/adapter_model.safetensors") | path_make_dirs(to), 0);
    char *bytes = xcalloc(m.size, 1);
    memcpy(bytes, m.data, m.size), memcpy(&header, bytes, sizeof header);
    for (size_t at = 8 + header; at < m.size; at += sizeof big) memcpy(bytes + at, &big, sizeof big);
    assert_int_equal(file_save(file, bytes, m.size) | system(config), 0);
    file_close(&m);
    free(bytes), free(to), free(file), free(config);
}

/* A loss that is not finite ends the run with 7, though a device tells a step late, before anything is saved. */
static void test_diverged(void **state) {
    (void)state;
    char *lasting = xprintf("%s/bad/adapter_model.safetensors", dir), *first = xprintf("%s/bad/checkpoint-1", dir);
    char *overrides = xprintf("--lora_model_dir=%s/huge --save_steps=1 --activation_dtype=f32", dir);
    huge_adapter();
    assert_int_equal(run_train("bad", device, overrides), EXIT_DIVERGED);
    assert_false(path_exists(lasting) || path_exists(first));
    assert_int_equal(run_train("bad", device, "--max_steps=2"), 0); /* the same device goes on */
    assert_true(path_exists(lasting));
    free(lasting), free(first), free(overrides);
}

/* ---- inference ---- */

static inference_options how(const char *backend, bool fp32) {
    char *adapter = xprintf("%s/ref", dir); /* trained on NF4: the base is held so here too */
    return (inference_options){
        .adapter = {{adapter, 1}}, .adapters = 1, .backend = backend, .fp32 = fp32, .threads = 1};
}

static void score(const char *backend, bool fp32, const int32_t *ids, int n, float *logprob) {
    model_source src;
    scorer s;
    inference_options o = how(backend, fp32);
    if (model_source_open(&src, MODEL) || scorer_open(&s, &src, &o, n)) fail_msg("%s", fail_text());
    scorer_run(&s, ids, n);
    memcpy(logprob, s.logprob, (size_t)(n - 1) * sizeof *logprob);
    scorer_close(&s);
    model_source_close(&src);
    free((void *)(uintptr_t)o.adapter[0].dir);
}

static void test_scores(void **state) {
    (void)state;
    enum { N = 60 };
    int32_t ids[N];
    float want[N], got[N], half[N];
    double error = 0, half_error = 0;
    for (int i = 0; i < N; i++) ids[i] = (i * 37 + 11) % 320;
    score("ref", true, ids, N, want), score(device, true, ids, N, got), score(device, false, ids, N, half);
    for (int i = 0; i + 1 < N; i++) {
        error = fmax(error, fabs((double)got[i] - (double)want[i]));
        half_error = fmax(half_error, fabs((double)half[i] - (double)want[i]));
    }
    print_message("  log-probabilities within %.1e (fp32), %.1e (bf16)\n", error, half_error);
    assert_true(error <= 1e-4 && half_error <= 5e-2 && half_error > 0);
}

/* Three greedy answers in one mixed batch, one of them longer than a page before it begins. */
static void generate(const char *backend, bool fp32, int32_t token[3][ANSWER]) {
    static const int lengths[3] = {1, 7, 40};
    model_source src;
    engine_options o = {.src = &src, .how = how(backend, fp32), .context = CONTEXT, .sequences = 3};
    int32_t ids[40];
    int n[3] = {0};
    if (model_source_open(&src, MODEL)) fail_msg("%s", fail_text());
    engine *e = engine_open(&o);
    if (!e) fail_msg("%s", fail_text());
    for (int i = 0; i < 3; i++) {
        request r = REQUEST_PLAIN;
        for (int k = 0; k < lengths[i]; k++) ids[k] = (k * 53 + i * 17 + 5) % 320;
        engine_default_adapters(e, &r);
        r.prompt = ids, r.n = lengths[i], r.max_tokens = ANSWER, r.sampling.temperature = 0, r.ignore_eog = true;
        assert_int_equal(engine_add(e, &r), i + 1);
    }
    for (engine_event ev; engine_step(e);)
        while (engine_next(e, &ev))
            if (ev.token >= 0) token[ev.id - 1][n[ev.id - 1]++] = ev.token;
    for (int i = 0; i < 3; i++) assert_int_equal(n[i], ANSWER);
    engine_close(e);
    model_source_close(&src);
    free((void *)(uintptr_t)o.how.adapter[0].dir);
}

static void test_greedy(void **state) {
    (void)state;
    int32_t want[3][ANSWER], got[3][ANSWER], half[3][ANSWER];
    int same = 0;
    generate("ref", true, want), generate(device, true, got), generate(device, false, half);
    for (int i = 0; i < 3; i++)
        for (int k = 0; k < ANSWER; k++) {
            if (got[i][k] != want[i][k]) fail_msg("answer %d, token %d: %d, ref %d", i, k, got[i][k], want[i][k]);
            same += half[i][k] == want[i][k];
        }
    print_message("  greedy text is the reference's; in bf16 %d of %d tokens are\n", same, 3 * ANSWER);
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_reference), cmocka_unit_test(test_fp32),
                                       cmocka_unit_test(test_bf16),      cmocka_unit_test(test_adamw_8bit),
                                       cmocka_unit_test(test_diverged),  cmocka_unit_test(test_scores),
                                       cmocka_unit_test(test_greedy)};
    if (argc < 2 || argc > 3 || !backend_is_device(argv[1]))
        return fprintf(stderr, "usage: cuda_train emu|cuda [TEST TO SKIP]\n"), 2;
    if (argc > 2) cmocka_set_skip_filter(argv[2]);
    device = argv[1];
    const int failed = cmocka_run_group_tests_name("a run on a device", tests, make_dir, remove_dir);
    printf("%d passed, %d failed\n", (int)(sizeof tests / sizeof *tests) - failed, failed);
    return failed != 0;
}
