/* Whether a stored matrix holds NaN or infinities, without dequantising it where its scales say it all. */
#ifndef PEFT_MODEL_FINITE_H
#define PEFT_MODEL_FINITE_H

#include "kernels/weight.h"

/* Row of the first element that is not finite, in the order of storage; -1 when all are. Any format; uses OpenMP. */
int64_t weight_nonfinite(const weight *w);

#endif
