/* One step: who is computed, in which rows, over which pages, and what comes of it.
 *
 *   1. requests that were cancelled leave
 *   2. requests that wait are admitted in order while there is a place, and pages for the whole prompt
 *   3. rows: one for each answer, then pieces of prompts in order up to batch_rows; then guesses (engine/speculate.h)
 *   4. pages for these rows in the order of arrival; where none is left, the last to come gives its pages back
 *   5. the batch; then each request whose tokens are all computed gets its next one, and goes on as long as it is what
 *      was guessed */
#include "core/error.h"
#include "core/progress.h"
#include "engine/parts.h"

#include <limits.h>
#include <stdlib.h>

/* ---- who ---- */

static void leave(engine *e, int i) {
    sequence_free(e, e->running[i]);
    for (e->n_running--; i < e->n_running; i++) e->running[i] = e->running[i + 1];
}

static void reap(engine *e) {
    const engine_event gone = {.token = -1, .finish = FINISH_CANCELLED};
    for (int i = 0; i < e->n_running;) {
        if (!e->running[i]->cancelled) {
            i++;
            continue;
        }
        event_add(e, e->running[i], gone, NULL);
        leave(e, i);
    }
    for (sequence **at = &e->waiting, *s; (s = *at);) {
        if (!s->cancelled) {
            at = &s->next;
            continue;
        }
        event_add(e, s, gone, NULL);
        *at = s->next, e->n_waiting--;
        sequence_free(e, s);
    }
}

/* Pages come back: from those that wait and hold some (forks), else from the last to come. */
static void preempt(engine *e) {
    for (sequence *s = e->waiting; s; s = s->next)
        if (s->at.pages) {
            track_clear(&s->at, &e->r);
            return;
        }
    sequence *s = e->running[--e->n_running];
    track_clear(&s->at, &e->r);
    speculation_clear(e, s);
    s->rows = s->drafts = 0, s->stats.preemptions++, e->stats.preemptions++;
    queue_insert(e, s);
}

/* A place in the order of arrival: one that was computed before comes back in front of those after it. */
static void enter(engine *e, sequence *s) {
    int i = e->n_running++;
    for (; i > 0 && e->running[i - 1]->id > s->id; i--) e->running[i] = e->running[i - 1];
    e->running[i] = s;
    s->rows = 0;
    speculation_begin(e, s);
    if (s->admitted == 0) {
        s->admitted = seconds_now();
        s->stats.queue_seconds = s->admitted - s->added;
        s->stats.cached_tokens = s->at.cached;
        e->stats.cached_tokens += s->at.cached;
    }
}

static void admit(engine *e) {
    for (sequence *s; (s = e->waiting) && e->n_running < e->o.sequences;) {
        if (!s->at.pages) track_match(&s->at, &e->r, s->key, s->token, s->n);
        int more = (s->n + KV_PAGE - 1) / KV_PAGE - s->at.pages;
        if (e->n_running && more > e->r.pool.idle) { /* alone it will fit */
            track_clear(&s->at, &e->r);
            return;
        }
        e->waiting = s->next, s->next = NULL, e->n_waiting--;
        enter(e, s);
    }
}

/* ---- rows and pages ---- */

static void choose_rows(engine *e) {
    int left = e->r.b.rows_max;
    for (int i = 0; i < e->n_running; i++) {
        sequence *s = e->running[i];
        s->drafts = 0;
        s->rows = s->n - s->at.cached == 1 && left > 0 ? 1 : 0;
        left -= s->rows;
    }
    for (int i = 0; i < e->n_running && left > 0; i++) {
        sequence *s = e->running[i];
        if (s->rows) continue;
        int more = s->n - s->at.cached;
        s->rows = more < left ? more : left;
        left -= s->rows;
    }
}

static void reserve_pages(engine *e) {
    for (int i = 0; i < e->n_running; i++) {
        sequence *s = e->running[i];
        while (s->rows && track_reserve(&s->at, &e->r, s->at.cached + s->rows)) {
            if (s->drafts) /* nobody has to go for a guess */
                s->rows -= s->drafts, s->drafts = 0;
            else
                preempt(e); /* itself, when nobody came after it: rows is then 0 */
        }
    }
    CHECK(e->n_running > 0, "no pages for a single sequence of %d", e->r.pool.n);
}

/* Whether this step computes everything before its next token. */
static bool complete(const sequence *s) { return s->rows && s->at.cached + s->rows == s->n + s->drafts; }

/* Rows of one adapter set lie together, for the kernel's sake; the order makes no difference to any of them. */
static void compute(engine *e) {
    runner_begin(&e->r);
    for (int set = -1, next; set < INT_MAX; set = next) {
        next = INT_MAX;
        for (int i = 0; i < e->n_running; i++) {
            sequence *s = e->running[i];
            if (s->set > set && s->set < next) next = s->set;
            if (s->set != set || !s->rows) continue;
            s->row = e->r.wants;
            runner_add(&e->r, &s->at, s->token, s->rows, s->set, complete(s) ? 1 + s->drafts : 0);
        }
    }
    double before = seconds_now();
    runner_run(&e->r);
    if (e->r.wants == e->r.b.rows) speculator_time(e, e->r.b.rows, seconds_now() - before);
    e->stats.steps++, e->stats.rows += e->r.b.rows;
}

/* ---- results ---- */

static finish_reason finish_of(const engine *e, const sequence *s, int32_t token) {
    if (!s->ignore_eog && e->o.tok && tokenizer_is_eog(e->o.tok, token)) return FINISH_STOP;
    return s->n >= s->most ? FINISH_LENGTH : FINISH_NOT;
}

static void take_times(sequence *s) {
    double now = seconds_now();
    if (s->first == 0) s->first = now, s->stats.prefill_seconds = now - s->admitted;
    s->stats.decode_seconds = now - s->first;
}

static const char *bytes_of(const engine *e, int32_t token, int *n) {
    *n = 0;
    return e->o.tok && !tokenizer_is_special(e->o.tok, token) ? tokenizer_bytes(e->o.tok, token, n) : "";
}

/* The next token of a sequence out of a row of logits. */
static finish_reason emit(engine *e, sequence *s, const float *logits) {
    token_logprob top[1 + LOGPROBS_MAX];
    bool stopped;
    int n;
    engine_event ev = {.logits = logits};
    ev.token = sampler_next(&e->w, logits, &s->sampling, s->token, s->prompt, s->n);
    if (s->logprobs >= 0) {
        ev.top = s->logprobs < e->w.vocab ? s->logprobs : e->w.vocab;
        sampler_logprobs(&e->w, logits, ev.token, ev.top, top);
    }
    s->token[s->n++] = ev.token;
    s->stats.completion_tokens++, e->stats.completion_tokens++;
    take_times(s);
    ev.finish = finish_of(e, s, ev.token);
    const char *bytes = bytes_of(e, ev.token, &n);
    ev.text = answer_feed(&s->text, bytes, n, ev.finish != FINISH_NOT, &ev.bytes, &stopped);
    if (stopped) ev.finish = FINISH_STOP;
    event_add(e, s, ev, s->logprobs >= 0 ? top : NULL);
    return ev.finish;
}

/* What a sequence has of the step: new tokens as long as the guesses were right. */
static finish_reason take(engine *e, sequence *s) {
    finish_reason end = FINISH_NOT;
    if (!s->rows) return end;
    if (!complete(s)) {
        track_advance(&s->at, &e->r, s->key, s->token, s->at.cached + s->rows);
        return end;
    }
    int kept = 0;
    bool right = true;
    for (int i = 0; right && end == FINISH_NOT && i <= s->drafts; i++) {
        int32_t guess = s->token[s->n]; /* emit writes over it */
        end = emit(e, s, runner_logits(&e->r, s->row + i));
        right = i < s->drafts && s->token[s->n - 1] == guess;
        kept += right;
    }
    track_advance(&s->at, &e->r, s->key, s->token, s->n - 1);
    speculation_learn(e, s, s->drafts, kept);
    return end;
}

int engine_step(engine *e) {
    e->events = e->events_taken = 0, e->text_n = e->logprob_n = 0;
    int unfinished = e->n_running + e->n_waiting;
    reap(e);
    admit(e);
    if (!e->n_running) return unfinished;
    choose_rows(e);
    speculate(e);
    reserve_pages(e);
    compute(e);
    for (int i = 0; i < e->n_running;)
        if (take(e, e->running[i]) != FINISH_NOT)
            leave(e, i);
        else
            i++;
    return unfinished;
}
