#include "model/generate.h"
#include "core/error.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* How the base is held: as it was said, or as the adapter was trained. */
static int choose_base(model_options *base, const inference_options *o, int64_t positions) {
    lora_config l;
    *base = (model_options){o->load_in_4bit, o->double_quant, positions, NULL};
    if (!o->adapter || o->base_given) return 0;
    if (lora_config_read(&l, o->adapter)) return -1;
    base->load_in_4bit = l.base != BASE_AS_IS, base->double_quant = l.base == BASE_NF4_DOUBLE;
    lora_config_free(&l);
    return 0;
}

/* Before the plan, so that plan and run agree. */
static int open_base(quant_cache *quant, const model_source *src, const inference_options *o) {
    model_options base;
    if (choose_base(&base, o, 0)) return -1;
    if (!base.load_in_4bit) return 0;
    if (o->adapter && !o->base_given)
        fprintf(stderr,
                "note: base in %s, as the adapter was trained (--load-in-4bit=false for the weights as they are)\n",
                base_quant_names[base.double_quant ? BASE_NF4_DOUBLE : BASE_NF4]);
    quant_cache_open(quant, src, base.double_quant, &o->cache);
    return 0;
}

/* Base and adapter over s->run; the adapter's tensors are read in the real pass only. */
static int load(session *s, const quant_cache *quant, const model_source *src, const inference_options *o,
                int64_t positions) {
    model_options base;
    lora_config l;
    if (choose_base(&base, o, positions)) return -1;
    base.quant = quant;
    if (o->adapter && lora_config_read(&l, o->adapter)) return -1;
    l.dropout = 0;
    if (session_load(s, src, &base, o->adapter ? &l : NULL, 0, false)) return -1;
    return o->adapter && !s->run.planning ? adapter_load(&s->ad, o->adapter) : 0;
}

/* ---- generation ---- */

static void evaluate(generator *g) {
    int32_t last = g->b.rows - 1;
    tape t = session_tape(&g->s, false, false);
    tensor *h = model_forward(&t, &g->s.m, &g->b, &g->kv);
    model_logits(&t, &g->s.m, h, &last, 1, mat_f32(g->logits, 1, g->s.m.hp.vocab));
}

static int build(generator *g, const model_source *src, const inference_options *o) {
    const hparams *hp = &src->hp;
    if (load(&g->s, &g->quant, src, o, g->context)) return -1;
    kv_cache_open(&g->kv, &g->s.run, (int)hp->layers, 1, g->context, hp->kv_heads * hp->head_dim, PREFILL_ROWS);
    g->logits = arena_array(&g->s.run, (size_t)hp->vocab, sizeof *g->logits);
    return 0;
}

static void append(generator *g, const int32_t *ids, int n) {
    batch_clear(&g->b);
    batch_add(&g->b, ids, NULL, n, 0);
    g->b.past[0] = g->n;
    for (int i = 0; i < n; i++) g->b.pos[i] += g->n;
    evaluate(g);
}

int generator_open(generator *g, const model_source *src, const inference_options *o, int context) {
    static const int32_t worst[PREFILL_ROWS];
    *g = (generator){.context = context};
    g->ids = xcalloc((size_t)context, sizeof *g->ids);
    g->seen = xcalloc((size_t)src->hp.vocab, sizeof *g->seen);
    g->candidates = xcalloc((size_t)src->hp.vocab, sizeof *g->candidates);
    batch_open(&g->b, PREFILL_ROWS, 1);
    if (open_base(&g->quant, src, o) || session_plan(&g->s, o->backend, false) || build(g, src, o)) return -1;
    append(g, worst, context < PREFILL_ROWS ? context : PREFILL_ROWS);
    session planned = g->s;
    kv_cache_close(&g->kv);
    int bad = session_open(&g->s, &planned, o->backend, o->threads);
    session_close(&planned);
    return bad ? -1 : build(g, src, o);
}

void generator_close(generator *g) {
    kv_cache_close(&g->kv);
    session_close(&g->s);
    quant_cache_close(&g->quant);
    batch_close(&g->b);
    free(g->ids), free(g->candidates), free(g->seen);
    *g = (generator){0};
}

void generator_rewind(generator *g, int n) {
    CHECK(n <= g->n, "rewind to %d of %d", n, g->n);
    g->n = n;
}

int generator_feed(generator *g, const int32_t *ids, int n) {
    if (n > g->context - g->n)
        return fail(EXIT_INPUT, "%d tokens and %d more do not fit into the context of %d", g->n, n, g->context);
    while (n > 0) {
        int piece = n < PREFILL_ROWS ? n : PREFILL_ROWS;
        append(g, ids, piece);
        memcpy(g->ids + g->n, ids, (size_t)piece * sizeof *ids);
        g->n += piece, ids += piece, n -= piece;
    }
    return 0;
}

int generator_resume(generator *g, const int32_t *ids, int n) {
    int same = 0;
    while (same < n - 1 && same < g->n && g->ids[same] == ids[same]) same++; /* the last one is fed for its logits */
    generator_rewind(g, same);
    return generator_feed(g, ids + same, n - same) ? -1 : n - same;
}

int32_t generator_next(generator *g, const sampling *s) {
    const size_t vocab = (size_t)g->s.m.hp.vocab;
    const float *logits = memory_view(g->s.k.mem, g->logits, g->seen, vocab * sizeof *logits);
    return sample_token(logits, (int)vocab, s, (uint64_t)g->n, g->candidates);
}

/* ---- scoring ---- */

static void score(scorer *r) {
    tape t = session_tape(&r->s, false, false);
    r->s.k.be->zero(&r->s.k, r->sums, sizeof *r->sums);
    tensor *h = model_forward(&t, &r->s.m, &r->b, NULL);
    model_loss(&t, &r->s.m, h, &r->b, r->rows, r->target, r->row_weight, r->made, r->sums);
    arena_get(&r->s.run, r->logprob, r->made, (size_t)r->b.targets * sizeof *r->made);
}

static int build_scorer(scorer *r, const model_source *src, const inference_options *o) {
    if (load(&r->s, &r->quant, src, o, r->b.rows_max)) return -1;
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
    batch_add(&r->b, worst, worst, longest, 0);
    free(worst);
    if (open_base(&r->quant, src, o) || session_plan(&r->s, o->backend, false) || build_scorer(r, src, o)) return -1;
    score(r);
    session planned = r->s;
    int bad = session_open(&r->s, &planned, o->backend, o->threads);
    session_close(&planned);
    return bad ? -1 : build_scorer(r, src, o);
}

void scorer_close(scorer *r) {
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
