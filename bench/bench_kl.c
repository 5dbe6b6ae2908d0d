/* How far the fast mode's next-token distributions are from the canonical path's, over a text.
 *
 *   bench_kl MODEL [--isa NAME] [--threads N] [--rows TOKENS] [--4bit] [TEXTFILE]       TEXTFILE: README.md */
#include "bench/divergence.h"
#include "bench/measure.h"
#include "core/file.h"
#include "core/threads.h"

#include <stdio.h>

enum { PIECE = 64 };

static float *logits(const model_source *src, const char *backend, bool four_bit, int threads, const token_list *t,
                     int n) {
    const inference_options how = {.backend = backend,
                                   .threads = threads,
                                   .base_given = true,
                                   .load_in_4bit = four_bit,
                                   .double_quant = true,
                                   .cache = {QUANT_CACHE_ON, NULL, QUANT_CACHE_MIN_BYTES}};
    return all_logits(src, &how, t->id, n, PIECE);
}

static int measure(const bench_options *o, const char *model, bool four_bit, const char *text) {
    model_source src;
    file_map file;
    token_list t = {0};
    if (model_source_open(&src, model) || file_open(&file, text)) return -1;
    tokenizer *tok = model_tokenizer(&src, NULL);
    if (!tok || tokenizer_encode(tok, (const char *)file.data, (int64_t)file.size, TOKENIZE_ADD, &t)) return -1;
    const int n = t.n < o->rows ? (int)t.n : (int)o->rows;
    float *precise = logits(&src, "auto", four_bit, o->threads, &t, n);
    float *fast = precise ? logits(&src, o->isa, four_bit, o->threads, &t, n) : NULL;
    if (!fast) return -1;
    const divergence d = diverge(precise, fast, t.id, n, src.hp.vocab);
    printf(
        "{\"bench\": \"infer\", \"figure\": \"divergence\", \"side\": \"ours\", \"model\": \"%s\", \"base\": \"%s\", \"mode\": "
        "\"%s\", \"text\": \"%s\", \"tokens\": %d, \"kl_mean\": %.3e, \"kl_max\": %.3e, \"same_word_percent\": %.2f, "
        "\"perplexity\": %.4f, \"fast_perplexity\": %.4f}\n",
        model, four_bit ? "nf4" : "stored", o->be->name, text, n, d.mean, d.max, 100 * d.agree, d.perplexity_p,
        d.perplexity_q);
    free(precise), free(fast);
    token_list_free(&t);
    tokenizer_close(tok);
    file_close(&file);
    model_source_close(&src);
    return 0;
}

int main(int argc, char **argv) {
    bench_options o = {.isa = "int8", .word = "README.md", .rows = 512, .runs = 1};
    char *rest[64] = {argv[0]};
    bool four_bit = false;
    int n = 1;
    threads_settle(argv);
    for (int i = 2; i < argc && n < 62; i++)
        if (!strcmp(argv[i], "--4bit"))
            four_bit = true;
        else
            rest[n++] = argv[i];
    if (argc < 2) return fail(EXIT_USAGE, "a model is missing"), fail_report("bench_kl");
    if (bench_begin(&o, rest) || measure(&o, argv[1], four_bit, o.word)) return fail_report("bench_kl");
    return 0;
}
