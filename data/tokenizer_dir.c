/* Hugging Face directories: the vocabulary of tokenizer.json, and what the files beside it add: names of BOS, EOS and
 * padding, the chat template, the tokens that end generation. transformers (5.x) ignores add_bos_token where a
 * tokenizer.json exists: its post-processor decides, and so it does here. */
#include "core/arena.h"
#include "core/error.h"
#include "core/file.h"
#include "data/tokenizer_hf.h"

#include <stdlib.h>
#include <string.h>

int hf_added_flags(const char *where, const json_t *o, uint32_t *flags) {
    static const struct {
        const char *key;
        uint32_t flag;
        bool def;
    } rows[] = {{"special", TOKEN_SPECIAL, false},
                {"lstrip", TOKEN_LSTRIP, false},
                {"rstrip", TOKEN_RSTRIP, false},
                {"single_word", TOKEN_SINGLE_WORD, false},
                {"normalized", TOKEN_NORMALIZED, true}};
    *flags = 0;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        bool on;
        if (json_get_bool_or(where, o, rows[i].key, rows[i].def, &on)) return -1;
        if (on) *flags |= rows[i].flag;
    }
    return 0;
}

static int read_vocab(tokenizer *t, const char *where, const json_t *model) {
    const json_t *words = json_object_get(model, "vocab");
    if (!json_is_object(words)) return fail(EXIT_INPUT, "%s: model.vocab: expected an object of token: id", where);
    size_t n = json_object_size(words);
    if (n > TOKENS_MAX)
        return fail(EXIT_INPUT, "%s: model.vocab has %zu tokens, expected at most %d", where, n, TOKENS_MAX);
    vocab_init(&t->v, (int)n);
    const char *text;
    json_t *id;
    json_object_foreach((json_t *)(uintptr_t)words, text, id) {
        if (!json_is_integer(id))
            return fail(EXIT_INPUT, "%s: model.vocab: the id of '%.64s' is %s, expected an integer", where, text,
                        json_kind(id));
        int64_t k = json_integer_value(id);
        if (k >= (int64_t)n)
            return fail(EXIT_INPUT,
                        "%s: model.vocab: '%.64s' has id %ld, but there are only %zu tokens: ids must be 0 to %zu",
                        where, text, (long)k, n, n - 1);
        if (vocab_set(&t->v, where, k, text, strlen(text), 0)) return -1;
    }
    return vocab_check_filled(&t->v, where);
}

/* One merge: "left right", or ["left", "right"] as newer files write them. */
static int read_merge(tokenizer *t, const char *where, const json_t *m, uint32_t rank) {
    const char *left, *right;
    size_t left_n, right_n;
    if (json_is_string(m)) {
        left = json_string_value(m);
        const char *space = strchr(left, ' ');
        if (!space || strchr(space + 1, ' '))
            return fail(EXIT_INPUT, "%s: merge %u: '%.64s' is not two tokens with a space between", where, rank, left);
        left_n = (size_t)(space - left);
        right = space + 1;
        right_n = strlen(right);
    } else if (json_is_array(m) && json_array_size(m) == 2 && json_is_string(json_array_get(m, 0)) &&
               json_is_string(json_array_get(m, 1))) {
        left = json_string_value(json_array_get(m, 0));
        left_n = strlen(left);
        right = json_string_value(json_array_get(m, 1));
        right_n = strlen(right);
    } else {
        return fail(EXIT_INPUT, "%s: merge %u is %s, expected a string or a pair of strings", where, rank,
                    json_kind(m));
    }
    return merges_add(&t->merges, &t->v, where, rank, left, left_n, right, right_n, true);
}

static int read_merges(tokenizer *t, const char *where, const json_t *model) {
    const json_t *merges = json_object_get(model, "merges");
    if (!json_is_array(merges)) return fail(EXIT_INPUT, "%s: model.merges: expected a list of pairs", where);
    size_t n = json_array_size(merges);
    if (n > MERGES_MAX)
        return fail(EXIT_INPUT, "%s: model.merges has %zu pairs, expected at most %d", where, n, MERGES_MAX);
    merges_init(&t->merges, (int64_t)n);
    for (size_t i = 0; i < n; i++)
        if (read_merge(t, where, json_array_get(merges, i), (uint32_t)i)) return -1;
    return 0;
}

/* Options of the model that change ids and that byte-level models do not use. */
static int check_model(const char *where, const json_t *model) {
    static const char *const unused[] = {"continuing_subword_prefix", "end_of_word_suffix"};
    for (size_t i = 0; i < 2; i++) {
        const json_t *s = json_object_get(model, unused[i]);
        if (s && !json_is_null(s) && !(json_is_string(s) && !json_string_length(s)))
            return fail(EXIT_INPUT, "%s: model.%s is not supported", where, unused[i]);
    }
    const json_t *dropout = json_object_get(model, "dropout");
    if (dropout && !json_is_null(dropout) && json_number_value(dropout) != 0.0)
        return fail(EXIT_INPUT, "%s: model.dropout is not supported: ids would be random", where);
    bool fallback;
    if (json_get_bool_or(where, model, "byte_fallback", false, &fallback)) return -1;
    return fallback ? fail(EXIT_INPUT, "%s: model.byte_fallback is not supported", where) : 0;
}

static int read_model(tokenizer *t, const char *where, const json_t *root) {
    const json_t *model = json_object_get(root, "model");
    if (!json_is_object(model)) return fail(EXIT_INPUT, "%s: key 'model': expected an object", where);
    const char *type = json_string_value(json_object_get(model, "type"));
    if (!type || strcmp(type, "BPE") != 0)
        return fail(EXIT_INPUT, "%s: model.type is '%.64s', expected 'BPE'", where, type ? type : "(missing)");
    if (check_model(where, model) || read_vocab(t, where, model) || read_merges(t, where, model)) return -1;
    if (json_get_bool_or(where, model, "ignore_merges", false, &t->ignore_merges)) return -1;
    if (json_get_bool_or(where, model, "fuse_unk", false, &t->fuse_unk)) return -1;
    const json_t *unk = json_object_get(model, "unk_token");
    if (!json_is_string(unk)) return 0;
    t->unk = vocab_find(&t->v, json_string_value(unk), json_string_length(unk));
    return t->unk < 0
               ? fail(EXIT_INPUT, "%s: model.unk_token '%.64s' is not in the vocabulary", where, json_string_value(unk))
               : 0;
}

/* tokenizers gives an added token the id its text has, or else the next free one, whatever the file says; a file that
 * says otherwise would mean two things. */
static int set_added(tokenizer *t, const char *where, const char *text, size_t n, int64_t id, uint32_t flags) {
    int have = vocab_find(&t->v, text, n);
    if (id != (have >= 0 ? have : t->v.n))
        return fail(EXIT_INPUT, "%s: added token '%.64s' has id %ld, expected %d (%s)", where, text, (long)id,
                    have >= 0 ? have : t->v.n, have >= 0 ? "its id in the vocabulary" : "the next free id");
    if (have < 0 && vocab_set(&t->v, where, id, text, n, TOKEN_ADDED)) return -1;
    vocab_mark_added(&t->v, (int)id, flags);
    return 0;
}

static int read_added(tokenizer *t, const char *where, const json_t *root) {
    const json_t *list = json_object_get(root, "added_tokens");
    if (list && !json_is_array(list)) return fail(EXIT_INPUT, "%s: added_tokens: expected a list", where);
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *o = json_array_get(list, i), *text = json_object_get(o, "content");
        int64_t id;
        uint32_t flags;
        if (!json_is_string(text))
            return fail(EXIT_INPUT, "%s: added_tokens[%zu]: expected a string 'content'", where, i);
        if (json_get_int(where, o, "id", 0, INT32_MAX, &id) || hf_added_flags(where, o, &flags)) return -1;
        if (set_added(t, where, json_string_value(text), json_string_length(text), id, flags)) return -1;
    }
    return 0;
}

static int by_id(const void *a, const void *b) {
    long x = atol(*(const char *const *)a), y = atol(*(const char *const *)b);
    return (x > y) - (x < y);
}

/* added_tokens_decoder of tokenizer_config.json: {"id": {content, flags}}; its flags win, as in transformers. */
static int read_added_decoder(tokenizer *t, const char *where, const json_t *config) {
    json_t *decoder = json_object_get(config, "added_tokens_decoder"), *o;
    if (!json_is_object(decoder)) return 0;
    const char **keys = xcalloc(json_object_size(decoder), sizeof *keys), *key;
    size_t n = 0;
    int rc = 0;
    json_object_foreach(decoder, key, o) keys[n++] = key;
    qsort(keys, n, sizeof *keys, by_id);
    for (size_t i = 0; i < n && !rc; i++) {
        o = json_object_get(decoder, keys[i]);
        const json_t *text = json_object_get(o, "content");
        uint32_t flags;
        char *end;
        long id = strtol(keys[i], &end, 10);
        if (*end || end == keys[i] || !json_is_string(text))
            rc = fail(EXIT_INPUT, "%s: added_tokens_decoder: '%.64s' is not an id with a 'content'", where, keys[i]);
        else if (hf_added_flags(where, o, &flags) ||
                 set_added(t, where, json_string_value(text), json_string_length(text), id, flags))
            rc = -1;
    }
    free(keys);
    return rc;
}

/* "bos_token": "text" or {"content": "text"}; absent or null leaves the slot. */
static int read_named(const tokenizer *t, const char *where, const json_t *o, const char *key, int *slot) {
    const json_t *s = json_object_get(o, key);
    if (json_is_object(s)) s = json_object_get(s, "content");
    if (*slot >= 0 || !s || json_is_null(s)) return 0;
    if (!json_is_string(s))
        return fail(EXIT_INPUT, "%s: key '%s': found %s, expected a token", where, key, json_kind(s));
    *slot = vocab_find(&t->v, json_string_value(s), json_string_length(s));
    if (*slot < 0) return fail(EXIT_INPUT, "%s: %s '%.64s' is not in tokenizer.json", where, key, json_string_value(s));
    return 0;
}

static int read_names(tokenizer *t, const char *where, const json_t *o) {
    if (read_named(t, where, o, "bos_token", &t->bos) || read_named(t, where, o, "eos_token", &t->eos)) return -1;
    return read_named(t, where, o, "pad_token", &t->pad);
}

/* "chat_template": text, or a list of {name, template} of which "default" is taken. */
static int read_template(tokenizer *t, const char *where, const json_t *config) {
    const json_t *c = json_object_get(config, "chat_template");
    for (size_t i = 0; i < json_array_size(c); i++) {
        const char *name = json_string_value(json_object_get(json_array_get(c, i), "name"));
        const char *text = json_string_value(json_object_get(json_array_get(c, i), "template"));
        if (!name || !text) return fail(EXIT_INPUT, "%s: chat_template[%zu]: expected a name and a template", where, i);
        if (!strcmp(name, "default") && !t->chat_template) t->chat_template = xstrdup(text);
    }
    if (json_is_array(c) || !c || json_is_null(c)) return 0;
    if (!json_is_string(c))
        return fail(EXIT_INPUT, "%s: chat_template: found %s, expected a string", where, json_kind(c));
    if (!t->chat_template) t->chat_template = xstrdup(json_string_value(c));
    return 0;
}

/* Integers of more than 18 digits become reals of the same length ("...56" -> "...e2"): transformers writes int(1e30)
 * as model_max_length where there is no limit, which no 64-bit integer holds. */
static void shorten_integers(char *s, size_t n) {
    bool in_string = false;
    for (size_t i = 0; i < n; i++) {
        if (in_string && s[i] == '\\')
            i++;
        else if (s[i] == '"')
            in_string = !in_string;
        if (in_string || i >= n || s[i] < '0' || s[i] > '9') continue;
        size_t from = i;
        while (i + 1 < n && strchr("0123456789.eE+-", s[i + 1]) && s[i + 1]) i++;
        size_t digits = i + 1 - from;
        if (digits > 18 && digits <= 300 && strspn(s + from, "0123456789") >= digits) s[i - 1] = 'e', s[i] = '2';
    }
}

/* An optional file's object; NULL with *rc = 0 when it is not there, with -1 after fail(). */
static json_t *read_object(const char *path, int *rc) {
    size_t n;
    *rc = 0;
    if (!path_exists(path)) return NULL;
    *rc = -1;
    char *copy = file_text(path, &n);
    if (!copy) return NULL;
    shorten_integers(copy, n);
    json_t *o = json_parse(path, copy, n, 0);
    if (o && !json_is_object(o)) {
        fail(EXIT_INPUT, "%s: the file holds %s, expected an object", path, json_kind(o));
        json_decref(o);
        o = NULL;
    }
    free(copy);
    if (o) *rc = 0;
    return o;
}

typedef int read_fn(tokenizer *t, const char *where, const json_t *o);

static int read_optional(tokenizer *t, const char *dir, const char *name, read_fn *read) {
    char *path = path_join(dir, name);
    int rc;
    json_t *o = read_object(path, &rc);
    if (o) rc = read(t, path, o);
    json_decref(o);
    free(path);
    return rc;
}

static int read_config(tokenizer *t, const char *where, const json_t *o) {
    return read_added_decoder(t, where, o) || read_names(t, where, o) || read_template(t, where, o) ? -1 : 0;
}

static int mark_eog(tokenizer *t, const char *where, const json_t *id) {
    int slot;
    if (!json_is_integer(id))
        return fail(EXIT_INPUT, "%s: eos_token_id: found %s, expected an id", where, json_kind(id));
    if (tokenizer_set_special(&slot, t, where, "eos_token_id", json_integer_value(id))) return -1;
    t->v.row[slot].flags |= TOKEN_EOG;
    return 0;
}

static int read_generation(tokenizer *t, const char *where, const json_t *o) {
    const json_t *eos = json_object_get(o, "eos_token_id");
    if (!eos || json_is_null(eos)) return 0;
    if (!json_is_array(eos)) return mark_eog(t, where, eos);
    for (size_t i = 0; i < json_array_size(eos); i++)
        if (mark_eog(t, where, json_array_get(eos, i))) return -1;
    return 0;
}

static int read_jinja(tokenizer *t, const char *dir) {
    char *path = path_join(dir, "chat_template.jinja");
    int rc = path_exists(path) && !(t->chat_template = file_text(path, NULL)) ? -1 : 0;
    free(path);
    return rc;
}

static int read_tokenizer(tokenizer *t, const char *path) {
    json_t *root = json_read(path);
    if (!root) return -1;
    hf_reader r = {.t = t, .where = path};
    int rc = read_model(t, path, root) || read_added(t, path, root) || hf_read_components(&r, root) ? -1 : 0;
    json_decref(root);
    return rc;
}

static int read_dir(tokenizer *t, const char *dir, const char *path) {
    if (read_tokenizer(t, path) || read_jinja(t, dir)) return -1;
    if (read_optional(t, dir, "tokenizer_config.json", read_config)) return -1;
    if (read_optional(t, dir, "special_tokens_map.json", read_names)) return -1;
    if (read_optional(t, dir, "generation_config.json", read_generation)) return -1;
    if (t->eos >= 0) t->v.row[t->eos].flags |= TOKEN_EOG;
    return tokenizer_finish(t, path);
}

tokenizer *tokenizer_open_dir(const char *dir) {
    tokenizer *t = tokenizer_new();
    char *path = path_join(dir, "tokenizer.json");
    int rc =
        path_exists(path)
            ? read_dir(t, dir, path)
            : fail(EXIT_INPUT, "%s: no tokenizer.json in this directory (tokenizer.model alone is not supported)", dir);
    free(path);
    if (!rc) return t;
    tokenizer_close(t);
    return NULL;
}
