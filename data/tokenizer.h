/* Byte-level BPE tokenizers (Sennrich et al. 2016; GPT-2's byte alphabet) from tokenizer.json or from a GGUF file's
 * keys. A kind is a row of a table (tokenizer.c): how text is normalised, split and merged; unigram and SentencePiece
 * BPE follow as rows. Immutable after opening, so it may be shared between threads. */
#ifndef PEFT_DATA_TOKENIZER_H
#define PEFT_DATA_TOKENIZER_H

#include "core/gguf.h"
#include <stdbool.h>
#include <stdint.h>

typedef struct tokenizer tokenizer;

/* dir/tokenizer.json with dir/tokenizer_config.json, special_tokens_map.json and generation_config.json where present.
 * NULL after fail(). */
tokenizer *tokenizer_open_dir(const char *dir);
tokenizer *tokenizer_open_gguf(const gguf *g); /* may borrow from g, which must outlive it */
void tokenizer_close(tokenizer *t);

int tokenizer_vocab(const tokenizer *t); /* highest id + 1 */
int tokenizer_bos(const tokenizer *t);   /* -1 = none */
int tokenizer_eos(const tokenizer *t);
int tokenizer_pad(const tokenizer *t);
bool tokenizer_is_eog(const tokenizer *t,
                      int id); /* ends generation: eos, eot, and generation_config's eos_token_id list */
bool tokenizer_is_special(const tokenizer *t, int id);
const char *
tokenizer_template(const tokenizer *t); /* exact text of the chat template (jinja file wins over the key), or NULL */
int tokenizer_id(const tokenizer *t,
                 const char *token); /* exact token text (specials and added tokens too), -1 = absent */

typedef struct {
    int32_t *id;
    int64_t *begin, *end; /* byte span of the text */
    int64_t n, cap;
} token_list;
void token_list_free(token_list *l);

enum {
    TOKENIZE_SPECIAL = 1, /* special tokens in the text are parsed as such; otherwise they are plain text */
    TOKENIZE_ADD = 2
}; /* add what the tokenizer itself adds (BOS/EOS post-processor, add_bos_token) */
/* Appends the tokens of text[0, n) to out, with byte spans (merges across a multi-byte character keep its whole span).
 * -1 after fail(): invalid UTF-8, or the regex match limit. */
int tokenizer_encode(const tokenizer *t, const char *text, int64_t n, int flags, token_list *out);

/* The same, where no special token begins at any of the ascending byte offsets plain[0, n_plain): what stands there is
 * text, though it spells one. */
int tokenizer_encode_around(const tokenizer *t, const char *text, int64_t n, int flags, const int64_t *plain,
                            int64_t n_plain, token_list *out);
/* Bytes of the longest special token that s[0, n) begins with, 0 for none. */
int64_t tokenizer_special_at(const tokenizer *t, const char *s, int64_t n);

/* Text of tokens; heap, NUL-terminated, length in *len when len is not NULL. Specials are left out when skip_special.
 */
char *tokenizer_decode(const tokenizer *t, const int32_t *ids, int64_t n, bool skip_special, int64_t *len);
/* Bytes of one token (not always whole characters); borrowed. */
const char *tokenizer_bytes(const tokenizer *t, int id, int *n);
/* Streaming: feed bytes, get back only whole UTF-8 characters; the rest is held until it is complete or proves invalid
 * (then one U+FFFD for each maximal invalid part, as the WHATWG decoder and Rust's from_utf8_lossy do). */
typedef struct {
    char held[8];
    int n;
} utf8_stream;
/* Room for the output of n bytes: each may prove invalid and become U+FFFD, which takes three. */
#define UTF8_STREAM_OUT(n) (3 * (n) + 4)
/* out: UTF8_STREAM_OUT(n) bytes; returns the length written */
int utf8_stream_feed(utf8_stream *s, const char *bytes, int n, char *out);
int utf8_stream_end(utf8_stream *s, char *out); /* what is still held; out: UTF8_STREAM_OUT(0) */

#endif
