/* What the tokenizer's files share; included by data/tokenizer*.c and their kin only.
 *
 *   text -> added tokens cut out -> normaliser -> added tokens that match normalised text -> pre-tokeniser -> BPE ->
 * ids
 *
 * A piece is the text between added tokens together with where its bytes came from. */
#ifndef PEFT_DATA_TOKENIZER_PARTS_H
#define PEFT_DATA_TOKENIZER_PARTS_H

#define PCRE2_CODE_UNIT_WIDTH 8
#include "data/tokenizer.h"
#include <pcre2.h>
#include <stddef.h>

#define TOKENS_MAX (1 << 22) /* ids of a vocabulary */
#define MERGES_MAX (1 << 22)
#define TOKEN_TEXT_MAX (64 << 10) /* bytes of one token */

/* --- vocabulary (tokenizer_vocab.c) --- */
enum {
    TOKEN_SPECIAL = 1,
    TOKEN_ADDED = 2,    /* found in the text before it is split */
    TOKEN_ALPHABET = 4, /* written wholly in GPT-2's byte alphabet */
    TOKEN_WHOLE = 8,    /* merging its bytes gives the token itself */
    TOKEN_LSTRIP = 16,
    TOKEN_RSTRIP = 32,
    TOKEN_SINGLE_WORD = 64,
    TOKEN_NORMALIZED = 128,
    TOKEN_EOG = 256
};

typedef struct {
    const char *text, *bytes;
    int32_t text_n, bytes_n;
    uint32_t flags;
} token_row; /* text: NUL-terminated */
typedef struct {
    uint32_t hash;
    int32_t id;
} index_slot; /* id < 0: free */
typedef struct {
    index_slot *slot;
    uint32_t mask;
    int used;
} token_index;
typedef struct {
    char **block;
    int blocks;
    size_t used, size;
} string_pool;
typedef struct {
    token_row *row; /* [n] */
    int n, cap;
    token_index by_text, by_bytes; /* by_bytes: model tokens in the byte alphabet, found from raw bytes */
    int32_t byte_id[256];          /* token of a single byte, -1 = absent */
    string_pool pool;
} vocab;

void vocab_init(vocab *v, int expected);
void vocab_free(vocab *v);
/* Sets the row of id (rows up to id are made). -1 after fail(): id out of range or taken, empty, too long, not UTF-8,
 * or text that another id has. `where` names the file. */
int vocab_set(vocab *v, const char *where, int64_t id, const char *text, size_t n, uint32_t flags);
void vocab_mark_added(vocab *v, int id, uint32_t flags);           /* from now on the token decodes to its text */
int vocab_find(const vocab *v, const char *text, size_t n);        /* -1 = absent */
int vocab_find_bytes(const vocab *v, const char *bytes, size_t n); /* -1 = absent */
int vocab_check_filled(const vocab *v, const char *where);         /* -1 after fail() naming the first hole */
const char *pool_copy(string_pool *p, const char *s, size_t n);    /* NUL-terminated copy that lives as long as p */

/* --- byte-pair merges (bpe.c) --- */
typedef struct {
    uint64_t pair;
    uint32_t rank;
    int32_t id;
} merge_slot; /* pair: left << 32 | right; id < 0: free */
typedef struct {
    merge_slot *slot;
    uint64_t mask;
    int64_t n;
} merge_table;
void merges_init(merge_table *m, int64_t expected);
/* Adds the merge of rank `rank`; a pair seen before keeps its first rank (llama.cpp) or takes the last (tokenizers). */
int merges_add(merge_table *m, const vocab *v, const char *where, uint32_t rank, const char *left, size_t left_n,
               const char *right, size_t right_n, bool last_wins);
void merges_free(merge_table *m);

/* --- regular expressions (tokenizer_regex.c) --- */
typedef struct {
    pcre2_code *code;
} regex;
/* Compiles a pattern written for Oniguruma (as `tokenizers` uses it) with the same meaning, or refuses what has
 * another. */
int regex_compile(regex *r, const char *where, const char *pattern, size_t n);
int regex_compile_word(regex *r); /* a word character at the start of a text, as Rust's regex crate has it */
void regex_free(regex *r);
typedef struct {
    pcre2_match_data *data;
    pcre2_match_context *context;
    pcre2_jit_stack *stack;
} regex_scratch;
void regex_scratch_init(regex_scratch *s, int64_t text_n); /* the match limit grows with the text */
void regex_scratch_free(regex_scratch *s);
/* First match at or after `from`: 1 and its span, 0 when there is none, -1 after fail(). */
int regex_find(const regex *r, regex_scratch *s, const char *text, int64_t n, int64_t from, int64_t *begin,
               int64_t *end);

/* --- pieces and normalisation (tokenizer_normal.c) --- */
typedef struct {
    const char *s;
    int64_t n, base;      /* base: offset of s[0] in the text, used while the maps are NULL */
    int64_t *begin, *end; /* [n] span of the text that byte i came from */
    char *owned;          /* s when it is not the caller's */
} piece;
void piece_free(piece *p);
piece piece_prefix_space(const piece *p, int64_t from, int64_t to); /* " " + bytes [from, to) of p */

typedef enum {
    NORMAL_NFC,
    NORMAL_NFD,
    NORMAL_NFKC,
    NORMAL_NFKD,
    NORMAL_LOWERCASE,
    NORMAL_PREPEND,
    NORMAL_REPLACE
} normal_kind;
typedef struct {
    normal_kind kind;
    char *from, *to;
    size_t from_n, to_n;
    regex re;
    bool has_re;
} normal_step; /* owned */
/* Replaces *p by its normalised form (p is freed or left as it is when nothing changes). -1 after fail(). */
int normal_apply(const normal_step *steps, int n, regex_scratch *rs, piece *p);
char *normal_text(const normal_step *steps, int n, const char *text, size_t len,
                  size_t *out_n); /* heap, NULL = fail() */

/* --- pre-tokenisation (pretoken.c) --- */
typedef enum { SPLIT_REMOVED, SPLIT_ISOLATED, SPLIT_PREVIOUS, SPLIT_NEXT, SPLIT_CONTIGUOUS } split_behaviour;
typedef struct {
    bool prefix_space; /* not a split: puts a space before what does not start with one */
    regex re;          /* or, when re.code is NULL, */
    char *literal;
    size_t literal_n;
    split_behaviour behaviour;
    bool invert;
    const char *pattern; /* of re, where it is a constant of this program (GGUF), for tokenizer_write.c */
} pre_stage;
#define PRE_STAGES_MAX 16

/* --- added tokens (tokenizer_added.c) --- */
typedef struct {
    const char *text;
    int32_t n, id;
} added_pattern; /* text owned by the set */
typedef struct {
    added_pattern *row;
    int n;
    bool first[256];
    int not_special;
} added_set; /* sorted by text */
typedef struct {
    int64_t begin, end;
    int32_t id;
} added_hit;
/* Patterns are the rows with TOKEN_ADDED; `normalised` picks those that match normalised text. -1 after fail(). */
int added_build(added_set *a, const tokenizer *t, bool normalised);
void added_free(added_set *a);
/* Hits in order in s, not overlapping; heap in *out (NULL when none). e->plain holds for p, the piece that s is, or for
 * the whole text where p is NULL. Returns their number, -1 after fail(). */
struct encoding;
int64_t added_find(struct encoding *e, const added_set *a, const piece *p, const char *s, int64_t n, bool special,
                   added_hit **out);

/* --- the tokenizer --- */
struct tokenizer {
    vocab v;
    merge_table merges;
    normal_step *normal;
    int n_normal;
    pre_stage pre[PRE_STAGES_MAX];
    int n_pre;
    added_set raw, normalised;
    regex word;         /* a character that single_word tokens may not touch */
    bool longest_first; /* llama.cpp cuts the longest special tokens first; tokenizers goes from left to right */
    bool ignore_merges; /* a word that is a token is that token */
    bool keep_unknown;  /* bytes without a token stay between their neighbours (llama.cpp) or vanish before merging */
    int unk;            /* -1 = bytes without a token give nothing */
    bool fuse_unk;
    int bos, eos, pad;
    int32_t prefix[8], suffix[8]; /* what TOKENIZE_ADD puts around */
    int n_prefix, n_suffix;
    char *chat_template;
};

typedef struct {
    int32_t *id, *len, *at;
    uint64_t *heap;
    int64_t cap, heap_n, heap_cap;
} bpe_scratch;
typedef struct encoding {
    const tokenizer *t;
    token_list *out;
    const piece *p;
    const int64_t *plain; /* [n_plain] ascending offsets of the text where no special token begins */
    int64_t n_plain;
    regex_scratch rs;
    bpe_scratch bpe;
} encoding;

int pretoken_run(encoding *e, int stage, int64_t begin, int64_t end); /* splits e->p[begin, end), encodes each word */
void bpe_word(encoding *e, int64_t begin, int64_t end);               /* appends the tokens of one word of e->p */
void bpe_scratch_free(bpe_scratch *s);
void bpe_mark_whole(tokenizer *t); /* sets TOKEN_WHOLE; once, when vocabulary and merges are complete */
void token_emit(encoding *e, int32_t id, int64_t begin, int64_t end); /* bytes [begin, end) of e->p */

/* How GGUF's tokenizer.ggml.pre splits text, by row of a table (tokenizer_gguf.c): its name, NULL past the end; and its
 * stages into t->pre, which must be empty. */
const char *tokenizer_pre_name(int row);
int tokenizer_pre_stages(tokenizer *t, int row);

tokenizer *tokenizer_new(void);
int tokenizer_finish(tokenizer *t, const char *where); /* builds what follows from the parts; -1 after fail() */
int tokenizer_set_special(int *slot, const tokenizer *t, const char *where, const char *key, int64_t id);

#endif
