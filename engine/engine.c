/* Opening, requests and events; engine/schedule.c has the step. */
#include "engine/parts.h"
#include "core/error.h"
#include "core/progress.h"

#include <stdlib.h>
#include <string.h>

const char *const finish_names[FINISHES] = {"", "stop", "length", "cancelled"};

enum { CONTEXT_DEFAULT = 4096, BATCH_ROWS = 512 };

static int settle(engine_options *o) {
    int64_t most = o->src->hp.context;
    if (!o->context) o->context = (int)(most < CONTEXT_DEFAULT ? most : CONTEXT_DEFAULT);
    if (!o->sequences) o->sequences = 1;
    if (!o->batch_rows) o->batch_rows = BATCH_ROWS;
    if (o->context < 1 || o->context > most)
        return fail(EXIT_USAGE, "context: found %d, expected at most the %ld positions of %s", o->context, (long)most,
                    o->src->path);
    if (o->sequences < 1 || o->batch_rows < o->sequences)
        return fail(EXIT_USAGE, "%d sequences and a batch of %d rows: expected at least 1 sequence and as many rows",
                    o->sequences, o->batch_rows);
    int each = (o->context + KV_PAGE - 1) / KV_PAGE;
    int64_t all = (int64_t)each * o->sequences;
    if (!o->kv_pages && all > INT32_MAX / KV_PAGE)
        return fail(EXIT_USAGE, "%d sequences of %d tokens: more than the cache can count", o->sequences, o->context);
    if (!o->kv_pages) o->kv_pages = (int)all;
    if (o->kv_pages < each || o->kv_pages > INT32_MAX / KV_PAGE)
        return fail(EXIT_USAGE, "kv pages: found %d of %d tokens, expected at least %d for a context of %d",
                    o->kv_pages, KV_PAGE, each, o->context);
    return 0;
}

engine *engine_open(const engine_options *given) {
    engine *e = xcalloc(1, sizeof *e);
    engine_options *o = &e->o;
    *o = *given;
    int bad = settle(o);
    if (!bad) {
        int64_t most = (int64_t)o->sequences * o->context;
        runner_options r = {
            .src = o->src, .how = o->how, .logit_rows = o->sequences + (o->lookup || o->draft ? DRAFT_ROWS : 0)};
        r.kv = (kv_shape){.type = o->kv_type,
                          .pages = o->kv_pages,
                          .rows_max = (int)(most < o->batch_rows ? most : o->batch_rows),
                          .seqs_max = o->sequences,
                          .context = o->context};
        e->running = xcalloc((size_t)o->sequences, sizeof(sequence *));
        sampler_open(&e->w, (int)o->src->hp.vocab);
        r.sets = &e->ad.book;
        bad = runner_open(&e->r, &r) || speculator_open(e);
    }
    if (!bad && o->merge && o->how.adapters) bad = engine_merge(e, o->how.adapter, o->how.adapters);
    for (; e->alls < o->how.adapters && !bad && !o->merge; e->alls++) {
        e->all[e->alls] = (adapter_share){e->alls, o->how.adapter[e->alls].scale};
        bad = engine_adapter_load(e, o->how.adapter[e->alls].dir) < 0;
    }
    if (!bad) return e;
    engine_close(e);
    return NULL;
}

void engine_close(engine *e) {
    if (!e) return;
    for (int i = 0; i < e->n_running; i++) sequence_free(e, e->running[i]);
    for (sequence *s = e->waiting, *next; s; s = next) {
        next = s->next;
        sequence_free(e, s);
    }
    adapters_close(&e->ad);
    merged_close(&e->merged);
    speculator_close(e);
    runner_close(&e->r);
    sampler_close(&e->w);
    free(e->running), free(e->event), free(e->text), free(e->logprob);
    free(e);
}

const session *engine_session(const engine *e) { return &e->r.s; }
int engine_context(const engine *e) { return e->o.context; }

/* ---- adapters ---- */

int engine_adapter_load(engine *e, const char *path) {
    return adapters_load(&e->ad, &e->r.s, e->o.src, path, &e->o.how);
}
int engine_adapter_unload(engine *e, int adapter) { return adapters_unload(&e->ad, adapter); }

static int check_idle(const engine *e, const char *what) {
    int n = e->n_running + e->n_waiting;
    return n ? fail(EXIT_USAGE, "%s: %d requests are unfinished: cancel them or wait", what, n) : 0;
}

int engine_merge(engine *e, const adapter_choice *a, int n) {
    if (check_idle(e, "merge")) return -1;
    if (e->merged.m) return fail(EXIT_USAGE, "merge: the base has adapters in it already: take them out first");
    if (n < 1 || n > SHARES_MAX) return fail(EXIT_USAGE, "merge: %d adapters, expected 1 to %d", n, SHARES_MAX);
    if (merged_open(&e->merged, &e->r.s, e->o.src, &e->o.how, a, n)) return -1;
    adapters_new_base(&e->ad);
    return 0;
}

int engine_unmerge(engine *e) {
    if (check_idle(e, "unmerge")) return -1;
    if (!e->merged.m) return fail(EXIT_USAGE, "unmerge: nothing is merged");
    merged_close(&e->merged);
    adapters_new_base(&e->ad);
    return 0;
}

void engine_default_adapters(const engine *e, request *r) { r->adapter = e->all, r->adapters = e->alls; }

/* ---- requests ---- */

void sequence_free(engine *e, sequence *s) {
    adapters_use(&e->ad, s->set, -1);
    track_close(&s->at, &e->r);
    speculation_end(e, s);
    answer_close(&s->text);
    free((void *)s->sampling.bias), free(s->token), free(s);
}

void queue_insert(engine *e, sequence *s) {
    sequence **at = &e->waiting;
    while (*at && (*at)->id < s->id) at = &(*at)->next;
    s->next = *at, *at = s;
    e->n_waiting++;
}

static sequence *sequence_new(engine *e, const sampling *s, int set) {
    sequence *q = xcalloc(1, sizeof *q);
    token_bias *bias = s->biases ? xcalloc((size_t)s->biases, sizeof *bias) : NULL;
    if (bias) memcpy(bias, s->bias, (size_t)s->biases * sizeof *bias);
    q->id = ++e->ids;
    q->sampling = *s, q->sampling.bias = bias;
    q->token = xcalloc((size_t)e->o.context, sizeof *q->token);
    q->set = set, q->key = adapters_key(&e->ad, set);
    adapters_use(&e->ad, set, 1);
    q->added = seconds_now();
    track_open(&q->at, &e->r);
    return q;
}

int64_t engine_add(engine *e, const request *r) {
    if (r->n < 1) return fail(EXIT_USAGE, "prompt: no token in it and the tokenizer adds none");
    if (r->n >= e->o.context)
        return fail(EXIT_USAGE, "prompt: %d tokens leave no room for an answer in the context of %d", r->n,
                    e->o.context);
    for (int i = 0; i < r->n; i++)
        if (r->prompt[i] < 0 || r->prompt[i] >= e->w.vocab)
            return fail(EXIT_USAGE, "prompt: token %d is %d, which is none of this model (0 to %d)", i, r->prompt[i],
                        e->w.vocab - 1);
    if (sampling_check(&r->sampling, e->w.vocab, "")) return -1;
    if (r->logprobs > LOGPROBS_MAX)
        return fail(EXIT_USAGE, "logprobs: found %d, expected at most %d", r->logprobs, LOGPROBS_MAX);
    if (r->stops && !e->o.tok) return fail(EXIT_USAGE, "stop strings need a tokenizer");
    int set = adapters_set(&e->ad, r->adapter, r->adapters);
    if (set < -1) return -1;
    sequence *q = sequence_new(e, &r->sampling, set);
    memcpy(q->token, r->prompt, (size_t)r->n * sizeof *q->token);
    q->n = q->prompt = q->stats.prompt_tokens = r->n;
    q->most = r->max_tokens > 0 && r->max_tokens < e->o.context - r->n ? r->n + r->max_tokens : e->o.context;
    q->logprobs = r->logprobs, q->ignore_eog = r->ignore_eog;
    answer_open(&q->text, r->stop, r->stops);
    e->stats.prompt_tokens += r->n;
    queue_insert(e, q);
    return q->id;
}

static sequence *find(engine *e, int64_t id) {
    for (int i = 0; i < e->n_running; i++)
        if (e->running[i]->id == id) return e->running[i];
    for (sequence *s = e->waiting; s; s = s->next)
        if (s->id == id) return s;
    return NULL;
}

void engine_cancel(engine *e, int64_t id) {
    sequence *s = find(e, id);
    if (s) s->cancelled = true;
}

int64_t engine_fork(engine *e, int64_t id, uint64_t seed) {
    sequence *s = find(e, id);
    if (!s || s->cancelled) return fail(EXIT_USAGE, "fork: request %ld is not running", (long)id);
    sequence *q = sequence_new(e, &s->sampling, s->set);
    q->sampling.seed = seed;
    memcpy(q->token, s->token, (size_t)s->n * sizeof *q->token);
    q->n = s->n, q->prompt = s->prompt, q->most = s->most;
    q->logprobs = s->logprobs, q->ignore_eog = s->ignore_eog;
    q->stats.prompt_tokens = s->prompt, q->stats.completion_tokens = s->n - s->prompt;
    answer_copy(&q->text, &s->text);
    track_fork(&q->at, &s->at, &e->r);
    queue_insert(e, q);
    return q->id;
}

/* ---- events ---- */

static size_t append(void **buf, size_t *n, size_t *cap, size_t each, const void *data, size_t count) {
    size_t at = *n;
    if (at + count > *cap) *buf = xrealloc(*buf, *cap = 2 * (at + count), each);
    if (count) memcpy((char *)*buf + at * each, data, count * each);
    *n = at + count;
    return at;
}

void event_add(engine *e, sequence *s, engine_event ev, const token_logprob *logprobs) {
    void *text = e->text, *lp = e->logprob;
    if (e->events == e->events_cap)
        e->event = xrealloc(e->event, (size_t)(e->events_cap = 2 * e->events_cap + 8), sizeof *e->event);
    event *x = &e->event[e->events++];
    ev.id = s->id, ev.stats = s->stats, ev.logprobs = logprobs;
    *x = (event){.ev = ev};
    x->text = append(&text, &e->text_n, &e->text_cap, 1, ev.text ? ev.text : "", (size_t)ev.bytes);
    append(&text, &e->text_n, &e->text_cap, 1, "", 1);
    if (logprobs)
        x->logprobs = append(&lp, &e->logprob_n, &e->logprob_cap, sizeof *logprobs, logprobs, (size_t)ev.top + 1);
    e->text = text, e->logprob = lp;
}

bool engine_next(engine *e, engine_event *ev) {
    if (e->events_taken == e->events) return false;
    const event *x = &e->event[e->events_taken++];
    *ev = x->ev;
    ev->text = e->text + x->text;
    if (ev->logprobs) ev->logprobs = e->logprob + x->logprobs;
    return true;
}

engine_stats engine_figures(const engine *e) {
    engine_stats s = e->stats;
    s.running = e->n_running, s.waiting = e->n_waiting;
    s.pages = e->r.pool.n, s.pages_held = e->r.pool.n - e->r.pool.idle;
    return s;
}
