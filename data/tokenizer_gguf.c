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
/* cased letters as DeepSeek-LLM lists them */
#define DEEPSEEK_LETTERS                                                                                               \
    "\\x{41}-\\x{5a}\\x{61}-\\x{7a}\\x{b5}\\x{c0}-\\x{d6}\\x{d8}-\\x{f6}\\x{f8}-\\x{1ba}\\x{1bc}-\\x{1bf}"             \
    "\\x{1c4}-\\x{293}\\x{295}-\\x{2af}\\x{370}-\\x{373}\\x{376}-\\x{377}\\x{37b}-\\x{37d}\\x{37f}\\x{386}"            \
    "\\x{388}-\\x{38a}\\x{38c}\\x{38e}-\\x{3a1}\\x{3a3}-\\x{3f5}\\x{3f7}-\\x{481}\\x{48a}-\\x{52f}"                    \
    "\\x{531}-\\x{556}\\x{10a0}-\\x{10c5}\\x{13a0}-\\x{13f5}\\x{13f8}-\\x{13fd}\\x{1c90}-\\x{1cba}"                    \
    "\\x{1cbd}-\\x{1cbf}\\x{1d00}-\\x{1d2b}\\x{1d6b}-\\x{1d77}\\x{1d79}-\\x{1d9a}\\x{1e00}-\\x{1f15}"                  \
    "\\x{1f18}-\\x{1f1d}\\x{1f20}-\\x{1f45}\\x{1f48}-\\x{1f4d}\\x{1f50}-\\x{1f57}\\x{1f59}\\x{1f5b}\\x{1f5d}"          \
    "\\x{1f5f}-\\x{1f7d}\\x{1f80}-\\x{1fb4}\\x{1fb6}-\\x{1fbc}\\x{1fbe}\\x{1fc2}-\\x{1fc4}\\x{1fc6}-\\x{1fcc}"         \
    "\\x{1fd0}-\\x{1fd3}\\x{1fd6}-\\x{1fdb}\\x{1fe0}-\\x{1fec}\\x{1ff2}-\\x{1ff4}\\x{1ff6}-\\x{1ffc}\\x{2102}"         \
    "\\x{2107}\\x{210a}-\\x{2113}\\x{2115}\\x{2119}-\\x{211d}\\x{2124}\\x{2126}\\x{2128}\\x{212a}-\\x{212d}"           \
    "\\x{212f}-\\x{2134}\\x{2139}\\x{213c}-\\x{213f}\\x{2145}-\\x{2149}\\x{214e}\\x{2183}\\x{2184}"                    \
    "\\x{2c00}-\\x{2c7b}\\x{2c7e}-\\x{2ce4}\\x{2ceb}-\\x{2cee}\\x{2cf2}\\x{2cf3}\\x{a640}-\\x{a66d}"                   \
    "\\x{a680}-\\x{a69b}\\x{a722}-\\x{a76f}\\x{a771}-\\x{a787}\\x{a78b}-\\x{a78e}\\x{ab70}-\\x{abbf}"                  \
    "\\x{fb00}-\\x{fb06}\\x{fb13}-\\x{fb17}\\x{ff21}-\\x{ff3a}\\x{ff41}-\\x{ff5a}\\x{10400}-\\x{1044f}"                \
    "\\x{104b0}-\\x{104d3}\\x{104d8}-\\x{104fb}\\x{10c80}-\\x{10cb2}\\x{10cc0}-\\x{10cf2}"                             \
    "\\x{118a0}-\\x{118df}\\x{1e900}-\\x{1e943}"
static const char deepseek_word[] = "\\s?[" DEEPSEEK_LETTERS "]+";
/* its CJK range, 0800-4E00 and more, less the white space inside, which llama.cpp hides from such ranges */
static const char deepseek_cjk[] =
    "[\\x{800}-\\x{167f}\\x{1681}-\\x{1fff}\\x{200b}-\\x{2027}\\x{202a}-\\x{202e}\\x{2030}-\\x{205e}\\x{2060}-\\x{2fff}"
    "\\x{3001}-\\x{9fa5}\\x{ac00}-\\x{d7ff}]+";

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
     {"[\\r\\n]", deepseek_word,
      "\\s?[!-/:-~\\x{ff01}-\\x{ff0f}\\x{ff1a}-\\x{ff5e}\\x{2018}-\\x{201f}\\x{3001}\\x{3002}]+", "\\s+$", deepseek_cjk,
      "\\p{N}+"}},
    {"deepseek-coder", 0, 0, {"[\\r\\n]", "\\s?\\p{L}+", "\\s?\\p{P}+", deepseek_cjk, "\\p{N}"}},
    {"deepseek-v3", 0, 0, {"\\p{N}{1,3}", "[\\x{4e00}-\\x{9fa5}\\x{3040}-\\x{30ff}]+", DEEPSEEK3}},
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

const char *tokenizer_pre_name(int row) { return (size_t)row < PRE_ROWS ? pre_rows[row].name : NULL; }

int tokenizer_pre_stages(tokenizer *t, int row) {
    const pre_row *r = &pre_rows[row];
    t->ignore_merges = r->ignore_merges;
    for (int i = 0; i < 6 && r->pattern[i]; i++) {
        pre_stage *s = &t->pre[t->n_pre++];
        s->behaviour = SPLIT_ISOLATED;
        s->pattern = r->pattern[i];
        if (regex_compile(&s->re, r->name, r->pattern[i], strlen(r->pattern[i]))) return -1;
    }
    return 0;
}

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
    *add_bos = pre_rows[row].add_bos;
    return tokenizer_pre_stages(t, (int)row);
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
