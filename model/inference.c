#include "model/inference.h"
#include "core/error.h"
#include "model/lora_file.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* How the base is held: as it was said, or as the adapter was trained. */
static int choose_base(model_options *base, const model_source *src, const inference_options *o, int64_t positions) {
    lora_file f;
    *base = (model_options){.load_in_4bit = o->load_in_4bit,
                            .double_quant = o->double_quant,
                            .positions = positions,
                            .packing = backend_is_int8(o->backend) ? PACK_LOSSY : PACK_NONE};
    if (!o->adapter || o->base_given) return 0;
    int bad = lora_file_open(&f, src, o->adapter);
    if (!bad) base->load_in_4bit = f.cfg.base != BASE_AS_IS, base->double_quant = f.cfg.base == BASE_NF4_DOUBLE;
    lora_file_close(&f);
    return bad;
}

int inference_base(quant_cache *quant, const model_source *src, const inference_options *o) {
    model_options base;
    if (choose_base(&base, src, o, 0)) return -1;
    if (!base.load_in_4bit) return 0;
    if (o->adapter && !o->base_given)
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
    lora_file f = {0};
    if (choose_base(&base, src, o, positions)) return -1;
    base.quant = quant;
    int bad = o->adapter && lora_file_open(&f, src, o->adapter);
    f.cfg.dropout = 0;
    if (!bad) bad = session_load(s, src, &base, o->adapter ? &f.cfg : NULL, 0, false);
    if (!bad && o->adapter && !s->run.planning) bad = lora_file_load(&f, &s->ad);
    lora_file_close(&f);
    return bad ? -1 : 0;
}

/* ---- scoring ---- */

static void score(scorer *r) {
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
    batch_add(&r->b, worst, worst, longest, 0);
    free(worst);
    if (inference_base(&r->quant, src, o) || inference_plan(&r->s, o) || build_scorer(r, src, o)) return -1;
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
