/* ./infer --score: one JSON object out for each row in. */
#ifndef PEFT_INFER_SCORE_H
#define PEFT_INFER_SCORE_H

#include "model/inference.h"

int score_file(const model_source *src, const inference_options *o, const char *path);

#endif
