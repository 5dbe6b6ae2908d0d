/* What the modes of ./infer share: the open model, a prompt's tokens, and one answer with its report. */
#ifndef PEFT_INFER_REPLY_H
#define PEFT_INFER_REPLY_H

#include "data/chat.h"
#include "infer_options.h"

typedef struct app {
    infer_options o;
    model_source src, draft;
    tokenizer *tok;
    chat_template *chat; /* NULL: none was needed, or the model has none */
    engine *e;
    double began; /* the program's start: seconds_now */
} app;

typedef struct reply {
    request_stats stats;
    finish_reason finish;
    char *text; /* heap */
    size_t length;
    json_t *logprobs; /* with --logprobs: an array of {token, logprob, bytes, top: [...]}, else NULL */
    double first;     /* seconds from the program's start to the first token, -1: there was none */
    double plain;     /* seconds of steps that brought one token without a guess */
    int plain_steps;
} reply;
void reply_free(reply *r);

/* The model's own template, or --chat-template. -1 after fail(). */
int app_open_chat(app *a);
/* A conversation as tokens, ready for the assistant's answer. -1 after fail(). */
int app_encode_chat(const app *a, const json_t *messages, const json_t *tools, token_list *ids);

/* One request from beginning to end; the text goes to stdout as it comes unless `quiet`. A SIGINT ends the answer, not
 * the program (reply.finish is FINISH_CANCELLED), while it lasts. */
int reply_run(app *a, const request *q, bool quiet, reply *r);
/* The event's log-probabilities, appended to `list`. */
void reply_add_logprobs(const app *a, const engine_event *ev, json_t *list);
/* A line of figures on stderr, or with --json one object on stdout. */
void reply_report(const app *a, const reply *r);

#endif
