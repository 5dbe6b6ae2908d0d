/* Rows are read and checked first, so that a bad last row costs nothing and the longest one sizes the memory. */
#include "infer_score.h"
#include "core/error.h"
#include "data/jsonl.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

typedef struct {
    int32_t *ids;
    int n;
} score_row;
typedef struct {
    score_row *row;
    int n, longest;
    tokenizer *tok;
    const model_source *src;
} score_rows;

static int take_ids(score_rows *all, score_row *r, const char *where, const json_t *ids) {
    size_t i;
    const json_t *id;
    if (!json_is_array(ids))
        return fail(EXIT_INPUT, "%s: key 'input_ids': found %s, expected a list of tokens", where, json_kind(ids));
    r->ids = xcalloc(json_array_size(ids), sizeof *r->ids);
    json_array_foreach(ids, i, id) {
        json_int_t v = json_integer_value(id);
        if (!json_is_integer(id) || v < 0 || v >= all->src->hp.vocab)
            return fail(EXIT_INPUT, "%s: key 'input_ids': entry %zu is not a token of this model (0 to %ld)", where, i,
                        (long)all->src->hp.vocab - 1);
        r->ids[r->n++] = (int32_t)v;
    }
    return 0;
}

static int take_text(score_rows *all, score_row *r, const char *where, const json_t *text) {
    token_list ids = {0};
    if (!json_is_string(text))
        return fail(EXIT_INPUT, "%s: key 'text': found %s, expected a string", where, json_kind(text));
    if (!all->tok && !(all->tok = model_tokenizer(all->src, NULL))) return -1;
    if (tokenizer_encode(all->tok, json_string_value(text), (int64_t)json_string_length(text),
                         TOKENIZE_SPECIAL | TOKENIZE_ADD, &ids)) {
        token_list_free(&ids);
        return -1;
    }
    r->ids = xcalloc((size_t)ids.n, sizeof *r->ids);
    for (int64_t i = 0; i < ids.n; i++) r->ids[i] = ids.id[i];
    r->n = (int)ids.n;
    token_list_free(&ids);
    return 0;
}

static int take_row(score_rows *all, const char *path, int line, const json_t *o) {
    char *where = xprintf("%s:%d", path, line);
    all->row = xrealloc(all->row, (size_t)all->n + 1, sizeof *all->row);
    score_row *r = &all->row[all->n++];
    *r = (score_row){0};
    const json_t *ids = json_object_get(o, "input_ids"), *text = json_object_get(o, "text");
    int bad = ids    ? take_ids(all, r, where, ids)
              : text ? take_text(all, r, where, text)
                     : fail(EXIT_INPUT, "%s: found neither 'text' nor 'input_ids'", where);
    if (!bad && !r->n) bad = fail(EXIT_INPUT, "%s: a row without tokens", where);
    if (!bad && r->n > all->src->hp.context)
        bad = fail(EXIT_INPUT, "%s: %d tokens are more than the model's %ld positions", where, r->n,
                   (long)all->src->hp.context);
    if (r->n > all->longest) all->longest = r->n;
    free(where);
    return bad ? -1 : 0;
}

static int read_rows(score_rows *all, const char *path) {
    jsonl j;
    json_t *o;
    int got = -1;
    if (jsonl_open(&j, path)) return -1;
    while ((got = jsonl_next_object(&j, &o)) > 0) {
        int bad = take_row(all, path, j.line, o);
        json_decref(o);
        if (bad) {
            got = -1;
            break;
        }
    }
    jsonl_close(&j);
    if (!got && !all->n) return fail(EXIT_INPUT, "%s: no rows", path);
    return got;
}

/* %.9g tells every float apart. */
static void print_row(const score_row *r, const float *logprob) {
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
    score_rows all = {.src = src};
    scorer s = {0};
    int bad = read_rows(&all, path) || scorer_open(&s, src, o, all.longest);
    if (!bad && s.s.m.nonfinite)
        fprintf(stderr, "note: %s: %s: expect no sense of this model\n", src->path, s.s.m.nonfinite);
    for (int i = 0; i < all.n && !bad; i++) {
        scorer_run(&s, all.row[i].ids, all.row[i].n);
        print_row(&all.row[i], s.logprob);
    }
    if (!bad && fflush(stdout)) bad = fail(EXIT_IO, "standard output: cannot be written");
    scorer_close(&s);
    tokenizer_close(all.tok);
    for (int i = 0; i < all.n; i++) free(all.row[i].ids);
    free(all.row);
    return bad ? -1 : 0;
}
