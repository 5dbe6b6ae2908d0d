/* A GGUF file: hyperparameters from its keys (ggml docs/gguf.md, section "[llm]"). A key that llama.cpp cannot do
 * without is required here too; what would change the maths and is not built is refused by name. */
#include "core/error.h"
#include "model/names.h"
#include "model/source_parts.h"

#include <stdio.h>
#include <string.h>

enum { REQUIRED = -1, KEY_BYTES = 96 };

static void full_key(const model_source *s, const char *suffix, char key[static KEY_BYTES]) {
    snprintf(key, KEY_BYTES, "%s.%s", s->fam->gguf, suffix);
}

static int get_int(const model_source *s, const char *suffix, int64_t lo, int64_t hi, int64_t def, int64_t *out) {
    char key[KEY_BYTES];
    full_key(s, suffix, key);
    return def == REQUIRED ? gguf_get_int(&s->g, key, lo, hi, out) : gguf_get_int_or(&s->g, key, lo, hi, def, out);
}

static int get_real(const model_source *s, const char *suffix, double lo, double hi, double def, double *out) {
    char key[KEY_BYTES];
    full_key(s, suffix, key);
    if (def == REQUIRED && !gguf_find(&s->g, key))
        return fail(EXIT_INPUT, "%s: key '%s' is missing, expected a number from %g to %g", s->path, key, lo, hi);
    return gguf_get_real_or(&s->g, key, lo, hi, def, out);
}

static int fail_rope(const model_source *s, const char *key, const char *found, int n) {
    return fail(EXIT_INPUT, "%s: key '%s': rope scaling '%.*s' is not supported; supported: none", s->path, key, n,
                found);
}

/* llama.cpp takes a factor without a type as linear scaling, so both are looked at. */
static int check_rope(const model_source *s) {
    static const char *const factors[] = {"rope.scaling.factor",
                                          "rope.scale_linear"}; /* the second is the older name */
    char key[KEY_BYTES], found[32];
    gguf_str none = {"none", 4}, type;
    full_key(s, "rope.scaling.type", key);
    if (gguf_get_string_or(&s->g, key, none, &type)) return -1;
    if (type.n != 4 || memcmp(type.data, "none", 4) != 0)
        return fail_rope(s, key, type.data, (int)(type.n < 64 ? type.n : 64));
    for (int i = 0; i < 2; i++) {
        double factor;
        full_key(s, factors[i], key);
        if (gguf_get_real_or(&s->g, key, 0, 1e6, 1, &factor)) return -1;
        if (factor == 0 || factor == 1) continue;
        return fail_rope(s, key, found, snprintf(found, sizeof found, "%g", factor));
    }
    if (gguf_tensor_find(&s->g, "rope_freqs.weight"))
        return fail(EXIT_INPUT, "%s: tensor 'rope_freqs.weight': rope scaling is not supported", s->path);
    return 0;
}

/* Mixtral's files call themselves llama too. */
static int check_experts(const model_source *s) {
    int64_t experts;
    if (get_int(s, "expert_count", 0, HEADS_LIMIT, 0, &experts)) return -1;
    if (!experts) return 0;
    return fail(EXIT_INPUT, "%s: key '%s.expert_count': mixtures of experts (%ld) are not supported", s->path,
                s->fam->gguf, (long)experts);
}

static int read_family(model_source *s) {
    gguf_str arch;
    if (gguf_get_string(&s->g, "general.architecture", &arch)) return -1;
    s->fam = family_by_gguf(arch.data, arch.n);
    if (s->fam) return 0;
    char list[512];
    family_list(list, sizeof list, true);
    return fail(EXIT_INPUT, "%s: key 'general.architecture': '%.*s' is not supported; supported: %s", s->path,
                (int)(arch.n < 64 ? arch.n : 64), arch.data, list);
}

/* The vocabulary is as large as the embedding; vocab_size is a key that not every file has. */
static int read_vocab(model_source *s) {
    hparams *hp = &s->hp;
    int64_t vocab;
    const gguf_tensor *embed = gguf_tensor_find(&s->g, "token_embd.weight");
    if (!embed || embed->dims != 2)
        return fail(EXIT_INPUT, "%s: tensor 'token_embd.weight' is %s", s->path, embed ? "not a matrix" : "missing");
    hp->vocab = embed->ne[1];
    if (hp->vocab > VOCAB_LIMIT)
        return fail(EXIT_INPUT, "%s: tensor 'token_embd.weight': %ld rows, expected at most %d", s->path,
                    (long)hp->vocab, VOCAB_LIMIT);
    if (get_int(s, "vocab_size", 1, VOCAB_LIMIT, hp->vocab, &vocab)) return -1;
    if (vocab != hp->vocab)
        return fail(EXIT_INPUT, "%s: key '%s.vocab_size': found %ld, but tensor 'token_embd.weight' has %ld rows",
                    s->path, s->fam->gguf, (long)vocab, (long)hp->vocab);
    hp->tied = !gguf_tensor_find(&s->g, "output.weight");
    return 0;
}

static int read_sizes(model_source *s) {
    hparams *hp = &s->hp;
    return get_int(s, "block_count", 1, NAMES_LAYERS_MAX, REQUIRED, &hp->layers) ||
           get_int(s, "context_length", 1, CONTEXT_LIMIT, REQUIRED, &hp->context) ||
           get_int(s, "embedding_length", 1, DIM_LIMIT, REQUIRED, &hp->dim) ||
           get_int(s, "feed_forward_length", 1, DIM_LIMIT, REQUIRED, &hp->ffn) ||
           get_int(s, "attention.head_count", 1, HEADS_LIMIT, REQUIRED, &hp->heads) ||
           get_int(s, "attention.head_count_kv", 1, HEADS_LIMIT, hp->heads, &hp->kv_heads) ||
           get_int(s, "attention.key_length", 1, DIM_LIMIT, 0, &hp->head_dim) ||
           get_real(s, "attention.layer_norm_rms_epsilon", EPS_MIN, EPS_MAX, REQUIRED, &hp->norm_eps) ||
           get_real(s, "rope.freq_base", 1, THETA_MAX, 10000, &hp->rope_theta);
}

/* The row changes with the key: Mistral's files are llama's with a window. A window of another architecture is of some
 * layers only, and the files do not say of which. */
static int read_window(model_source *s) {
    int64_t window;
    if (get_int(s, "attention.sliding_window", 0, CONTEXT_LIMIT, 0, &window)) return -1;
    if (window && family_windowed(s->fam)) s->fam = family_windowed(s->fam), s->hp.window = window;
    if (!window || s->hp.window || window >= s->hp.context) return 0;
    return fail(EXIT_INPUT, "%s: key '%s.attention.sliding_window': %ld keys of %ld positions are not supported here",
                s->path, s->fam->gguf, (long)window, (long)s->hp.context);
}

/* Heads whose keys, values and rotated part are of different sizes. */
static int check_head(const model_source *s) {
    static const char *const suffixes[] = {"attention.value_length", "rope.dimension_count"};
    int64_t head = s->hp.head_dim ? s->hp.head_dim : s->hp.dim / s->hp.heads, n;
    for (int i = 0; i < 2; i++) {
        if (get_int(s, suffixes[i], 1, DIM_LIMIT, head, &n)) return -1;
        if (n != head)
            return fail(EXIT_INPUT,
                        "%s: key '%s.%s': found %ld, expected the head's size %ld: others are not supported", s->path,
                        s->fam->gguf, suffixes[i], (long)n, (long)head);
    }
    return 0;
}

int source_open_gguf(model_source *s) {
    s->is_gguf = true;
    return gguf_open(&s->g, s->path) || read_family(s) || check_experts(s) || read_sizes(s) || read_vocab(s) ||
                   check_head(s) || check_rope(s) || read_window(s)
               ? -1
               : 0;
}
