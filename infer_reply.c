#include "infer_reply.h"
#include "core/arena.h"
#include "core/error.h"
#include "core/file.h"
#include "core/progress.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>

static volatile sig_atomic_t interrupted;
static void interrupt(int sig) { interrupted = sig; }

int app_open_chat(app *a) {
    const char *name = a->o.chat_template ? a->o.chat_template : "";
    if (!*name || !path_exists(name)) {
        a->chat = chat_open_named(name, a->src.path, a->tok);
        return a->chat ? 0 : -1;
    }
    char *text = file_text(name, NULL);
    if (!text) return -1;
    a->chat = chat_open(text, name, a->tok);
    free(text);
    return a->chat ? 0 : -1;
}

int app_encode_chat(const app *a, const json_t *messages, const json_t *tools, token_list *ids) {
    const chat_options o = {.add_generation_prompt = true, .tools = tools};
    chat_text text;
    if (chat_render(a->chat, messages, &o, &text)) return -1;
    int bad = chat_encode(&text, a->tok, ids);
    chat_text_free(&text);
    return bad;
}

void reply_free(reply *r) {
    free(r->text);
    json_decref(r->logprobs);
    *r = (reply){0};
}

static json_t *token_json(const app *a, const token_logprob *p) {
    char *text = tokenizer_decode(a->tok, &p->id, 1, false, NULL);
    json_t *o = json_pack("{s:i,s:s,s:f}", "id", (int)p->id, "token", text, "logprob", (double)p->logprob);
    free(text);
    return o;
}

void reply_add_logprobs(const app *a, const engine_event *ev, json_t *list) {
    if (!ev->logprobs || !list) return;
    json_t *o = token_json(a, &ev->logprobs[0]), *top = json_array();
    for (int i = 1; i <= ev->top; i++) json_array_append_new(top, token_json(a, &ev->logprobs[i]));
    json_object_set_new(o, "top", top);
    json_array_append_new(list, o);
}

int reply_run(app *a, const request *q, bool quiet, reply *r) {
    *r = (reply){.first = -1};
    int64_t id = engine_add(a->e, q);
    if (id < 0) return -1;
    struct sigaction ours = {.sa_handler = interrupt}, before;
    interrupted = 0;
    sigaction(SIGINT, &ours, &before);
    FILE *text = open_memstream(&r->text, &r->length);
    if (q->logprobs >= 0) r->logprobs = json_array();
    for (double before_step = seconds_now(), now; engine_step(a->e); before_step = now) {
        const request_stats last = r->stats;
        now = seconds_now();
        for (engine_event ev; engine_next(a->e, &ev);) {
            if (r->first < 0 && ev.token >= 0) r->first = seconds_now() - a->began;
            r->stats = ev.stats, r->finish = ev.finish;
            reply_add_logprobs(a, &ev, r->logprobs);
            fwrite(ev.text, 1, (size_t)ev.bytes, text);
            if (quiet || !ev.bytes) continue;
            fwrite(ev.text, 1, (size_t)ev.bytes, stdout);
            fflush(stdout);
        }
        if (last.completion_tokens && r->stats.drafted == last.drafted) r->plain += now - before_step, r->plain_steps++;
        if (interrupted) engine_cancel(a->e, id);
    }
    fclose(text);
    sigaction(SIGINT, &before, NULL);
    return 0;
}

static double rate(double n, double seconds) { return seconds > 0 ? n / seconds : 0; }

void reply_report(const app *a, const reply *r) {
    const request_stats *s = &r->stats;
    int tokens = s->completion_tokens;
    double prefill = rate(s->prompt_tokens - s->cached_tokens, s->prefill_seconds),
           decode = rate(tokens > 1 ? tokens - 1 : 0, s->decode_seconds);
    uint64_t rss = peak_rss_bytes();
    if (!a->o.json) {
        fflush(stdout);
        fprintf(
            stderr,
            "\n[prompt %d tokens, %d of them known, %.0f/s; answer %d tokens, %.1f/s; first after %.2f s; %.0f MiB%s]\n",
            s->prompt_tokens, s->cached_tokens, prefill, tokens, decode, r->first, (double)rss / 1048576,
            r->finish == FINISH_CANCELLED ? "; stopped" : "");
        return;
    }
    json_t *o = json_pack("{s:i,s:i,s:i,s:s%,s:s,s:f,s:f,s:f,s:I}", "prompt_tokens", s->prompt_tokens, "cached_tokens",
                          s->cached_tokens, "completion_tokens", tokens, "text", r->text, r->length, "finish_reason",
                          finish_names[r->finish], "prefill_tokens_per_second", prefill, "decode_tokens_per_second",
                          decode, "time_to_first_token_seconds", r->first, "peak_rss_bytes", (json_int_t)rss);
    CHECK(o, "answer as JSON%s", "");
    if (a->o.lookup || a->o.draft_model) {
        json_object_set_new(o, "drafted_tokens", json_integer(s->drafted));
        json_object_set_new(o, "accepted_tokens", json_integer(s->accepted));
        json_object_set_new(o, "acceptance", json_real(rate(s->accepted, s->drafted)));
        /* against the answer's own steps without a guess, of which there must be some */
        if (r->plain_steps >= 4 && s->decode_seconds > 0)
            json_object_set_new(o, "speed_up", json_real((tokens - 1) * r->plain / r->plain_steps / s->decode_seconds));
    }
    if (r->logprobs) json_object_set(o, "logprobs", r->logprobs);
    json_dumpf(o, stdout, 0);
    putchar('\n');
    fflush(stdout);
    json_decref(o);
}
