/* ./infer --batch FILE.jsonl: many prompts, computed together, answered in the order of the file. */
#ifndef PEFT_INFER_BATCH_H
#define PEFT_INFER_BATCH_H

#include "infer_reply.h"

/* A row: "prompt" (a text) or "messages" (with "tools"), and any of max_tokens, temperature, top_p, top_k, min_p, seed,
 * stop (a text or several), adapter (numbers of --adapter from 0, with "base" or [] for none). One object a line on
 * stdout: index, text, finish_reason, prompt_tokens, completion_tokens, logprobs; a row that cannot be answered has
 * "error". The figures go to stderr, or with --json as a last object to stdout. */
int job_run(app *a);

#endif
