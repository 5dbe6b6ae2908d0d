/* Encodes a rendered conversation so that only what the template wrote can become a special token: marks one by one,
 * and what stands between two marks as one piece of plain text. */
#include "core/error.h"
#include "data/chat.h"

static int encode_piece(const chat_text *t, const tokenizer *tok, int64_t begin, int64_t end, int flags,
                        token_list *out) {
    if (begin == end) return 0;
    int64_t first = out->n;
    if (tokenizer_encode(tok, t->text + begin, end - begin, flags, out)) return -1;
    for (int64_t i = first; i < out->n; i++) out->begin[i] += begin, out->end[i] += begin;
    return 0;
}

/* A mark must be one token, and a bos_token or eos_token that of the tokenizer: a template of another model would train
 * the end of a turn as loose letters. */
static int encode_mark(const chat_text *t, const tokenizer *tok, const chat_mark *m, token_list *out) {
    static const char *const what[] = {"token", "bos_token", "eos_token"};
    int64_t first = out->n;
    if (encode_piece(t, tok, m->begin, m->end, TOKENIZE_SPECIAL, out)) return -1;
    int id = out->n == first + 1 ? out->id[first] : -1,
        named = m->kind == CHAT_BOS ? tokenizer_bos(tok) : tokenizer_eos(tok);
    if (id >= 0 && (m->kind == CHAT_TOKEN || id == named)) return 0;
    return fail(EXIT_INPUT,
                "the chat template '%s' writes '%.*s' as %s, which is not one of this tokenizer: choose the "
                "chat_template that this model was trained with",
                chat_template_name(t->from), (int)(m->end - m->begin), t->text + m->begin, what[m->kind]);
}

int chat_encode(const chat_text *t, const tokenizer *tok, token_list *out) {
    int64_t done = 0;
    for (int i = 0; i < t->n_marks; i++) {
        if (encode_piece(t, tok, done, t->marks[i].begin, 0, out) || encode_mark(t, tok, &t->marks[i], out)) return -1;
        done = t->marks[i].end;
    }
    return encode_piece(t, tok, done, t->n, 0, out);
}
