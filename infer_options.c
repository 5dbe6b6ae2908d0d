#include "infer_options.h"
#include "core/arena.h"
#include "core/error.h"
#include "core/file.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef enum { SECTION, TEXT, FLAG, BOOL, WHOLE, REAL, CALL } kind;

/* offset: where the value goes; lo, hi: of numbers; live: /set may change it in a chat */
typedef struct {
    kind kind;
    const char *name, *arg, *help;
    size_t offset;
    double lo, hi;
    int (*take)(infer_options *o, const char *text);
    bool live;
} row;

static int number(const char *name, const char *text, double lo, double hi, bool whole, double *out) {
    char *end;
    errno = 0;
    *out = strtod(text, &end);
    if (end == text || *end || errno || !(*out >= lo && *out <= hi) || (whole && *out != floor(*out)))
        return fail(EXIT_USAGE, "--%s: found '%s', expected a%s number from %.10g to %.10g", name, text,
                    whole ? " whole" : "", lo, hi);
    return 0;
}

/* DIR, or DIR:SCALE; a directory whose name ends like that is taken as it is. */
static int take_adapter(infer_options *o, const char *text) {
    char *copy = xstrdup(text), *colon = strrchr(copy, ':'); /* lives as long as the program */
    double scale = 1;
    if (o->how.adapters == SHARES_MAX) return fail(EXIT_USAGE, "--adapter: more than %d of them", SHARES_MAX);
    if (colon && !path_exists(text)) {
        if (number("adapter", colon + 1, -1e3, 1e3, false, &scale)) return -1;
        *colon = 0;
    }
    o->how.adapter[o->how.adapters++] = (adapter_choice){copy, (float)scale};
    return 0;
}

static int take_4bit(infer_options *o, const char *text) {
    o->how.base_given = true;
    o->how.load_in_4bit = !text || !strcmp(text, "true");
    if (o->how.load_in_4bit || !strcmp(text, "false")) return 0;
    return fail(EXIT_USAGE, "--load-in-4bit: found '%s', expected true or false", text);
}

static int take_plain(infer_options *o, const char *text) {
    (void)text;
    o->how.double_quant = false;
    return 0;
}

static int take_cache(infer_options *o, const char *text) {
    if (quant_cache_mode_by_name(text, &o->how.cache.mode)) return 0;
    return fail(EXIT_USAGE, "--quantized-base-cache: found '%s', expected " QUANT_CACHE_MODES, text);
}

static int take_kv(infer_options *o, const char *text) {
    for (int i = 0; i < KV_TYPES; i++)
        if (!strcmp(kv_type_names[i], text)) {
            o->kv_type = (kv_type)i;
            return 0;
        }
    return fail(EXIT_USAGE, "--kv-cache-type: found '%s', expected f32, bf16 or q8_0", text);
}

static int take_adapter_type(infer_options *o, const char *text) {
    o->adapter_type_given = true;
    o->how.adapter_type = !strcmp(text, "bf16") ? BF16 : F32;
    if (o->how.adapter_type == BF16 || !strcmp(text, "f32")) return 0;
    return fail(EXIT_USAGE, "--adapter-type: found '%s', expected f32 or bf16", text);
}

static int take_stop(infer_options *o, const char *text) {
    if (o->stops == STOPS_MAX) return fail(EXIT_USAGE, "--stop: more than %d of them", STOPS_MAX);
    o->stop[o->stops++] = text;
    return 0;
}

/* ID+BIAS, ID-BIAS, ID-inf */
static int take_bias(infer_options *o, const char *text) {
    char *sign, *end;
    errno = 0;
    long id = strtol(text, &sign, 10);
    double bias = *sign == '+' || *sign == '-' ? strtod(sign, &end) : NAN;
    if (o->biases == BIASES_MAX) return fail(EXIT_USAGE, "--logit-bias: more than %d of them", BIASES_MAX);
    if (isnan(bias) || *end || errno || id < 0 || id > INT32_MAX || sign == text)
        return fail(EXIT_USAGE, "--logit-bias: found '%s', expected a token's number and +X or -X: 15043+1, 2-inf",
                    text);
    o->bias[o->biases++] = (token_bias){(int32_t)id, (float)bias};
    return 0;
}

#define AT(field) .offset = offsetof(infer_options, field)
#define FROM_TO(a, b) .lo = (a), .hi = (b)
static const row rows[] = {
    {SECTION, .help = "what to do, one of"},
    {TEXT, "prompt", "TEXT", "continue TEXT as it is; with --chat: answer it as one user turn", AT(prompt)},
    {TEXT, "file", "PATH", "the same with the text of a file, - for standard input", AT(file)},
    {FLAG, "chat", NULL, "talk: /help lists what can be said besides", AT(chat)},
    {TEXT, "batch", "FILE.jsonl",
     "answer every row: {\"prompt\": ...} or {\"messages\": [...]}, in the order of the file", AT(batch)},
    {TEXT, "score", "FILE.jsonl", "log-probabilities of rows with \"text\" or \"input_ids\"; nll and perplexity",
     AT(score)},
    {TEXT, "imatrix", "OUT",
     "with --text: the importance matrix of the model for ./quantize and llama.cpp (OUT.dat: older format)",
     AT(imatrix)},
    {TEXT, "text", "FILE", "plain text, or rows as --score's in FILE.jsonl", AT(text)},
    {SECTION, .help = "the model"},
    {TEXT, "model", "M", "Hugging Face directory or GGUF file", AT(model)},
    {TEXT, "tokenizer", "DIR", "take the tokenizer from there", AT(tokenizer)},
    {CALL, "adapter", "A[:SCALE]", "LoRA adapter, PEFT directory or GGUF file, applied unmerged; several: their sum",
     .take = take_adapter},
    {FLAG, "merge", NULL, "merge the adapters into the base in memory instead", AT(merge)},
    {CALL, "adapter-type", "T", "how adapters are held: bf16, f32 (bf16; with --precise f32)",
     .take = take_adapter_type},
    {BOOL, "load-in-4bit", "BOOL",
     "hold the linear layers in NF4, as training with load_in_4bit does (what the adapter was trained on; without one, as the file has them)",
     .take = take_4bit},
    {FLAG, "no-double-quant", NULL, "with --load-in-4bit: plain fp32 scales", .take = take_plain},
    {CALL, "quantized-base-cache", "MODE",
     "with --load-in-4bit: true = keep the NF4 weights in a file for later starts; false; verify = true, and read the whole base to be sure that it is unchanged (true)",
     .take = take_cache},
    {TEXT, "quantized-base-cache-dir", "DIR", "of these files (${XDG_CACHE_HOME:-~/.cache}/peft.c/nf4)",
     AT(how.cache.dir)},
    {SECTION, .help = "the text"},
    {TEXT, "system", "TEXT", "with --chat and --batch: the system turn", AT(system), .live = true},
    {TEXT, "chat-template", "NAME", "chatml, llama3 ...; or a file with Jinja text (the model's own)",
     AT(chat_template)},
    {WHOLE, "max-tokens", "N", "tokens of an answer at most (256)", AT(max_tokens), FROM_TO(1, 1 << 28), .live = true},
    {FLAG, "ignore-eos", NULL, "go on past the end token, to --max-tokens", AT(ignore_eos), .live = true},
    {CALL, "stop", "TEXT", "the answer ends before TEXT; may be given several times", .take = take_stop, .live = true},
    {WHOLE, "logprobs", "N", "with --json and --batch: log-probabilities of each token and the N most probable ones",
     AT(logprobs), FROM_TO(0, LOGPROBS_MAX)},
    {FLAG, "json", NULL, "one JSON object instead of text", AT(json)},
    {SECTION, .help = "the choice of tokens, in this order"},
    {CALL, "logit-bias", "ID+X", "adds X to the logit of a token; -inf bans it; may be given several times",
     .take = take_bias, .live = true},
    {REAL, "repeat-penalty", "X", "divides positive and multiplies negative logits of recent tokens (1 = none)",
     AT(sampling.repetition), FROM_TO(1e-3, 1e3), .live = true},
    {WHOLE, "repeat-last-n", "N", "how many tokens are recent; -1 = all (64)", AT(repeat_last_n), FROM_TO(-1, 1 << 28),
     .live = true},
    {REAL, "frequency-penalty", "X", "off the logit of a token for each time that the answer has it (0)",
     AT(sampling.frequency), FROM_TO(-100, 100), .live = true},
    {REAL, "presence-penalty", "X", "off the logit of every token that the answer has (0)", AT(sampling.presence),
     FROM_TO(-100, 100), .live = true},
    {WHOLE, "top-k", "N", "keep the N most probable tokens, 0 = all (40)", AT(top_k), FROM_TO(0, 1 << 28),
     .live = true},
    {REAL, "top-p", "X", "of these the most probable ones that make up X (0.95)", AT(sampling.top_p), FROM_TO(0, 1),
     .live = true},
    {REAL, "min-p", "X", "of these the ones with X times the largest probability (0)", AT(sampling.min_p),
     FROM_TO(0, 1), .live = true},
    {REAL, "temperature", "X", "0 = always the most probable token (0.8)", AT(sampling.temperature), FROM_TO(0, 100),
     .live = true},
    {WHOLE, "seed", "N", "of the draw (0)", AT(seed), FROM_TO(0, 9e15), .live = true},
    {SECTION, .help = "guesses ahead, which change no answer"},
    {FLAG, "lookup", NULL, "guess that text goes on as it did before: for answers that repeat their prompt",
     AT(lookup)},
    {TEXT, "draft-model", "M", "guess by a smaller model with the same tokenizer", AT(draft_model)},
    {SECTION, .help = "the machine"},
    {FLAG, "precise", NULL,
     "canonical fp32 arithmetic; without it, products of quantised weights are made in integers, with activations rounded to 8 bits, and weights of 16 and 32 bits are held in 8 (--score and --imatrix: always); on a GPU fp32 in place of bf16",
     AT(precise)},
    {WHOLE, "context", "N", "tokens of a conversation at most (the model's, at most 4096)", AT(context),
     FROM_TO(1, 1 << 28)},
    {WHOLE, "parallel", "N", "with --batch: rows that are computed at once (16)", AT(parallel), FROM_TO(1, 1024)},
    {CALL, "kv-cache-type", "T", "of keys and values: f32, bf16, q8_0 (f32)", .take = take_kv},
    {WHOLE, "threads", "N", "0 = one for each core (0)", AT(threads), FROM_TO(0, THREADS_MAX)},
    {TEXT, "backend", "NAME",
     "auto, ref, avx2, avx512, neon (auto); or bf16: products in bf16, avx512-bf16 or amx; or cuda: an NVIDIA GPU (make cuda)",
     AT(how.backend)},
};
enum { ROWS = sizeof rows / sizeof *rows, INDENT = 30, WIDTH = 112 };

static void print_help(const char *text, int at) {
    while (*text) {
        int n = (int)strcspn(text, " ");
        if (at + n > WIDTH) printf("\n%*s", INDENT, ""), at = INDENT;
        printf("%.*s", n, text);
        at += n, text += n;
        if (*text == ' ') putchar(' '), at++, text++;
    }
    putchar('\n');
}

static void help(void) {
    printf(
        "usage: ./infer --model M [--adapter DIR[:SCALE] ...] --prompt TEXT | --file PATH | --chat | --batch FILE | --score FILE | --imatrix OUT\n");
    for (int i = 0; i < ROWS; i++) {
        const row *r = &rows[i];
        char left[64];
        if (r->kind == SECTION) {
            printf("\n%s\n", r->help);
            continue;
        }
        snprintf(left, sizeof left, "  --%s%s%s%s", r->name,
                 r->kind == BOOL ? "[="
                 : r->arg        ? " "
                                 : "",
                 r->arg ? r->arg : "", r->kind == BOOL ? "]" : "");
        printf("%-*s%s", INDENT, left, strlen(left) >= INDENT ? " " : "");
        print_help(r->help, strlen(left) >= INDENT ? (int)strlen(left) + 1 : INDENT);
    }
}

static const row *find(const char *name, size_t n) {
    for (int i = 0; i < ROWS; i++)
        if (rows[i].name && strlen(rows[i].name) == n && !strncmp(rows[i].name, name, n)) return &rows[i];
    return NULL;
}

static int take(infer_options *o, const row *r, const char *text) {
    void *at = (char *)o + r->offset;
    double x;
    if (r->take) return r->take(o, text);
    switch (r->kind) {
    case TEXT: *(const char **)at = text; return 0;
    case FLAG: *(bool *)at = !text || !strcmp(text, "true"); return 0;
    default:
        if (number(r->name, text, r->lo, r->hi, r->kind == WHOLE, &x)) return -1;
        if (r->kind == WHOLE)
            *(int64_t *)at = (int64_t)x;
        else
            *(double *)at = x;
        return 0;
    }
}

int infer_options_set(infer_options *o, const char *name, const char *text) {
    const row *r = find(name, strlen(name));
    if (!r || !r->live) return fail(EXIT_USAGE, "'%s' cannot be set here", name);
    return take(o, r, xstrdup(text)); /* lives as long as the program */
}

/* --name value, --name=value, --flag, --flag=false */
static int parse_one(infer_options *o, int argc, char **argv, int *i) {
    const char *a = argv[*i], *value = strchr(a, '=');
    if (strncmp(a, "--", 2)) return fail(EXIT_USAGE, "unexpected argument '%s'; see ./infer --help", a);
    const row *r = find(a + 2, value ? (size_t)(value - a - 2) : strlen(a + 2));
    if (!r) return fail(EXIT_USAGE, "unknown option '%s'; see ./infer --help", a);
    if (value)
        value++;
    else if (r->kind != FLAG && r->kind != BOOL && !(value = ++*i < argc ? argv[*i] : NULL))
        return fail(EXIT_USAGE, "%s: expected %s behind it", a, r->arg);
    if (r->kind == FLAG && value && strcmp(value, "true") && strcmp(value, "false"))
        return fail(EXIT_USAGE, "--%s: found '%s', expected true or false", r->name, value);
    return take(o, r, value);
}

static int check(const infer_options *o) {
    bool text = o->prompt || o->file;
    if (!o->model) return fail(EXIT_USAGE, "--model is missing; see ./infer --help");
    if (o->prompt && o->file) return fail(EXIT_USAGE, "--prompt and --file exclude each other");
    if (!!o->score + !!o->imatrix + !!o->batch + (o->chat || text) != 1)
        return fail(EXIT_USAGE,
                    "expected one of --prompt, --file, --chat, --batch, --score and --imatrix; see ./infer --help");
    if (!o->imatrix != !o->text) return fail(EXIT_USAGE, "--imatrix and --text belong together; see ./infer --help");
    if (o->merge && !o->how.adapters) return fail(EXIT_USAGE, "--merge needs --adapter");
    if (o->system && !o->chat && !o->batch) return fail(EXIT_USAGE, "--system needs --chat or --batch");
    if (o->logprobs >= 0 && !o->json && !o->batch) return fail(EXIT_USAGE, "--logprobs needs --json or --batch");
    return 0;
}

int infer_options_parse(infer_options *o, int argc, char **argv) {
    *o = (infer_options){
        .how = {.backend = "auto", .double_quant = true, .cache = {QUANT_CACHE_ON, NULL, QUANT_CACHE_MIN_BYTES}},
        .max_tokens = 256,
        .parallel = 16,
        .logprobs = -1,
        .top_k = 40,
        .repeat_last_n = 64,
        .sampling = {.temperature = 0.8, .top_p = 0.95, .repetition = 1}};
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--help")) {
            help();
            exit(EXIT_DONE);
        }
        if (parse_one(o, argc, argv, &i)) return -1;
    }
    if (check(o)) return -1;
    const bool exact = o->precise || o->score || o->imatrix;
    o->how.threads = (int)o->threads;
    o->how.fp32 = exact;
    if (!exact) o->how.backend = backend_fast(o->how.backend);
    if (!o->adapter_type_given) o->how.adapter_type = exact ? F32 : BF16;
    return 0;
}

request infer_request(const infer_options *o) {
    request q = REQUEST_PLAIN;
    q.max_tokens = (int)o->max_tokens, q.sampling = o->sampling, q.ignore_eog = o->ignore_eos;
    q.sampling.top_k = (int)o->top_k, q.sampling.repeat_last_n = (int)o->repeat_last_n;
    q.sampling.seed = (uint64_t)o->seed;
    q.sampling.bias = o->bias, q.sampling.biases = o->biases;
    q.stop = o->stop, q.stops = o->stops, q.logprobs = (int)o->logprobs;
    return q;
}
