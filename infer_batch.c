#include "infer_batch.h"
#include "core/arena.h"
#include "core/error.h"
#include "core/progress.h"
#include "data/jsonl.h"

#include <stdlib.h>
#include <string.h>

typedef struct item {
    int64_t id; /* of its request; 0: it has none */
    char *text; /* n bytes; heap */
    size_t n;
    json_t *logprobs, *done; /* done: what is to be printed */
} item;

typedef struct job {
    app *a;
    jsonl in;
    item *item; /* of the rows [printed, read) */
    int printed, read, running;
    bool end;
    int64_t prompt, cached, completion;
    adapter_share all[SHARES_MAX];
    int adapters;
} job;

static item *item_of(job *b, int64_t id) {
    for (int i = 0; i < b->read - b->printed; i++)
        if (b->item[i].id == id) return &b->item[i];
    return NULL;
}

/* ---- a row to a request ---- */

typedef struct row_parts {
    infer_options o; /* of this row */
    const char *stop[STOPS_MAX];
    adapter_share share[SHARES_MAX];
    token_list ids;
} row_parts;

static int take_number(const char *where, const json_t *row, const char *key, double lo, double hi, double *x) {
    const json_t *v = json_object_get(row, key);
    if (!v) return 0;
    if (!json_is_number(v) || !(json_number_value(v) >= lo && json_number_value(v) <= hi))
        return fail(EXIT_INPUT, "%s: key '%s': expected a number from %g to %g", where, key, lo, hi);
    *x = json_number_value(v);
    return 0;
}

static int take_numbers(const char *where, const json_t *row, infer_options *o) {
    const struct {
        const char *key;
        double lo, hi;
        int64_t *whole;
        double *real;
    } keys[] = {{"max_tokens", 1, 1 << 28, &o->max_tokens, NULL},
                {"top_k", 0, 1 << 28, &o->top_k, NULL},
                {"seed", 0, 9e15, &o->seed, NULL},
                {"temperature", 0, 100, NULL, &o->sampling.temperature},
                {"top_p", 0, 1, NULL, &o->sampling.top_p},
                {"min_p", 0, 1, NULL, &o->sampling.min_p}};
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        double x = keys[i].whole ? (double)*keys[i].whole : *keys[i].real;
        if (take_number(where, row, keys[i].key, keys[i].lo, keys[i].hi, &x)) return -1;
        if (keys[i].whole)
            *keys[i].whole = (int64_t)x;
        else
            *keys[i].real = x;
    }
    return 0;
}

static int take_stops(const char *where, const json_t *row, row_parts *p) {
    const json_t *v = json_object_get(row, "stop");
    size_t n = json_is_array(v) ? json_array_size(v) : v ? 1 : 0;
    if (!v) return 0;
    if (n > STOPS_MAX)
        return fail(EXIT_INPUT, "%s: key 'stop': found %zu texts, expected at most %d", where, n, STOPS_MAX);
    for (size_t i = 0; i < n; i++) {
        p->stop[i] = json_string_value(json_is_array(v) ? json_array_get(v, i) : v);
        if (!p->stop[i]) return fail(EXIT_INPUT, "%s: key 'stop': expected a text or an array of texts", where);
    }
    memcpy(p->o.stop, p->stop, sizeof p->stop);
    p->o.stops = (int)n;
    return 0;
}

static int take_adapters(const job *b, const char *where, const json_t *row, row_parts *p, request *q) {
    const json_t *v = json_object_get(row, "adapter");
    size_t n = json_is_array(v) ? json_array_size(v) : v && !json_is_string(v) ? 1 : 0;
    if (!v) return 0;
    q->adapter = p->share, q->adapters = 0;
    if (json_is_string(v) && strcmp(json_string_value(v), "base"))
        return fail(EXIT_INPUT, "%s: key 'adapter': expected a number of --adapter, an array of them, or \"base\"",
                    where);
    for (size_t i = 0; i < n && i < SHARES_MAX; i++) {
        const json_t *one = json_is_array(v) ? json_array_get(v, i) : v;
        json_int_t k = json_integer_value(one);
        if (!json_is_integer(one) || k < 0 || k >= b->adapters)
            return fail(EXIT_INPUT, "%s: key 'adapter': expected numbers below %d: there are so many --adapter", where,
                        b->adapters);
        p->share[q->adapters++] = b->all[k];
    }
    return 0;
}

static int take_prompt(const job *b, const char *where, const json_t *row, row_parts *p) {
    const json_t *text = json_object_get(row, "prompt"), *turns = json_object_get(row, "messages");
    const app *a = b->a;
    if (json_is_string(text) && !turns)
        return tokenizer_encode(a->tok, json_string_value(text), (int64_t)json_string_length(text),
                                TOKENIZE_SPECIAL | TOKENIZE_ADD, &p->ids);
    if (!json_is_array(turns) || text)
        return fail(EXIT_INPUT, "%s: expected either 'prompt', a text, or 'messages', an array of turns", where);
    if (!a->chat)
        return fail(EXIT_INPUT, "%s: key 'messages': the model has no chat template: give --chat-template", where);
    json_t *all = json_array();
    const char *first = json_string_value(json_object_get(json_array_get(turns, 0), "role"));
    if (a->o.system && !(first && !strcmp(first, "system")))
        json_array_append_new(all, json_pack("{s:s,s:s}", "role", "system", "content", a->o.system));
    json_array_extend(all, (json_t *)(uintptr_t)turns);
    const json_t *tools = json_object_get(row, "tools");
    int bad = app_encode_chat(a, all, json_is_array(tools) ? tools : NULL, &p->ids);
    json_decref(all);
    return bad;
}

static int64_t add_row(job *b, const char *where, const json_t *row) {
    row_parts p = {.o = b->a->o};
    int64_t id = -1;
    if (!take_numbers(where, row, &p.o) && !take_stops(where, row, &p) && !take_prompt(b, where, row, &p)) {
        request q = infer_request(&p.o);
        engine_default_adapters(b->a->e, &q);
        q.prompt = p.ids.id, q.n = (int)p.ids.n;
        if (!take_adapters(b, where, row, &p, &q)) id = engine_add(b->a->e, &q);
    }
    token_list_free(&p.ids);
    return id;
}

/* ---- the whole ---- */

/* Rows are read as there is room for them, so that a file may be longer than memory. */
static int fill(job *b) {
    while (!b->end && b->running < b->a->o.parallel) {
        json_t *row;
        int more = jsonl_next_object(&b->in, &row);
        if (more < 0) return -1;
        if (!more) {
            b->end = true;
            break;
        }
        b->item = xrealloc(b->item, (size_t)(b->read - b->printed) + 1, sizeof *b->item);
        item *it = &b->item[b->read++ - b->printed];
        *it = (item){0};
        char *where = xprintf("%s:%d", b->a->o.batch, b->in.line);
        int64_t id = add_row(b, where, row);
        if (id > 0) {
            it->id = id, it->text = xstrdup("");
            if (b->a->o.logprobs >= 0) it->logprobs = json_array();
            b->running++;
        } else {
            it->done = json_pack("{s:s}", "error", fail_text());
            fail_clear();
        }
        free(where);
        json_decref(row);
    }
    return 0;
}

static void take_event(job *b, const engine_event *ev) {
    item *it = item_of(b, ev->id);
    CHECK(it, "event of request %ld", (long)ev->id);
    CHECK(!it->done, "event of request %ld, which is over", (long)ev->id);
    it->text = xrealloc(it->text, it->n + (size_t)ev->bytes + 1, 1);
    memcpy(it->text + it->n, ev->text, (size_t)ev->bytes + 1);
    it->n += (size_t)ev->bytes;
    reply_add_logprobs(b->a, ev, it->logprobs);
    if (ev->finish == FINISH_NOT) return;
    const request_stats *s = &ev->stats;
    it->done = json_pack("{s:s%,s:s,s:i,s:i}", "text", it->text, it->n, "finish_reason", finish_names[ev->finish],
                         "prompt_tokens", s->prompt_tokens, "completion_tokens", s->completion_tokens);
    CHECK(it->done, "answer as JSON%s", "");
    if (it->logprobs) json_object_set_new(it->done, "logprobs", it->logprobs);
    free(it->text), it->text = NULL;
    it->id = 0;
    b->prompt += s->prompt_tokens, b->cached += s->cached_tokens, b->completion += s->completion_tokens;
    b->running--;
}

static void print_done(job *b) {
    int n = 0, held = b->read - b->printed;
    for (; n < held && b->item[n].done; n++) {
        json_t *o = json_pack("{s:i}", "index", b->printed + n);
        json_object_update(o, b->item[n].done);
        json_dumpf(o, stdout, JSON_COMPACT);
        putchar('\n');
        json_decref(o), json_decref(b->item[n].done);
    }
    if (!n) return;
    fflush(stdout);
    memmove(b->item, b->item + n, (size_t)(held - n) * sizeof *b->item);
    b->printed += n;
}

static void report(const job *b, double seconds) {
    if (!b->a->o.json) {
        fprintf(stderr,
                "[%d rows, %ld tokens read, %ld of them known, %ld written; %.1f written/s; %.1f s; %.0f MiB]\n",
                b->printed, (long)b->prompt, (long)b->cached, (long)b->completion, (double)b->completion / seconds,
                seconds, (double)peak_rss_bytes() / 1048576);
        return;
    }
    json_t *o = json_pack("{s:i,s:I,s:I,s:I,s:f,s:f,s:I}", "rows", b->printed, "prompt_tokens", (json_int_t)b->prompt,
                          "cached_tokens", (json_int_t)b->cached, "completion_tokens", (json_int_t)b->completion,
                          "seconds", seconds, "completion_tokens_per_second", (double)b->completion / seconds,
                          "peak_rss_bytes", (json_int_t)peak_rss_bytes());
    json_dumpf(o, stdout, 0);
    putchar('\n');
    json_decref(o);
}

int job_run(app *a) {
    job b = {.a = a};
    request q = REQUEST_PLAIN;
    double began = seconds_now();
    engine_default_adapters(a->e, &q);
    for (; b.adapters < q.adapters; b.adapters++) b.all[b.adapters] = q.adapter[b.adapters];
    if (jsonl_open(&b.in, a->o.batch)) return -1;
    int bad = fill(&b);
    while (!bad && (b.running || !b.end)) {
        engine_step(a->e);
        for (engine_event ev; engine_next(a->e, &ev);) take_event(&b, &ev);
        bad = fill(&b);
        print_done(&b);
    }
    print_done(&b);
    if (!bad) report(&b, seconds_now() - began);
    jsonl_close(&b.in);
    free(b.item);
    return bad;
}
