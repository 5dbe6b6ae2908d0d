/* Tokenizers of GGUF files (ggml docs/gguf.md, "tokenizer.ggml.*"), model "gpt2". `tokenizer.ggml.pre` names how text
 * is split; what a name means is not in the file but in llama.cpp, and is a row here. Ids equal llama.cpp's. */
#include "core/arena.h"
#include "core/error.h"
#include "data/tokenizer_parts.h"

#include <stdlib.h>
#include <string.h>

/* Patterns that several models share. llama.cpp writes contractions in both cases where the models have (?i:...), which
 * would also take the long s; and after every pattern what is left over is a word of its own. */
#define CONTRACTIONS "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
#define GPT2 "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"
#define WORDS_AND_SPACES(digits, tail)                                                                                 \
    "[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|" digits "| ?[^\\s\\p{L}\\p{N}]+" tail "|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
#define LLAMA3 CONTRACTIONS "|" WORDS_AND_SPACES("\\p{N}{1,3}", "[\\r\\n]*")
#define QWEN2 CONTRACTIONS "|" WORDS_AND_SPACES("\\p{N}", "[\\r\\n]*")
/* letters that are not a-z, then letters that are not A-Z: how llama.cpp approximates the case classes of o200k */
#define CASED_WORDS(end)                                                                                               \
    "[^\\r\\n\\p{L}\\p{N}]?[^\\P{L}a-z]*[^\\P{L}A-Z]+" end "|[^\\r\\n\\p{L}\\p{N}]?[^\\P{L}a-z]+[^\\P{L}A-Z]*" end
#define SPACES "\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
#define TEKKEN CASED_WORDS("") "|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|" SPACES
#define GPT4O CASED_WORDS(CONTRACTIONS "?") "|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|" SPACES
#define ASCII_PUNCTUATION "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~]"
#define DEEPSEEK3                                                                                                      \
    ASCII_PUNCTUATION "[A-Za-z]+|[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\\r\\n]*|" SPACES
/* cased letters as DeepSeek-LLM's own file lists them (Unicode 10's Lu, Ll, Lt without some blocks) */
#define DEEPSEEK_LETTERS                                                                                                                                                                                                                                                \
    "A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-ώᾀ-ᾴᾶ-ᾼιῂ-ῄῆ-ῌῐ-ΐῖ-Ίῠ-Ῥῲ-ῴῶ-ῼ" \
    "ℂℇℊ-ℓℕℙ-ℝℤΩℨK-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃"

typedef struct {
    const char *name;
    bool ignore_merges, add_bos;
    const char *pattern[6];
} pre_row;

static const pre_row pre_rows[] = {
    {"default", 0, 0, {"[\\p{P}$+<=>^~|]+", GPT2, "\\p{N}+", "[0-9][0-9][0-9]"}},
    {"gpt-2", 0, 0, {GPT2}},
    {"phi-2", 0, 0, {GPT2}},
    {"mpt", 0, 0, {GPT2}},
    {"olmo", 0, 0, {GPT2}},
    {"exaone4", 0, 0, {GPT2}},
    {"mellum", 0, 0, {GPT2}},
    {"gigachat", 0, 0, {GPT2}},
    {"trillion", 0, 0, {GPT2}},
    {"smollm", 0, 0, {"\\p{N}", GPT2}},
    {"starcoder", 0, 0, {"\\p{N}", GPT2}},
    {"refact", 0, 0, {"\\p{N}", GPT2}},
    {"command-r", 0, 0, {"\\p{N}", GPT2}},
    {"codeshell", 0, 0, {"\\p{N}", GPT2}},
    {"exaone", 0, 0, {"\\p{N}", GPT2}},
    {"minerva-7b", 0, 0, {"\\p{N}", GPT2}},
    {"llama-bpe", 1, 1, {LLAMA3}},
    {"llama3", 1, 1, {LLAMA3}},
    {"llama-v3", 1, 1, {LLAMA3}},
    {"falcon3", 1, 1, {LLAMA3}},
    {"falcon-h1", 1, 1, {LLAMA3}},
    {"pixtral", 1, 1, {LLAMA3}},
    {"lfm2", 1, 1, {LLAMA3}},
    {"dbrx", 0, 0, {LLAMA3}},
    {"smaug-bpe", 0, 0, {LLAMA3}},
    {"glm4", 0, 0, {LLAMA3}},
    {"chatglm-bpe", 0, 0, {LLAMA3}},
    {"qwen2", 0, 0, {QWEN2}},
    {"stablelm2", 0, 0, {QWEN2}},
    {"hunyuan", 0, 0, {QWEN2}},
    {"megrez", 0, 0, {QWEN2}},
    {"deepseek-r1-qwen", 0, 0, {QWEN2}},
    {"grok-2", 0, 0, {QWEN2}},
    {"tekken", 1, 1, {TEKKEN}},
    {"gpt-4o", 0, 0, {GPT4O}},
    {"llama4", 0, 0, {GPT4O}},
    {"falcon", 0, 0, {"[\\p{P}$+<=>^~|`]+", GPT2, "[0-9][0-9][0-9]"}},
    {"deepseek-llm",
     0,
     0,
     {"[\\r\\n]", "\\s?[" DEEPSEEK_LETTERS "]+", "\\s?[!-/:-~！-／：-～‘-‟　-。]+", "\\s+$", "[一-龥ࠀ-一가-퟿]+",
      "\\p{N}+"}},
    {"deepseek-coder", 0, 0, {"[\\r\\n]", "\\s?\\p{L}+", "\\s?\\p{P}+", "[一-龥ࠀ-一가-퟿]+", "\\p{N}"}},
    {"deepseek-v3", 0, 0, {"\\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+", DEEPSEEK3}},
};
#define PRE_ROWS (sizeof pre_rows / sizeof *pre_rows)

/* Tokens that end a turn in some model, known by their text: files often name only one of them as EOS. */
static const char *const eog_texts[] = {"<|eot_id|>",
                                        "<|im_end|>",
                                        "<|end|>",
                                        "<|return|>",
                                        "<end_of_turn>",
                                        "<|endoftext|>",
                                        "</s>",
                                        "<|eom_id|>",
                                        "<EOT>",
                                        "_<EOT>",
                                        "[EOT]",
                                        "[EOS]",
                                        "<|end_of_text|>",
                                        "<end_of_utterance>",
                                        "<｜end▁of▁sentence｜>"};

enum { TYPE_NORMAL = 1, TYPE_UNKNOWN, TYPE_CONTROL, TYPE_USER, TYPE_UNUSED, TYPE_BYTE };

static bool str_is(gguf_str s, const char *text) { return s.n == strlen(text) && !memcmp(s.data, text, s.n); }

static int read_pre(tokenizer *t, const gguf *g, const char *where, bool *add_bos) {
    gguf_str pre;
    if (gguf_get_string_or(g, "tokenizer.ggml.pre", (gguf_str){"", 0}, &pre)) return -1;
    if (!pre.n)
        return fail(EXIT_INPUT,
                    "%s: tokenizer.ggml.pre is missing, so how this model splits text is not known: convert "
                    "it again with a newer llama.cpp",
                    where);
    size_t row = 0;
    while (row < PRE_ROWS && !str_is(pre, pre_rows[row].name)) row++;
    if (row == PRE_ROWS)
        return fail(EXIT_INPUT,
                    "%s: tokenizer.ggml.pre is '%.*s', which is not known here (smollm, llama-bpe, qwen2, gpt-2, "
                    "tekken, deepseek-v3 and others are)",
                    where, (int)(pre.n > 64 ? 64 : pre.n), pre.data);
    const pre_row *r = &pre_rows[row];
    t->ignore_merges = r->ignore_merges;
    *add_bos = r->add_bos;
    for (int i = 0; i < 6 && r->pattern[i]; i++) {
        pre_stage *s = &t->pre[t->n_pre++];
        s->behaviour = SPLIT_ISOLATED;
        s->pattern = r->pattern[i];
        if (regex_compile(&s->re, r->name, r->pattern[i], strlen(r->pattern[i]))) return -1;
    }
    return 0;
}

static const gguf_kv *array(const gguf *g, const char *where, const char *key, bool strings, uint64_t max) {
    const gguf_kv *kv = gguf_find(g, key);
    if (!kv) {
        fail(EXIT_INPUT, "%s: %s is missing", where, key);
    } else if (kv->type != GGUF_ARRAY || (kv->elem == GGUF_STRING) != strings || kv->elem == GGUF_F32 ||
               kv->elem == GGUF_F64 || kv->elem == GGUF_BOOL || kv->elem == GGUF_ARRAY) {
        fail(EXIT_INPUT, "%s: %s is not an array of %s", where, key, strings ? "strings" : "integers");
    } else if (kv->n > max) {
        fail(EXIT_INPUT, "%s: %s has %lu elements, expected at most %lu", where, key, (unsigned long)kv->n,
             (unsigned long)max);
    } else {
        return kv;
    }
    return NULL;
}

static uint32_t flags_of_type(int64_t type) {
    return type == TYPE_CONTROL || type == TYPE_UNKNOWN ? TOKEN_ADDED | TOKEN_SPECIAL
           : type == TYPE_USER                          ? TOKEN_ADDED
                                                        : 0;
}

static int read_tokens(tokenizer *t, const gguf *g, const char *where) {
    const gguf_kv *tokens = array(g, where, "tokenizer.ggml.tokens", true, TOKENS_MAX);
    if (!tokens) return -1;
    const gguf_kv *types = NULL;
    if (gguf_find(g, "tokenizer.ggml.token_type")) {
        types = array(g, where, "tokenizer.ggml.token_type", false, TOKENS_MAX);
        if (!types) return -1;
        if (types->n != tokens->n)
            return fail(EXIT_INPUT, "%s: %lu token types for %lu tokens", where, (unsigned long)types->n,
                        (unsigned long)tokens->n);
    }
    vocab_init(&t->v, (int)tokens->n);
    for (uint64_t i = 0; i < tokens->n; i++) {
        int64_t type = types ? gguf_array_int(types, i) : TYPE_NORMAL;
        if (type < TYPE_NORMAL || type > TYPE_BYTE)
            return fail(EXIT_INPUT, "%s: token %lu has type %ld, expected 1 to 6", where, (unsigned long)i, (long)type);
        gguf_str s = tokens->strings[i];
        if (vocab_set(&t->v, where, (int64_t)i, s.data, s.n, flags_of_type(type))) return -1;
    }
    return 0;
}

static int read_merges(tokenizer *t, const gguf *g, const char *where) {
    const gguf_kv *merges = array(g, where, "tokenizer.ggml.merges", true, MERGES_MAX);
    if (!merges) return -1;
    merges_init(&t->merges, (int64_t)merges->n);
    for (uint64_t i = 0; i < merges->n; i++) {
        gguf_str s = merges->strings[i];
        const char *space =
            s.n > 1 ? memchr(s.data + 1, ' ', s.n - 1) : NULL; /* from the second byte, as llama.cpp looks */
        if (!space)
            return fail(EXIT_INPUT, "%s: merge %lu is not two tokens with a space between", where, (unsigned long)i);
        size_t left = (size_t)(space - s.data);
        if (merges_add(&t->merges, &t->v, where, (uint32_t)i, s.data, left, space + 1, s.n - left - 1, false))
            return -1;
    }
    return 0;
}

static int read_special(const tokenizer *t, const gguf *g, const char *where, const char *key, int *slot) {
    int64_t id;
    *slot = -1;
    if (!gguf_find(g, key)) return 0;
    if (gguf_get_int(g, key, INT32_MIN, UINT32_MAX, &id)) return -1;
    return tokenizer_set_special(slot, t, where, key, id);
}

static int read_specials(tokenizer *t, const gguf *g, const char *where, bool add_bos) {
    int eot, eom;
    bool add_eos;
    if (read_special(t, g, where, "tokenizer.ggml.bos_token_id", &t->bos)) return -1;
    if (read_special(t, g, where, "tokenizer.ggml.eos_token_id", &t->eos)) return -1;
    if (read_special(t, g, where, "tokenizer.ggml.padding_token_id", &t->pad)) return -1;
    if (read_special(t, g, where, "tokenizer.ggml.eot_token_id", &eot)) return -1;
    if (read_special(t, g, where, "tokenizer.ggml.eom_token_id", &eom)) return -1;
    if (gguf_get_bool_or(g, "tokenizer.ggml.add_bos_token", add_bos, &add_bos)) return -1;
    if (gguf_get_bool_or(g, "tokenizer.ggml.add_eos_token", false, &add_eos)) return -1;
    if (add_bos && t->bos < 0)
        return fail(EXIT_INPUT, "%s: a BOS token is to be added, but tokenizer.ggml.bos_token_id is missing", where);
    if (add_eos && t->eos < 0)
        return fail(EXIT_INPUT, "%s: an EOS token is to be added, but tokenizer.ggml.eos_token_id is missing", where);
    if (add_bos) t->prefix[t->n_prefix++] = t->bos;
    if (add_eos) t->suffix[t->n_suffix++] = t->eos;
    const int ends[] = {t->eos, eot, eom};
    for (int i = 0; i < 3; i++)
        if (ends[i] >= 0) t->v.row[ends[i]].flags |= TOKEN_EOG;
    for (size_t i = 0; i < sizeof eog_texts / sizeof *eog_texts; i++) {
        int id = vocab_find(&t->v, eog_texts[i], strlen(eog_texts[i]));
        if (id >= 0)
            vocab_mark_added(&t->v, id, TOKEN_SPECIAL), t->v.row[id].flags |= TOKEN_EOG; /* whatever type it has */
    }
    return 0;
}

static int read_all(tokenizer *t, const gguf *g, const char *where) {
    gguf_str model, chat;
    bool add_bos = false;
    if (gguf_get_string_or(g, "tokenizer.ggml.model", (gguf_str){"", 0}, &model)) return -1;
    if (!str_is(model, "gpt2"))
        return fail(EXIT_INPUT, "%s: tokenizer.ggml.model is '%.*s', expected 'gpt2' (byte-level BPE)", where,
                    (int)(model.n > 64 ? 64 : model.n), model.data);
    t->keep_unknown = true;
    t->longest_first = true;
    if (read_pre(t, g, where, &add_bos) || read_tokens(t, g, where) || read_merges(t, g, where)) return -1;
    if (read_specials(t, g, where, add_bos)) return -1;
    if (gguf_get_string_or(g, "tokenizer.chat_template", (gguf_str){NULL, 0}, &chat)) return -1;
    if (chat.data) {
        t->chat_template = xcalloc(chat.n + 1, 1);
        memcpy(t->chat_template, chat.data, chat.n);
    }
    return tokenizer_finish(t, where);
}

tokenizer *tokenizer_open_gguf(const gguf *g) {
    tokenizer *t = tokenizer_new();
    if (!read_all(t, g, g->file.path)) return t;
    tokenizer_close(t);
    return NULL;
}
