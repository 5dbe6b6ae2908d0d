/* Tokenizers of Hugging Face directories: tokenizer.json as the `tokenizers` package reads it. Every component is a row
 * of a table below; one that is not there is an error, since each changes ids. */
#include "core/arena.h"
#include "core/error.h"
#include "core/json.h"
#include "data/tokenizer_hf.h"

#include <stdlib.h>
#include <string.h>

#define GPT2_PATTERN "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"
#define NESTING_MAX 8 /* Sequence inside Sequence */

typedef int component_fn(hf_reader *r, const json_t *o, int depth);
typedef struct {
    const char *type;
    component_fn *read;
} component;

/* Reads o by the row of its "type"; null is nothing. what: "normalizer", "pre_tokenizer" ... */
static int dispatch(hf_reader *r, const char *what, const component *rows, const json_t *o, int depth) {
    if (!o || json_is_null(o)) return 0;
    const char *type = json_string_value(json_object_get(o, "type"));
    if (!type) return fail(EXIT_INPUT, "%s: %s: expected an object with a 'type'", r->where, what);
    if (depth > NESTING_MAX) return fail(EXIT_INPUT, "%s: %s: nested deeper than %d", r->where, what, NESTING_MAX);
    for (; rows->type; rows++)
        if (!strcmp(rows->type, type)) return rows->read(r, o, depth);
    return fail(EXIT_INPUT, "%s: %s of type '%s' is not supported", r->where, what, type);
}

static int each(hf_reader *r, const char *what, const component *rows, const json_t *o, const char *key, int depth) {
    const json_t *list = json_object_get(o, key);
    if (!json_is_array(list)) return fail(EXIT_INPUT, "%s: %s: expected a list '%s'", r->where, what, key);
    for (size_t i = 0; i < json_array_size(list); i++)
        if (dispatch(r, what, rows, json_array_get(list, i), depth + 1)) return -1;
    return 0;
}

/* --- normalizer --- */

static normal_step *normal_add(hf_reader *r, normal_kind kind) {
    tokenizer *t = r->t;
    t->normal = xrealloc(t->normal, (size_t)t->n_normal + 1, sizeof *t->normal);
    t->normal[t->n_normal] = (normal_step){.kind = kind};
    return &t->normal[t->n_normal++];
}

static int read_form(hf_reader *r, const json_t *o, int depth) {
    static const char *const names[] = {[NORMAL_NFC] = "NFC",
                                        [NORMAL_NFD] = "NFD",
                                        [NORMAL_NFKC] = "NFKC",
                                        [NORMAL_NFKD] = "NFKD",
                                        [NORMAL_LOWERCASE] = "Lowercase"};
    (void)depth;
    const char *type = json_string_value(json_object_get(o, "type"));
    for (size_t k = 0; k < sizeof names / sizeof *names; k++)
        if (!strcmp(names[k], type)) normal_add(r, (normal_kind)k);
    return 0;
}

static char *take_string(const json_t *s, size_t *n) {
    *n = json_string_length(s);
    return memcpy(xcalloc(*n + 1, 1), json_string_value(s), *n);
}

static int read_prepend(hf_reader *r, const json_t *o, int depth) {
    (void)depth;
    const json_t *s = json_object_get(o, "prepend");
    if (!json_is_string(s)) return fail(EXIT_INPUT, "%s: normalizer Prepend: expected a string 'prepend'", r->where);
    normal_step *step = normal_add(r, NORMAL_PREPEND);
    step->to = take_string(s, &step->to_n);
    return 0;
}

/* {"String": s} or {"Regex": s} */
static int read_pattern(hf_reader *r, const char *what, const json_t *o, regex *re, char **literal, size_t *literal_n) {
    const json_t *pattern = json_object_get(o, "pattern");
    const json_t *s = json_object_get(pattern, "String"), *x = json_object_get(pattern, "Regex");
    if (json_is_string(s) && json_string_length(s)) {
        *literal = take_string(s, literal_n);
        return 0;
    }
    if (json_is_string(x)) return regex_compile(re, r->where, json_string_value(x), json_string_length(x));
    return fail(EXIT_INPUT, "%s: %s: expected a pattern with a 'String' or a 'Regex'", r->where, what);
}

static int read_replace(hf_reader *r, const json_t *o, int depth) {
    (void)depth;
    const json_t *content = json_object_get(o, "content");
    if (!json_is_string(content))
        return fail(EXIT_INPUT, "%s: normalizer Replace: expected a string 'content'", r->where);
    normal_step *step = normal_add(r, NORMAL_REPLACE);
    step->to = take_string(content, &step->to_n);
    if (read_pattern(r, "normalizer Replace", o, &step->re, &step->from, &step->from_n)) return -1;
    step->has_re = step->re.code != NULL;
    return 0;
}

static component_fn read_normal_sequence;
static const component normal_rows[] = {{"NFC", read_form},
                                        {"NFD", read_form},
                                        {"NFKC", read_form},
                                        {"NFKD", read_form},
                                        {"Lowercase", read_form},
                                        {"Prepend", read_prepend},
                                        {"Replace", read_replace},
                                        {"Sequence", read_normal_sequence},
                                        {NULL, NULL}};
static int read_normal_sequence(hf_reader *r, const json_t *o, int depth) {
    return each(r, "normalizer", normal_rows, o, "normalizers", depth);
}

/* --- pre_tokenizer --- */

static pre_stage *pre_add(hf_reader *r) {
    if (r->saw_bytes) {
        fail(EXIT_INPUT, "%s: pre_tokenizer: a component after ByteLevel is not supported", r->where);
        return NULL;
    }
    if (r->t->n_pre == PRE_STAGES_MAX) {
        fail(EXIT_INPUT, "%s: pre_tokenizer: more than %d components", r->where, PRE_STAGES_MAX);
        return NULL;
    }
    return &r->t->pre[r->t->n_pre++];
}

static int pre_regex(hf_reader *r, const char *pattern, split_behaviour behaviour) {
    pre_stage *s = pre_add(r);
    if (!s) return -1;
    s->behaviour = behaviour;
    return regex_compile(&s->re, r->where, pattern, strlen(pattern));
}

static int read_behaviour(hf_reader *r, const json_t *o, split_behaviour *out) {
    static const char *const names[] = {[SPLIT_REMOVED] = "Removed",
                                        [SPLIT_ISOLATED] = "Isolated",
                                        [SPLIT_PREVIOUS] = "MergedWithPrevious",
                                        [SPLIT_NEXT] = "MergedWithNext",
                                        [SPLIT_CONTIGUOUS] = "Contiguous"};
    const char *name = json_string_value(json_object_get(o, "behavior"));
    for (size_t k = 0; name && k < sizeof names / sizeof *names; k++)
        if (!strcmp(names[k], name)) return *out = (split_behaviour)k, 0;
    return fail(EXIT_INPUT, "%s: pre_tokenizer: behavior '%s' is not known", r->where, name ? name : "(none)");
}

static int read_split(hf_reader *r, const json_t *o, int depth) {
    (void)depth;
    pre_stage *s = pre_add(r);
    if (!s || read_behaviour(r, o, &s->behaviour)) return -1;
    if (json_get_bool_or(r->where, o, "invert", false, &s->invert)) return -1;
    return read_pattern(r, "pre_tokenizer Split", o, &s->re, &s->literal, &s->literal_n);
}

static int read_digits(hf_reader *r, const json_t *o, int depth) {
    bool individual;
    (void)depth;
    if (json_get_bool_or(r->where, o, "individual_digits", false, &individual)) return -1;
    return pre_regex(r, "\\p{N}", individual ? SPLIT_ISOLATED : SPLIT_CONTIGUOUS);
}

/* ASCII punctuation and \p{P} as of Unicode 7, which tokenizers has here: what is punctuation only since then is left
 * out, what no longer is one is in. */
#define PUNCTUATION                                                                                                                \
    "(?![\\x{61d}\\x{9fd}\\x{a76}\\x{c77}\\x{c84}\\x{1b4e}\\x{1b4f}\\x{1b7d}-\\x{1b7f}\\x{2e43}-\\x{2e4f}\\x{2e52}-\\x{2e5d}"      \
    "\\x{10d6e}\\x{10ead}\\x{10f55}-\\x{10f59}\\x{10f86}-\\x{10f89}\\x{113d4}\\x{113d5}\\x{113d7}\\x{113d8}\\x{1144b}-\\x{1144f}"  \
    "\\x{1145a}\\x{1145b}\\x{1145d}\\x{11660}-\\x{1166c}\\x{116b9}\\x{1183b}\\x{11944}-\\x{11946}\\x{119e2}\\x{11a3f}-\\x{11a46}"  \
    "\\x{11a9a}-\\x{11a9c}\\x{11a9e}-\\x{11aa2}\\x{11b00}-\\x{11b09}\\x{11be1}\\x{11c41}-\\x{11c45}\\x{11c70}\\x{11c71}\\x{11ef7}" \
    "\\x{11ef8}\\x{11f43}-\\x{11f4f}\\x{11fff}\\x{12ff1}\\x{12ff2}\\x{16d6d}-\\x{16d6f}\\x{16e97}-\\x{16e9a}\\x{16fe2}\\x{1e5ff}"  \
    "\\x{1e95e}\\x{1e95f}])[\\p{P}!-/:-@\\[-`{-~\\x{166d}\\x{111c9}]"

static int read_punctuation(hf_reader *r, const json_t *o, int depth) {
    split_behaviour how = SPLIT_ISOLATED;
    (void)depth;
    if (json_object_get(o, "behavior") && read_behaviour(r, o, &how)) return -1;
    return pre_regex(r, PUNCTUATION, how);
}

static int read_byte_level(hf_reader *r, const json_t *o, int depth) {
    bool prefix, use_regex;
    (void)depth;
    if (json_get_bool_or(r->where, o, "add_prefix_space", true, &prefix)) return -1;
    if (json_get_bool_or(r->where, o, "use_regex", true, &use_regex)) return -1;
    if (prefix) {
        pre_stage *s = pre_add(r);
        if (!s) return -1;
        s->prefix_space = true;
    }
    if (use_regex && pre_regex(r, GPT2_PATTERN, SPLIT_ISOLATED)) return -1;
    if (r->saw_bytes) return fail(EXIT_INPUT, "%s: pre_tokenizer: ByteLevel twice", r->where);
    r->saw_bytes = true;
    return 0;
}

static component_fn read_pre_sequence;
static const component pre_rows[] = {{"ByteLevel", read_byte_level},  {"Split", read_split},
                                     {"Digits", read_digits},         {"Punctuation", read_punctuation},
                                     {"Sequence", read_pre_sequence}, {NULL, NULL}};
static int read_pre_sequence(hf_reader *r, const json_t *o, int depth) {
    return each(r, "pre_tokenizer", pre_rows, o, "pretokenizers", depth);
}

/* --- post_processor, decoder --- */

static int read_offsets_only(hf_reader *r, const json_t *o, int depth) { /* trims spans of spaces; ours stay whole */
    (void)r, (void)o, (void)depth;
    return 0;
}

/* ids of {"SpecialToken": {"id": name}} in the template's own table */
static int template_ids(hf_reader *r, const json_t *o, const char *name, int32_t *to, int *n) {
    const json_t *ids = json_object_get(json_object_get(json_object_get(o, "special_tokens"), name), "ids");
    if (!json_is_array(ids))
        return fail(EXIT_INPUT, "%s: post_processor: no ids for special token '%.64s'", r->where, name);
    for (size_t i = 0; i < json_array_size(ids); i++) {
        const json_t *id = json_array_get(ids, i);
        if (*n == 8) return fail(EXIT_INPUT, "%s: post_processor: more than 8 tokens on one side", r->where);
        int slot;
        if (!json_is_integer(id))
            return fail(EXIT_INPUT, "%s: post_processor: an id of '%.64s' is no integer", r->where, name);
        if (tokenizer_set_special(&slot, r->t, r->where, "an id of post_processor", json_integer_value(id))) return -1;
        to[(*n)++] = slot;
    }
    return 0;
}

static int read_template(hf_reader *r, const json_t *o, int depth) {
    const json_t *single = json_object_get(o, "single");
    int32_t side[2][8];
    int n[2] = {0, 0}, texts = 0;
    (void)depth;
    for (size_t i = 0; i < json_array_size(single); i++) {
        const json_t *item = json_array_get(single, i);
        const char *name = json_string_value(json_object_get(json_object_get(item, "SpecialToken"), "id"));
        const char *text = json_string_value(json_object_get(json_object_get(item, "Sequence"), "id"));
        if (name ? template_ids(r, o, name, side[texts], &n[texts]) : !text || strcmp(text, "A") != 0 || texts++)
            return fail(EXIT_INPUT, "%s: post_processor: TemplateProcessing: item %zu of 'single' is not known",
                        r->where, i);
    }
    tokenizer *t = r->t;
    if (texts != 1 || t->n_prefix + n[0] > 8 || t->n_suffix + n[1] > 8)
        return fail(EXIT_INPUT, "%s: post_processor: TemplateProcessing: 'single' holds the text %d times", r->where,
                    texts);
    memmove(t->prefix + n[0], t->prefix, (size_t)t->n_prefix * sizeof *t->prefix); /* a later one goes around */
    memcpy(t->prefix, side[0], (size_t)n[0] * sizeof *t->prefix);
    memcpy(t->suffix + t->n_suffix, side[1], (size_t)n[1] * sizeof *t->suffix);
    t->n_prefix += n[0];
    t->n_suffix += n[1];
    return 0;
}

static component_fn read_post_sequence;
static const component post_rows[] = {{"ByteLevel", read_offsets_only},
                                      {"TemplateProcessing", read_template},
                                      {"Sequence", read_post_sequence},
                                      {NULL, NULL}};
static int read_post_sequence(hf_reader *r, const json_t *o, int depth) {
    return each(r, "post_processor", post_rows, o, "processors", depth);
}

static int read_byte_decoder(hf_reader *r, const json_t *o, int depth) {
    (void)o, (void)depth;
    r->saw_decoder = true;
    return 0;
}
static const component decoder_rows[] = {{"ByteLevel", read_byte_decoder}, {NULL, NULL}};

int hf_read_components(hf_reader *r, const json_t *root) {
    if (dispatch(r, "normalizer", normal_rows, json_object_get(root, "normalizer"), 0)) return -1;
    if (dispatch(r, "pre_tokenizer", pre_rows, json_object_get(root, "pre_tokenizer"), 0)) return -1;
    if (dispatch(r, "post_processor", post_rows, json_object_get(root, "post_processor"), 0)) return -1;
    if (dispatch(r, "decoder", decoder_rows, json_object_get(root, "decoder"), 0)) return -1;
    if (!r->saw_bytes || !r->saw_decoder)
        return fail(EXIT_INPUT, "%s: no ByteLevel %s: only byte-level BPE is supported", r->where,
                    r->saw_bytes ? "decoder" : "pre_tokenizer");
    return 0;
}
