#include "model/inference.h"
#include "core/error.h"
#include "model/lora_file.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* How the base was while the adapters were trained; they must agree. */
static int trained_on(const model_source *src, const inference_options *o, base_quant *base) {
    for (int i = 0; i < o->adapters; i++) {
        lora_file f;
        int bad = lora_file_open(&f, src, o->adapter[i].dir);
        base_quant its = f.cfg.base;
        lora_file_close(&f);
        if (bad) return -1;
        if (i && its != *base)
            return fail(EXIT_USAGE,
                        "adapters: '%s' was trained on a base in %s, '%s' on one in %s: say which with --load-in-4bit",
                        o->adapter[0].dir, base_quant_names[*base], o->adapter[i].dir, base_quant_names[its]);
        *base = its;
    }
    return 0;
}

static weight_packing packing_for(const char *backend) {
    if (!backend_reads_rows16(backend)) return PACK_NONE;
    return backend_is_int8(backend) ? PACK_LOSSY : PACK_EXACT;
}

/* How the base is held: as it was said, or as the adapters were trained. */
static int choose_base(model_options *made, const model_source *src, const inference_options *o, int64_t positions) {
    base_quant base = BASE_AS_IS;
    *made = (model_options){.load_in_4bit = o->load_in_4bit,
                            .double_quant = o->double_quant,
                            .positions = positions,
                            .packing = packing_for(o->backend)};
    if (!o->adapters || o->base_given) return 0;
    if (trained_on(src, o, &base)) return -1;
    made->load_in_4bit = base != BASE_AS_IS, made->double_quant = base == BASE_NF4_DOUBLE;
    return 0;
}

int inference_base(quant_cache *quant, const model_source *src, const inference_options *o) {
    model_options base;
    if (choose_base(&base, src, o, 0)) return -1;
    if (!base.load_in_4bit) return 0;
    if (o->adapters && !o->base_given)
        fprintf(stderr,
                "note: base in %s, as the adapter was trained (--load-in-4bit=false for the weights as they are)\n",
                base_quant_names[base.double_quant ? BASE_NF4_DOUBLE : BASE_NF4]);
    quant_cache_open(quant, src, base.double_quant, &o->cache);
    return 0;
}

int inference_plan(session *s, const inference_options *o) {
    return session_plan(s, o->backend, backend_is_device(o->backend) && !o->fp32);
}

int inference_load(session *s, const quant_cache *quant, const model_source *src, const inference_options *o,
                   int64_t positions) {
    model_options base;
    if (choose_base(&base, src, o, positions)) return -1;
    base.quant = quant;
    return session_load(s, src, &base, NULL, 0, false);
}

int inference_adapter(served *a, const session *s, const model_source *src, const char *path,
                      const inference_options *o) {
    dtype type = backend_is_int8(o->backend) ? BF16 : o->adapter_type;
    lora_file f;
    adapter ad = {0};
    arena plan; /* names and shapes without memory */
    *a = (served){0};
    int bad = lora_file_open(&f, src, path);
    f.cfg.dropout = 0;
    arena_plan(&plan, "adapter");
    bad = bad || adapter_attach(&ad, &f.cfg, s->m.groups, s->m.n_groups, 0, false, &plan) || lora_file_check(&f, &ad) ||
          served_open(a, path, &ad, &f.st, s->m.groups, s->m.n_groups, type, s->k.mem);
    adapter_detach(s->m.groups, s->m.n_groups);
    adapter_close(&ad);
    arena_close(&plan);
    lora_file_close(&f);
    return bad ? -1 : 0;
}

void adapter_sum_plan(adapter_sum *a, batch *b) {
    *a = (adapter_sum){.sets = {&a->set, 1}};
    b->sets = &a->sets;
}

int adapter_sum_open(adapter_sum *a, const session *s, const model_source *src, const inference_options *o) {
    for (int i = 0; i < o->adapters; i++) {
        if (inference_adapter(&a->adapter[i], s, src, o->adapter[i].dir, o)) return -1;
        a->set.share[a->set.shares++] = (lora_share){&a->adapter[i], o->adapter[i].scale};
    }
    return 0;
}

void adapter_sum_close(adapter_sum *a) {
    for (int i = 0; i < SHARES_MAX; i++) served_close(&a->adapter[i]);
}

/* ---- scoring ---- */

static void score(scorer *r) {
    batch_find_runs(&r->b);
    tape t = session_tape(&r->s, false, false);
    t.watch = r->watch;
    r->s.k.be->zero(&r->s.k, r->sums, sizeof *r->sums);
    tensor *h = model_forward(&t, &r->s.m, &r->b, NULL);
    model_loss(&t, &r->s.m, h, &r->b, r->rows, r->target, r->row_weight, r->made, r->sums);
    arena_get(&r->s.run, r->logprob, r->made, (size_t)r->b.targets * sizeof *r->made);
}

static int build_scorer(scorer *r, const model_source *src, const inference_options *o) {
    if (inference_load(&r->s, &r->quant, src, o, r->b.rows_max)) return -1;
    r->made = arena_array(&r->s.run, (size_t)r->b.rows_max, sizeof *r->made);
    r->sums = arena_alloc(&r->s.run, sizeof *r->sums);
    return 0;
}

int scorer_open(scorer *r, const model_source *src, const inference_options *o, int longest) {
    *r = (scorer){0};
    size_t n = (size_t)longest;
    int32_t *worst = xcalloc(n, sizeof *worst);
    r->rows = xcalloc(n, sizeof *r->rows), r->target = xcalloc(n, sizeof *r->target);
    r->row_weight = xcalloc(n, sizeof *r->row_weight), r->logprob = xcalloc(n, sizeof *r->logprob);
    batch_open(&r->b, longest, 1);
    adapter_sum_plan(&r->sum, &r->b);
    batch_add(&r->b, worst, worst, longest, 0);
    free(worst);
    if (inference_base(&r->quant, src, o) || inference_plan(&r->s, o) || build_scorer(r, src, o)) return -1;
    score(r);
    session planned = r->s;
    int bad = session_open(&r->s, &planned, o->backend, o->threads);
    session_close(&planned);
    if (bad || build_scorer(r, src, o)) return -1;
    return adapter_sum_open(&r->sum, &r->s, src, o);
}

void scorer_close(scorer *r) {
    adapter_sum_close(&r->sum);
    session_close(&r->s);
    quant_cache_close(&r->quant);
    batch_close(&r->b);
    free(r->rows), free(r->target), free(r->row_weight), free(r->logprob);
    *r = (scorer){0};
}

void scorer_run(scorer *r, const int32_t *ids, int n) {
    batch_clear(&r->b);
    batch_add(&r->b, ids, ids, n, 0);
    score(r);
}
