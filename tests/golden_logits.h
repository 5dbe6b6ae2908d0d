/* A golden model's logits against those that transformers computed of the same tokens (tests/golden/make_*.py). */
#ifndef PEFT_TESTS_GOLDEN_LOGITS_H
#define PEFT_TESTS_GOLDEN_LOGITS_H

#include "core/file.h"
#include "kernels/mat.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

/* transformers computes in fp32 in another order: 1e-3 absolute is what is promised, 1e-4 is what logits of size 10
 * need. what: for the message. */
static inline void check_golden_logits(mat logits, const char *golden, const char *what) {
    file_map m;
    char path[128];
    double worst = 0;
    snprintf(path, sizeof path, "tests/golden/%s_logits.bin", golden);
    assert_int_equal(file_open(&m, path), 0);
    assert_int_equal(m.size, (uint64_t)(logits.rows * logits.cols) * sizeof(float));
    for (int64_t i = 0; i < logits.rows * logits.cols; i++) {
        float want;
        memcpy(&want, m.data + 4 * i, 4);
        worst = fmax(worst, fabs((double)want - (double)((float *)logits.data)[i]));
    }
    if (!(worst < 1e-4)) fail_msg("%s: logits differ by %g", what, worst);
    file_close(&m);
}

#endif
