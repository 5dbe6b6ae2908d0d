/* Rows of the text go through the model one by one; whoever watches the projections adds up the squares of what each is
 * given. The head is left out, as llama-imatrix leaves it out unless it is asked. */
#include "infer_imatrix.h"
#include "core/arena.h"
#include "core/error.h"
#include "model/imatrix.h"
#include "model/text_rows.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { CHUNK = 512 }; /* tokens of a row of plain text: llama-imatrix's */

typedef struct {
    proj_watch head;
    imatrix m;
    float *x; /* host copy of an input */
    int64_t room;
    const char *nonfinite; /* the first module whose input held one */
} collector;

static void see(proj_watch *w, const tape *t, const proj *p, int n, mat x) {
    collector *c = (collector *)w;
    char tensor[192], name[192];
    if (t->act->planning) return;
    int64_t need = (x.rows - 1) * x.ld + x.cols;
    if (need > c->room) c->x = xrealloc(c->x, (size_t)need, sizeof *c->x), c->room = need;
    arena_get(t->act, c->x, x.data, (size_t)need * sizeof *c->x);
    for (int64_t r = 0; r < x.rows && !c->nonfinite; r++)
        for (int64_t i = 0; i < x.cols; i++)
            if (!isfinite(c->x[r * x.ld + i])) c->nonfinite = p->name;
    for (int i = 0; i < n; i++) {
        snprintf(tensor, sizeof tensor, "%s.weight", p[i].name);
        if (name_to_gguf(tensor, name, sizeof name)) imatrix_add(&c->m, name, c->x, x.rows, x.cols, x.ld);
    }
}

static const char *file_part(const char *path) {
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

static int collect(scorer *s, const text_rows *rows, collector *c, const char *model) {
    double nll = 0;
    for (int i = 0; i < rows->n && !c->nonfinite; i++) {
        scorer_run(s, rows->row[i].ids, rows->row[i].n);
        for (int k = 0; k + 1 < rows->row[i].n; k++) nll -= (double)s->logprob[k];
        if (isatty(STDERR_FILENO)) fprintf(stderr, "\r  %d of %d rows%s", i + 1, rows->n, i + 1 < rows->n ? "" : "\n");
    }
    if (c->nonfinite)
        return fail(EXIT_DIVERGED, "%s: '%s' is given values that are not finite: no importance can be told", model,
                    c->nonfinite);
    c->m.chunks = (rows->tokens + CHUNK - 1) / CHUNK, c->m.chunk_size = CHUNK;
    if (rows->tokens > rows->n) printf("perplexity: %.4f\n", exp(nll / (double)(rows->tokens - rows->n)));
    return 0;
}

int imatrix_file(const model_source *src, const inference_options *o, const char *text, const char *out) {
    text_rows rows = {0};
    scorer s = {0};
    collector c = {.head = {see}, .m = {.dataset = xstrdup(file_part(text))}};
    int bad = text_rows_read(&rows, src, text, CHUNK) || scorer_open(&s, src, o, rows.longest);
    s.watch = &c.head;
    if (!bad) bad = collect(&s, &rows, &c, src->path) || imatrix_write(&c.m, out);
    if (!bad) printf("importance matrix: %d tensors from %ld tokens of %s: %s\n", c.m.n, (long)rows.tokens, text, out);
    scorer_close(&s);
    text_rows_free(&rows), imatrix_free(&c.m);
    free(c.x);
    return bad ? -1 : 0;
}
