/* The update that an adapter means for the weights under it: W' = W + scale * B A, W [out, in], A [r, in], B [out, r].
 */
#ifndef PEFT_PEFT_MERGE_H
#define PEFT_PEFT_MERGE_H

#include "peft/proj.h"

/* delta [n, in] = rows row .. row + n - 1 of scale * B A in fp32; scaled: room for n * r floats. */
void lora_delta_rows(kctx *k, const lora *l, int64_t row, mat delta, float *scaled);

#endif
