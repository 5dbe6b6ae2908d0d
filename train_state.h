/* Where a training run stands, and its checkpoints: output_dir/checkpoint-STEP with PEFT's adapter files, the
 * optimiser's moments, the place in the data, the configuration, and a MANIFEST (core/checkpoint.h). What is resumed
 * from one goes on bit for bit as the run that was not interrupted, also between two micro-batches of a step. */
#ifndef PEFT_TRAIN_STATE_H
#define PEFT_TRAIN_STATE_H

#include "core/checkpoint.h"
#include "data/dataset.h"
#include "model/session.h"
#include "optim/adamw.h"

typedef struct train_place {
    int64_t step;   /* optimiser steps done */
    int64_t epoch;  /* of the next micro-batch */
    int64_t batch;  /* first micro-batch of the next step, in the epoch's order */
    int64_t micro;  /* of that step's micro-batches, those that are in the gradient already */
    int64_t tokens; /* of these */
    bool after;     /* the step is done, and what comes after it (evaluation, save) is not; step 0: nothing is done */
    int64_t metrics_bytes; /* of metrics.jsonl up to here */
    int64_t seen_tokens;   /* of the whole run */
} train_place;

/* What belongs to a run and is not its own. */
typedef struct train_parts {
    const config *cfg;
    const model_source *src;
    const dataset *ds;
    session *s;
    adamw *opt;
    step_sums *sums; /* in the run arena: of the step under way */
} train_parts;

/* Writes the checkpoint and rotates (save_total_limit). *path: its directory, heap. Weights that are not finite are
 * refused with EXIT_DIVERGED. */
int train_state_save(const train_parts *p, const train_place *at, char **path);
/* Bytes that a checkpoint takes, about. */
uint64_t train_state_bytes(const train_parts *p);

/* The checkpoint that resume_from_checkpoint means: a path, or "auto": the newest whole one of output_dir; broken ones
 * are noted with the reason. *path NULL (and 0): auto, and there is none. -1: EXIT_INPUT when none of those that are
 * there is whole. */
int train_state_choose(const config *c, char **path);
/* Fills parameters, moments, gradient, sums and place. -1: EXIT_USAGE when the run is another one (each key that
 * differs is named), EXIT_INPUT when the data, the base or a file is. */
int train_state_load(const train_parts *p, const char *path, train_place *at);

#endif
