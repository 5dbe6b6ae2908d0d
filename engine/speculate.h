/* Speculative decoding: tokens are guessed, and one batch of the target computes what it would have said after each of
 * them; guesses are kept as far as they agree (Leviathan et al. 2023). Two sources of guesses: a small draft model, and
 * look-up, which continues the text as it went on where the last tokens stood before (Saxena 2023, prompt look-up).
 *
 * The target's token is always drawn by the target's own distribution with the noise of its position
 * (model/sampling.h), and a guess is kept when it is that token. So every answer is, token by token, the one without
 * speculation, whatever was guessed and however many: its distribution is the target's by construction, and how long
 * drafts are may depend on anything, the clock included. The draft model draws with the same noise, which makes it
 * agree with probability at least (1 - d) / (1 + d), d the total variation distance of the two distributions (Daliri,
 * Musco, Suresh 2025).
 *
 * The length of a draft maximises the expected tokens per second: (1 + a + a^2 + ... + a^k) / time(k), where a is the
 * share of guesses kept lately, by source and by request, and the time is what batches of so many rows took. */
#ifndef PEFT_ENGINE_SPECULATE_H
#define PEFT_ENGINE_SPECULATE_H

#include "engine/runner.h"
#include "model/sampling.h"

typedef struct engine engine;
typedef struct sequence sequence;

enum { DRAFT_MAX = 16, DRAFT_ROWS = 32, TIMED_ROWS = 128 }; /* guesses for a request, for a batch; its rows at most */

/* Where a guess comes from: look-up by how many tokens agreed before, or the model. */
typedef enum { LOOKUP_SHORT, LOOKUP_MIDDLE, LOOKUP_LONG, DRAFT_MODEL, SOURCES } draft_source;

/* Of one request. */
typedef struct speculation {
    double kept[SOURCES], tried[SOURCES]; /* faded counts */
    draft_source source;                  /* of the present draft */
    track at;                             /* in the draft model */
    bool foreign;                         /* a token or a bias that the draft model has no row for: it does not guess */
} speculation;

/* Of the engine. */
typedef struct speculator {
    bool lookup, model;
    runner r; /* the draft model */
    sampler w;
    double step[1 + TIMED_ROWS]; /* seconds of a batch of so many rows, all of them answers'; 0: not yet seen */
    double draft_step;           /* of one round of the draft model */
} speculator;

int speculator_open(engine *e);
void speculator_close(engine *e);
void speculation_begin(engine *e, sequence *s); /* a request is admitted */
void speculation_clear(engine *e, sequence *s); /* it gives its pages back */
void speculation_end(engine *e, sequence *s);
/* Adds guesses to the answers of this step: s->drafts tokens behind s->token[s->n - 1]; s->rows grows by them. */
void speculate(engine *e);
void speculation_learn(engine *e, sequence *s, int drafts, int kept); /* after its tokens were drawn */
void speculator_time(engine *e, int rows, double seconds);

#endif
