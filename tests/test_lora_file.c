/* Adapters in both containers: GGUF LoRA files of llama.cpp's converter read as the PEFT directories they were made
 * from and written equal to them; scales that GGUF has no key for; files that are wrong in one way each. */
#include "core/gguf_write.h"
#include "core/num.h"
#include "core/rng.h"
#include "model/lora_file.h"
#include "tests/hostile_gguf.h"
#include "tests/scratch.h"

#include <math.h>
#include <unistd.h>

#define GOLDEN "tests/golden/"

typedef struct {
    model_source src;
    model m;
    arena plan, run;
    adapter ad;
} loaded;

/* Any container, through to values. -1: refused. */
static int load(loaded *l, const char *model, const char *path) {
    const model_options o = {.positions = 1};
    lora_file f = {0};
    *l = (loaded){0};
    arena_plan(&l->plan, "plan");
    if (arena_open(&l->run, "run", 4 << 20) || model_source_open(&l->src, model) ||
        model_open(&l->m, &l->src, &o, &l->plan))
        fail_msg("%s", fail_text());
    int bad = lora_file_open(&f, &l->src, path);
    if (!bad) bad = adapter_attach(&l->ad, &f.cfg, l->m.groups, l->m.n_groups, 0, false, &l->run);
    if (!bad) bad = lora_file_load(&f, &l->ad);
    lora_file_close(&f);
    return bad;
}

static void unload(loaded *l) {
    adapter_close(&l->ad);
    model_close(&l->m);
    model_source_close(&l->src);
    arena_close(&l->plan), arena_close(&l->run);
}

static void must(int bad) {
    if (bad) fail_msg("%s", fail_text());
}

static void same_adapter(const adapter *a, const adapter *b) {
    assert_int_equal(a->n_views, b->n_views);
    assert_int_equal(a->n, b->n);
    assert_true(lora_config_scale(&a->cfg) == lora_config_scale(&b->cfg));
    for (int v = 0; v < a->n_views; v++) assert_string_equal(a->views[v].name, b->views[v].name);
    assert_memory_equal(a->param, b->param, (size_t)a->n * sizeof *a->param);
}

static void test_converter(void **state) {
    (void)state;
    static const char *const families[] = {"mistral", "qwen2"};
    for (int i = 0; i < 2; i++) {
        loaded peft, theirs, back;
        gguf a, b;
        char *model = xprintf(GOLDEN "tiny_%s", families[i]), *from = xprintf("%s_lora", model),
             *golden = xprintf("%s_lora.gguf", model), *written = xprintf("%s/%s.gguf", dir, families[i]),
             *again = xprintf("%s/%s_peft", dir, families[i]);
        must(load(&peft, model, from) || load(&theirs, model, golden));
        same_adapter(&peft.ad, &theirs.ad);
        must(lora_file_write_gguf(&peft.ad, &peft.src, written) || gguf_open(&a, golden) || gguf_open(&b, written));
        assert_int_equal(a.n_tensors, b.n_tensors);
        for (int t = 0; t < a.n_tensors; t++) {
            const gguf_tensor *y = gguf_tensor_find(&b, a.tensors[t].name);
            assert_true(y && !memcmp(a.tensors[t].ne, y->ne, sizeof y->ne) && a.tensors[t].bytes == y->bytes);
            assert_memory_equal(a.tensors[t].data, y->data, y->bytes);
        }
        double x, y;
        assert_int_equal(gguf_get_real_or(&a, "adapter.lora.alpha", 0, 100, 0, &x) ||
                             gguf_get_real_or(&b, "adapter.lora.alpha", 0, 100, 0, &y),
                         0);
        assert_true(x == y);
        gguf_close(&a), gguf_close(&b);
        /* and back, with targets by the names that PEFT's own file has */
        must(lora_file_write_peft(&theirs.ad, &theirs.m, again) || load(&back, model, again));
        same_adapter(&peft.ad, &back.ad);
        assert_int_equal(back.ad.cfg.targets.n, 7);
        for (int k = 0; k < 7; k++) assert_null(strchr(back.ad.cfg.targets.item[k], '.'));
        unload(&peft), unload(&theirs), unload(&back);
        free(model), free(from), free(golden), free(written), free(again);
    }
}

/* rsLoRA: alpha / sqrt(r) comes to llama.cpp's alpha / r with the rest in B. */
static void test_rslora(void **state) {
    (void)state;
    loaded peft, back;
    char *path = xprintf("%s/rs.gguf", dir);
    must(load(&peft, GOLDEN "tiny_llama", GOLDEN "adapter_peft"));
    assert_true(peft.ad.cfg.rslora);
    must(lora_file_write_gguf(&peft.ad, &peft.src, path) || load(&back, GOLDEN "tiny_llama", path));
    assert_false(back.ad.cfg.rslora);
    assert_true(back.ad.n_loras == peft.ad.n_loras && back.ad.n == peft.ad.n);
    const double p = (double)lora_config_scale(&peft.ad.cfg), b = (double)lora_config_scale(&back.ad.cfg);
    assert_true(fabs(p - b) > 0.1);
    for (int v = 0; v < peft.ad.n_views; v++)
        for (int64_t i = 0; i < peft.ad.views[v].p.rows * peft.ad.views[v].p.cols; i++) {
            double x = (double)peft.ad.views[v].p.val[i] * (v % 2 ? p : 1),
                   y = (double)back.ad.views[v].p.val[i] * (v % 2 ? b : 1);
            assert_true(fabs(x - y) <= 2e-7 * fabs(x)); /* one rounding of B */
        }
    unload(&peft), unload(&back);
    free(path);
}

/* ---- files made by hand ---- */

typedef struct {
    const char *name;
    int64_t cols, rows;
} part;

static float value(int tensor, int64_t i) { return rng_normal(3, STREAM_TEST, (uint64_t)(1000 * tensor + i)); }

/* arch NULL: no such key; poison: the last value is NaN. */
static void write_file(const char *path, const part *p, int n, const char *arch, const char *type, float alpha,
                       bool poison) {
    gguf_meta m = {0};
    gguf_writer w;
    gguf_decl d[8];
    gguf_put_text(&m, "general.type", type), gguf_put_text(&m, "adapter.type", "lora");
    if (arch) gguf_put_text(&m, "general.architecture", arch);
    gguf_put_f32(&m, "adapter.lora.alpha", alpha);
    for (int i = 0; i < n; i++) d[i] = (gguf_decl){p[i].name, 0, 2, {p[i].cols, p[i].rows, 1, 1}};
    must(gguf_writer_open(&w, path, &m, d, n));
    for (int i = 0; i < n; i++)
        for (int64_t k = 0; k < p[i].cols * p[i].rows; k++) {
            float x = poison && i == n - 1 && k == p[i].cols * p[i].rows - 1 ? NAN : value(i, k);
            must(gguf_writer_data(&w, &x, sizeof x));
        }
    must(gguf_writer_close(&w));
    gguf_meta_free(&m);
}

#define Q_A "blk.0.attn_q.weight.lora_a"
#define Q_B "blk.0.attn_q.weight.lora_b"
#define DOWN_A "blk.1.ffn_down.weight.lora_a"
#define DOWN_B "blk.1.ffn_down.weight.lora_b"

/* Pairs of rank 2 and 3 under one alpha: each is scaled by its own alpha / r, so the padded one's B grows by 3 / 2. */
static void test_ranks(void **state) {
    (void)state;
    loaded l;
    char *path = xprintf("%s/ranks.gguf", dir);
    const part parts[] = {{Q_A, 64, 2}, {Q_B, 2, 64}, {DOWN_A, 128, 3}, {DOWN_B, 3, 64}};
    write_file(path, parts, 4, "llama", "adapter", 6, false);
    must(load(&l, GOLDEN "tiny_llama", path));
    assert_true(l.ad.cfg.r == 3 && lora_config_scale(&l.ad.cfg) == 2 && l.ad.n_loras == 2);
    const param *a = &l.ad.views[0].p, *b = &l.ad.views[1].p;
    for (int64_t i = 0; i < 64; i++) {
        assert_true(a->val[64 + i] == value(0, 64 + i) && a->val[128 + i] == 0);
        int64_t d = l.src.hp.head_dim, file = i / d * d + (i % d < d / 2 ? 2 * (i % d) : 2 * (i % d - d / 2) + 1);
        assert_true(b->val[3 * i] == 1.5f * value(1, 2 * file) && b->val[3 * i + 2] == 0);
    }
    unload(&l);
    free(path);
}

static void refuse(const part *p, int n, const char *arch, const char *type, bool poison, const char *words,
                   const char *more) {
    loaded l;
    char *path = xprintf("%s/bad.gguf", dir);
    write_file(path, p, n, arch, type, 4, poison);
    assert_int_equal(load(&l, GOLDEN "tiny_llama", path), -1);
    assert_said(EXIT_INPUT, words, more);
    unload(&l);
    free(path);
}

static void test_bad_files(void **state) {
    (void)state;
    const part good[] = {{Q_A, 64, 2}, {Q_B, 2, 64}};
    refuse(good, 1, "llama", "adapter", false, "'" Q_A "'", "has no lora_b beside it");
    refuse(good + 1, 1, "llama", "adapter", false, "'" Q_B "'", "has no lora_a beside it");
    refuse(good, 2, "qwen2", "adapter", false, "general.architecture", "found 'qwen2', expected 'llama'");
    refuse(good, 2, "llama", "model", false, "general.type", "expected 'adapter'");
    refuse(good, 2, NULL, "adapter", false, "general.architecture", "missing");
    refuse(good, 2, "llama", "adapter", true, "lora_B.weight'", "is not finite");
    refuse(good, 0, "llama", "adapter", false, "bad.gguf", "no tensors");
#define ONE(what, more, ...)                                                                                           \
    do {                                                                                                               \
        const part bad[] = {__VA_ARGS__};                                                                              \
        refuse(bad, (int)(sizeof bad / sizeof *bad), "llama", "adapter", false, what, more);                           \
    } while (0)
    ONE("'" Q_A "'", "takes 64: is it an adapter of another model?", {Q_A, 32, 2}, {Q_B, 2, 64});
    ONE("'" Q_B "'", "gives 64: is it an adapter of another model?", {Q_A, 64, 2}, {Q_B, 2, 128});
    ONE("'" Q_B "'", "is of rank 3, its lora_a of rank 2", {Q_A, 64, 2}, {Q_B, 3, 64});
    ONE("'" Q_B "'", "of at most 64", {Q_A, 64, 65}, {Q_B, 65, 64});
    ONE("'blk.9.attn_q.weight.lora_a'", "has no place", {"blk.9.attn_q.weight.lora_a", 64, 2});
    ONE("'token_embd.weight.lora_a'", "has no place", {"token_embd.weight.lora_a", 64, 2});
    ONE("'blk.0.attn_q.weight'", "is neither a lora_a nor a lora_b", {"blk.0.attn_q.weight", 64, 2});
    ONE("1 trained norms", "bad.gguf", {"blk.0.attn_norm.weight", 64, 1});
}

/* A PEFT directory of another base names the tensor too, and alpha 0 has no meaning in GGUF. */
static void test_other_refusals(void **state) {
    (void)state;
    loaded l;
    assert_int_equal(load(&l, GOLDEN "tiny_llama", GOLDEN "tiny_qwen2_lora"), -1);
    assert_said(EXIT_INPUT, "tensor 'base_model.model.model.layers.0.", "shape");
    unload(&l);
    assert_int_equal(load(&l, GOLDEN "tiny_llama", "nowhere"), -1);
    assert_said(EXIT_INPUT, "nowhere: not a directory");
    unload(&l);
    must(load(&l, GOLDEN "tiny_llama", GOLDEN "adapter_peft"));
    char *path = xprintf("%s/zero.gguf", dir);
    l.ad.cfg.alpha = 0;
    assert_int_equal(lora_file_write_gguf(&l.ad, &l.src, path), -1);
    assert_said(EXIT_INPUT, "alpha 0 cannot be written as GGUF");
    assert_false(path_exists(path));
    unload(&l);
    free(path);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_converter), cmocka_unit_test(test_rslora),         cmocka_unit_test(test_ranks),
        cmocka_unit_test(test_bad_files), cmocka_unit_test(test_other_refusals),
    };
    return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
