/* ./infer --imatrix: an importance matrix of a model over a text (model/imatrix.h), written for ./quantize and
 * llama.cpp. */
#ifndef PEFT_INFER_IMATRIX_H
#define PEFT_INFER_IMATRIX_H

#include "model/inference.h"

int imatrix_file(const model_source *src, const inference_options *o, const char *text, const char *out);

#endif
