/* ./infer: text from a model with or without adapters, and log-probabilities of given rows. */
#include "core/arena.h"
#include "core/error.h"
#include "core/file.h"
#include "core/progress.h"
#include "core/threads.h"
#include "infer_batch.h"
#include "infer_chat.h"
#include "infer_imatrix.h"
#include "infer_score.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* The prompt's text: heap; NULL after fail() or when none was given. */
static char *prompt_text(const infer_options *o, int *bad) {
    *bad = 0;
    if (o->prompt) return xstrdup(o->prompt);
    if (!o->file) return NULL;
    FILE *in = strcmp(o->file, "-") ? fopen(o->file, "rb") : stdin;
    char *text = NULL, buf[65536];
    size_t size = 0, n;
    if (!in) {
        *bad = fail(EXIT_INPUT, "--file: %s: %s", o->file, strerror(errno));
        return NULL;
    }
    FILE *out = open_memstream(&text, &size);
    while ((n = fread(buf, 1, sizeof buf, in)) > 0) fwrite(buf, 1, n, out);
    if (ferror(in)) *bad = fail(EXIT_INPUT, "--file: %s: %s", o->file, strerror(errno));
    fclose(out);
    if (in != stdin) fclose(in);
    if (!*bad && strlen(text) != size) *bad = fail(EXIT_INPUT, "--file: %s: holds a NUL byte: not a text", o->file);
    if (!*bad) return text;
    free(text);
    return NULL;
}

static int run_prompt(app *a, const char *text) {
    token_list ids = {0};
    reply r = {0};
    int bad = tokenizer_encode(a->tok, text, (int64_t)strlen(text), TOKENIZE_SPECIAL | TOKENIZE_ADD, &ids);
    request q = infer_request(&a->o);
    engine_default_adapters(a->e, &q);
    q.prompt = ids.id, q.n = (int)ids.n;
    bad = bad || reply_run(a, &q, a->o.json, &r);
    if (!bad) reply_report(a, &r);
    token_list_free(&ids);
    reply_free(&r);
    return bad ? -1 : 0;
}

static int open_all(app *a) {
    const infer_options *o = &a->o;
    if (!(a->tok = model_tokenizer(&a->src, o->tokenizer))) return -1;
    bool own = tokenizer_template(a->tok) || o->chat_template;
    if ((o->chat || (o->batch && own)) && app_open_chat(a)) return -1;
    if (o->draft_model && model_source_open(&a->draft, o->draft_model)) return -1;
    const engine_options how = {.src = &a->src,
                                .how = o->how,
                                .tok = a->tok,
                                .context = (int)o->context,
                                .sequences = o->batch ? (int)o->parallel : 1,
                                .kv_type = o->kv_type,
                                .merge = o->merge,
                                .lookup = o->lookup,
                                .draft = o->draft_model ? &a->draft : NULL};
    if (!(a->e = engine_open(&how))) return -1;
    const char *nonfinite = engine_session(a->e)->m.nonfinite;
    if (nonfinite) fprintf(stderr, "note: %s: %s: expect no sense of this model\n", o->model, nonfinite);
    return 0;
}

static int run(app *a) {
    const infer_options *o = &a->o;
    if (model_source_open(&a->src, o->model)) return -1;
    if (o->score) return score_file(&a->src, &o->how, o->score);
    if (o->imatrix) return imatrix_file(&a->src, &o->how, o->text, o->imatrix);
    int bad;
    char *text = prompt_text(o, &bad);
    bad = bad || open_all(a);
    if (!bad) bad = o->batch ? job_run(a) : o->chat ? chat_run(a, text) : run_prompt(a, text);
    free(text);
    return bad;
}

int main(int argc, char **argv) {
    static app a;
    a.began = seconds_now();
    file_guard("infer");
    threads_settle(argv);
    int bad = infer_options_parse(&a.o, argc, argv) || run(&a) ? fail_report("infer") : EXIT_DONE;
    engine_close(a.e);
    chat_close(a.chat);
    tokenizer_close(a.tok);
    model_source_close(&a.draft);
    model_source_close(&a.src);
    return bad;
}
