#include "model/text_rows.h"
#include "core/error.h"
#include "core/text.h"
#include "data/jsonl.h"
#include "model/session.h"

#include <stdlib.h>
#include <string.h>

typedef struct {
    text_rows *r;
    tokenizer *tok;
    const model_source *src;
} reader;

static int need_tokenizer(reader *rd) {
    if (!rd->tok) rd->tok = model_tokenizer(rd->src, NULL);
    return rd->tok ? 0 : -1;
}

static int take_ids(const reader *rd, text_row *r, const char *where, const json_t *ids) {
    size_t i;
    const json_t *id;
    if (!json_is_array(ids))
        return fail(EXIT_INPUT, "%s: key 'input_ids': found %s, expected a list of tokens", where, json_kind(ids));
    r->ids = xcalloc(json_array_size(ids), sizeof *r->ids);
    json_array_foreach(ids, i, id) {
        json_int_t v = json_integer_value(id);
        if (!json_is_integer(id) || v < 0 || v >= rd->src->hp.vocab)
            return fail(EXIT_INPUT, "%s: key 'input_ids': entry %zu is not a token of this model (0 to %ld)", where, i,
                        (long)rd->src->hp.vocab - 1);
        r->ids[r->n++] = (int32_t)v;
    }
    return 0;
}

static int take_text(reader *rd, text_row *r, const char *where, const json_t *text) {
    token_list ids = {0};
    if (!json_is_string(text))
        return fail(EXIT_INPUT, "%s: key 'text': found %s, expected a string", where, json_kind(text));
    if (need_tokenizer(rd)) return -1;
    if (tokenizer_encode(rd->tok, json_string_value(text), (int64_t)json_string_length(text),
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

static text_row *add_row(text_rows *all) {
    all->row = xrealloc(all->row, (size_t)all->n + 1, sizeof *all->row);
    all->row[all->n] = (text_row){0};
    return &all->row[all->n++];
}

static void count_row(text_rows *all, const text_row *r) {
    if (r->n > all->longest) all->longest = r->n;
    all->tokens += r->n;
}

static int take_row(reader *rd, const char *path, int line, const json_t *o) {
    char *where = xprintf("%s:%d", path, line);
    text_row *r = add_row(rd->r);
    const json_t *ids = json_object_get(o, "input_ids"), *text = json_object_get(o, "text");
    int bad = ids    ? take_ids(rd, r, where, ids)
              : text ? take_text(rd, r, where, text)
                     : fail(EXIT_INPUT, "%s: found neither 'text' nor 'input_ids'", where);
    if (!bad && !r->n) bad = fail(EXIT_INPUT, "%s: a row without tokens", where);
    if (!bad && r->n > rd->src->hp.context)
        bad = fail(EXIT_INPUT, "%s: %d tokens are more than the model's %ld positions", where, r->n,
                   (long)rd->src->hp.context);
    count_row(rd->r, r);
    free(where);
    return bad ? -1 : 0;
}

int text_rows_read_jsonl(text_rows *r, const model_source *src, const char *path) {
    reader rd = {.r = r, .src = src};
    jsonl j;
    json_t *o;
    int got = -1;
    *r = (text_rows){0};
    if (jsonl_open(&j, path)) return -1;
    while ((got = jsonl_next_object(&j, &o)) > 0) {
        int bad = take_row(&rd, path, j.line, o);
        json_decref(o);
        if (bad) {
            got = -1;
            break;
        }
    }
    jsonl_close(&j);
    tokenizer_close(rd.tok);
    if (!got && !r->n) return fail(EXIT_INPUT, "%s: no rows", path);
    return got;
}

static int cut(reader *rd, const char *path, const file_map *f, int piece) {
    token_list all = {0}, before = {0};
    if (need_tokenizer(rd)) return -1;
    if (!f->size || utf8_valid(f->data, f->size) < f->size)
        return fail(EXIT_INPUT, "%s: found %s, expected text in UTF-8", path, f->size ? "other bytes" : "nothing");
    int bad = tokenizer_encode(rd->tok, "", 0, TOKENIZE_ADD, &before) ||
              tokenizer_encode(rd->tok, (const char *)f->data, (int64_t)f->size, 0, &all);
    int head = before.n && before.id[0] == tokenizer_bos(rd->tok) ? 1 : 0;
    for (int64_t at = 0; !bad && at < all.n;) {
        int64_t left = all.n - at, n = left < piece - head ? left : piece - head;
        text_row *r = add_row(rd->r);
        r->ids = xcalloc((size_t)(n + head), sizeof *r->ids), r->n = (int)n + head;
        if (head) r->ids[0] = before.id[0];
        for (int64_t i = 0; i < n; i++) r->ids[head + i] = all.id[at + i];
        count_row(rd->r, r);
        at += n;
    }
    token_list_free(&all), token_list_free(&before);
    return bad;
}

int text_rows_read(text_rows *r, const model_source *src, const char *path, int piece) {
    reader rd = {.r = r, .src = src};
    size_t n = strlen(path);
    file_map f;
    if (n > 6 && !strcmp(path + n - 6, ".jsonl")) return text_rows_read_jsonl(r, src, path);
    *r = (text_rows){0};
    if (file_open(&f, path)) return -1;
    int bad = cut(&rd, path, &f, piece < src->hp.context ? piece : (int)src->hp.context);
    file_close(&f);
    tokenizer_close(rd.tok);
    return bad ? -1 : 0;
}

void text_rows_free(text_rows *r) {
    for (int i = 0; i < r->n; i++) free(r->row[i].ids);
    free(r->row);
    *r = (text_rows){0};
}
