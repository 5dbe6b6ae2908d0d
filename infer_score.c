/* Rows are read and checked first, so that a bad last row costs nothing and the longest one sizes the memory. */
#include "infer_score.h"
#include "core/error.h"
#include "model/text_rows.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

/* %.9g tells every float apart. */
static void print_row(const text_row *r, const float *logprob) {
    double nll = 0;
    printf("{\"input_ids\": [");
    for (int i = 0; i < r->n; i++) printf("%s%d", i ? ", " : "", r->ids[i]);
    printf("], \"logprobs\": [null");
    for (int i = 0; i + 1 < r->n; i++) {
        printf(", %.9g", (double)logprob[i]);
        nll -= (double)logprob[i];
    }
    printf("], \"nll\": %.9g, \"perplexity\": ", nll);
    if (r->n > 1)
        printf("%.9g}\n", exp(nll / (r->n - 1)));
    else
        printf("null}\n");
}

int score_file(const model_source *src, const inference_options *o, const char *path) {
    text_rows all = {0};
    scorer s = {0};
    int bad = text_rows_read_jsonl(&all, src, path) || scorer_open(&s, src, o, all.longest);
    if (!bad && s.s.m.nonfinite)
        fprintf(stderr, "note: %s: %s: expect no sense of this model\n", src->path, s.s.m.nonfinite);
    for (int i = 0; i < all.n && !bad; i++) {
        scorer_run(&s, all.row[i].ids, all.row[i].n);
        print_row(&all.row[i], s.logprob);
    }
    if (!bad && fflush(stdout)) bad = fail(EXIT_IO, "standard output: cannot be written");
    scorer_close(&s);
    text_rows_free(&all);
    return bad ? -1 : 0;
}
