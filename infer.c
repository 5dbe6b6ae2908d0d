/* ./infer: text from a model with or without an adapter, and log-probabilities of given rows. */
#include "core/error.h"
#include "core/file.h"
#include "core/json.h"
#include "core/threads.h"
#include "data/chat.h"
#include "engine/engine.h"
#include "infer_imatrix.h"
#include "infer_score.h"

#include <errno.h>
#include <getopt.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { STOPS_MAX = 16 };

typedef struct options {
    const char *model, *prompt, *score, *imatrix, *text, *system, *chat_template;
    inference_options how;
    sampling sampling;
    const char *stop[STOPS_MAX];
    int stops;
    int max_tokens, context;
    kv_type kv_type;
    bool chat, json, ignore_eos, precise;
} options;

typedef struct app {
    options o;
    model_source src;
    tokenizer *tok;
    chat_template *chat;
    engine *e;
} app;

/* ---- options ---- */

static const char usage_text[] =
    "usage: ./infer --model M [--adapter A] --prompt TEXT | --chat [--prompt TEXT] | --score FILE.jsonl\n"
    "\n"
    "  --model M          Hugging Face directory or GGUF file\n"
    "  --adapter A[:SCALE]  LoRA adapter, PEFT directory or GGUF file, applied unmerged; several: their sum\n"
    "  --load-in-4bit     hold the linear layers in NF4, as training with load_in_4bit does; =false: never\n"
    "                     (default: what the adapter was trained on; without one, as the file has them)\n"
    "  --no-double-quant  with --load-in-4bit: plain fp32 scales\n"
    "  --quantized-base-cache MODE  with --load-in-4bit: true = keep the NF4 weights in a file for later starts;\n"
    "                     false; verify = true, and read the whole base to be sure that it is unchanged (true)\n"
    "  --quantized-base-cache-dir DIR  of these files (${XDG_CACHE_HOME:-~/.cache}/peft.c/nf4)\n"
    "  --prompt TEXT      continue TEXT as it is; with --chat: answer it as one user turn\n"
    "  --chat             talk; an empty line or end of file ends\n"
    "  --system TEXT      with --chat: the system turn\n"
    "  --score FILE       one row of JSON a line with \"text\" or \"input_ids\"; prints input_ids, logprobs, nll, perplexity\n"
    "  --imatrix OUT      with --text: the importance matrix of this model for ./quantize and llama.cpp (OUT.dat: older format)\n"
    "  --text FILE        plain text, or rows as --score's in FILE.jsonl\n"
    "  --max-tokens N     tokens to generate at most (256)\n"
    "  --context N        tokens the cache holds (the model's, at most 4096)\n"
    "  --kv-cache-type T  of keys and values: f32, bf16, q8_0 (f32)\n"
    "  --ignore-eos       go on past the end token, to --max-tokens\n"
    "  --stop TEXT        the answer ends before TEXT; may be given several times\n"
    "  --temperature X    0 = always the most probable token (0.8)\n"
    "  --top-p X          keep the most probable tokens that make up X (0.95)\n"
    "  --top-k N          keep the N most probable tokens, 0 = all (40)\n"
    "  --min-p X          of these keep the ones with X times the largest probability (0)\n"
    "  --repeat-penalty X      divides positive and multiplies negative logits of recent tokens (1 = none)\n"
    "  --repeat-last-n N       how many tokens are recent; -1 = all (64)\n"
    "  --presence-penalty X    off the logit of every token of the answer (0)\n"
    "  --frequency-penalty X   likewise, for each time it came (0)\n"
    "  --seed N           of the choice of tokens (0)\n"
    "  --json             one JSON object for an answer instead of text\n"
    "  --threads N        0 = one for each core (0)\n"
    "  --precise          canonical fp32 arithmetic; without it, products of quantised weights are made in integers, with\n"
    "                     activations rounded to 8 bits, and weights of 16 and 32 bits are held in 8 (--score: always)\n"
    "  --backend NAME     auto, ref, avx2, avx512, neon (auto); or bf16: products in bf16, avx512-bf16 or amx\n";

enum {
    OPT_MODEL = 256,
    OPT_ADAPTER,
    OPT_4BIT,
    OPT_PLAIN,
    OPT_CACHE,
    OPT_CACHE_DIR,
    OPT_PROMPT,
    OPT_CHAT,
    OPT_SYSTEM,
    OPT_SCORE,
    OPT_IMATRIX,
    OPT_TEXT,
    OPT_MAX,
    OPT_CONTEXT,
    OPT_TEMPERATURE,
    OPT_TOP_P,
    OPT_TOP_K,
    OPT_MIN_P,
    OPT_REPEAT,
    OPT_LAST_N,
    OPT_PRESENCE,
    OPT_FREQUENCY,
    OPT_SEED,
    OPT_KV,
    OPT_IGNORE_EOS,
    OPT_STOP,
    OPT_JSON,
    OPT_THREADS,
    OPT_PRECISE,
    OPT_BACKEND,
    OPT_HELP
};

static const struct option long_options[] = {{"model", 1, NULL, OPT_MODEL},
                                             {"adapter", 1, NULL, OPT_ADAPTER},
                                             {"load-in-4bit", 2, NULL, OPT_4BIT},
                                             {"no-double-quant", 0, NULL, OPT_PLAIN},
                                             {"quantized-base-cache", 1, NULL, OPT_CACHE},
                                             {"quantized-base-cache-dir", 1, NULL, OPT_CACHE_DIR},
                                             {"prompt", 1, NULL, OPT_PROMPT},
                                             {"chat", 0, NULL, OPT_CHAT},
                                             {"system", 1, NULL, OPT_SYSTEM},
                                             {"score", 1, NULL, OPT_SCORE},
                                             {"imatrix", 1, NULL, OPT_IMATRIX},
                                             {"text", 1, NULL, OPT_TEXT},
                                             {"max-tokens", 1, NULL, OPT_MAX},
                                             {"context", 1, NULL, OPT_CONTEXT},
                                             {"temperature", 1, NULL, OPT_TEMPERATURE},
                                             {"top-p", 1, NULL, OPT_TOP_P},
                                             {"top-k", 1, NULL, OPT_TOP_K},
                                             {"min-p", 1, NULL, OPT_MIN_P},
                                             {"repeat-penalty", 1, NULL, OPT_REPEAT},
                                             {"repeat-last-n", 1, NULL, OPT_LAST_N},
                                             {"presence-penalty", 1, NULL, OPT_PRESENCE},
                                             {"frequency-penalty", 1, NULL, OPT_FREQUENCY},
                                             {"seed", 1, NULL, OPT_SEED},
                                             {"kv-cache-type", 1, NULL, OPT_KV},
                                             {"ignore-eos", 0, NULL, OPT_IGNORE_EOS},
                                             {"stop", 1, NULL, OPT_STOP},
                                             {"json", 0, NULL, OPT_JSON},
                                             {"threads", 1, NULL, OPT_THREADS},
                                             {"precise", 0, NULL, OPT_PRECISE},
                                             {"backend", 1, NULL, OPT_BACKEND},
                                             {"help", 0, NULL, OPT_HELP},
                                             {NULL, 0, NULL, 0}};

static int number(const char *name, const char *text, double lo, double hi, bool whole, double *out) {
    char *end;
    errno = 0;
    *out = strtod(text, &end);
    if (end == text || *end || errno || !(*out >= lo && *out <= hi) || (whole && *out != floor(*out)))
        return fail(EXIT_USAGE, "--%s: found '%s', expected a%s number from %g to %g", name, text,
                    whole ? " whole" : "", lo, hi);
    return 0;
}

static int take_bool(const char *name, const char *text, bool *out) {
    *out = !text || !strcmp(text, "true");
    if (*out || !strcmp(text, "false")) return 0;
    return fail(EXIT_USAGE, "--%s: found '%s', expected true or false", name, text);
}

/* Numbers: their range, whether they are whole, and where they go. */
typedef struct {
    int opt;
    double lo, hi;
    int *whole;
    double *real;
} number_row;

static int take_number(options *o, int opt, const char *name, const char *text) {
    sampling *s = &o->sampling;
    const number_row rows[] = {{OPT_MAX, 1, 1 << 28, &o->max_tokens, NULL},
                               {OPT_CONTEXT, 1, 1 << 28, &o->context, NULL},
                               {OPT_THREADS, 0, THREADS_MAX, &o->how.threads, NULL},
                               {OPT_TOP_K, 0, 1 << 28, &s->top_k, NULL},
                               {OPT_LAST_N, -1, 1 << 28, &s->repeat_last_n, NULL},
                               {OPT_TEMPERATURE, 0, 100, NULL, &s->temperature},
                               {OPT_TOP_P, 0, 1, NULL, &s->top_p},
                               {OPT_MIN_P, 0, 1, NULL, &s->min_p},
                               {OPT_REPEAT, 1e-3, 1e3, NULL, &s->repetition},
                               {OPT_PRESENCE, -100, 100, NULL, &s->presence},
                               {OPT_FREQUENCY, -100, 100, NULL, &s->frequency}};
    double x;
    if (opt == OPT_SEED) {
        if (number(name, text, 0, 9e15, true, &x)) return -1;
        s->seed = (uint64_t)x;
        return 0;
    }
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        const number_row *r = &rows[i];
        if (r->opt != opt) continue;
        if (number(name, text, r->lo, r->hi, r->whole != NULL, &x)) return -1;
        if (r->whole)
            *r->whole = (int)x;
        else
            *r->real = x;
    }
    return 0;
}

/* DIR, or DIR:SCALE; a directory whose name ends like that is taken as it is. */
static int take_adapter(options *o, char *text) {
    char *colon = strrchr(text, ':');
    double scale = 1;
    if (o->how.adapters == SHARES_MAX) return fail(EXIT_USAGE, "--adapter: more than %d of them", SHARES_MAX);
    if (colon && !path_is_dir(text)) {
        if (number("adapter", colon + 1, -1e3, 1e3, false, &scale)) return -1;
        *colon = 0;
    }
    o->how.adapter[o->how.adapters++] = (adapter_choice){text, (float)scale};
    return 0;
}

static int take_kv(options *o, const char *text) {
    for (int i = 0; i < KV_TYPES; i++)
        if (!strcmp(kv_type_names[i], text)) {
            o->kv_type = (kv_type)i;
            return 0;
        }
    return fail(EXIT_USAGE, "--kv-cache-type: found '%s', expected f32, bf16 or q8_0", text);
}

static int parse(options *o, int argc, char **argv) {
    *o = (options){
        .how = {.backend = "auto", .double_quant = true, .cache = {QUANT_CACHE_ON, NULL, QUANT_CACHE_MIN_BYTES}},
        .max_tokens = 256,
        .sampling = {.temperature = 0.8, .top_p = 0.95, .top_k = 40, .repetition = 1, .repeat_last_n = 64}};
    int opt, index = 0;
    while ((opt = getopt_long(argc, argv, "", long_options, &index)) >= 0) switch (opt) {
        case OPT_MODEL: o->model = optarg; break;
        case OPT_ADAPTER:
            if (take_adapter(o, optarg)) return -1;
            break;
        case OPT_4BIT:
            if (take_bool("load-in-4bit", optarg, &o->how.load_in_4bit)) return -1;
            o->how.base_given = true;
            break;
        case OPT_PLAIN: o->how.double_quant = false; break;
        case OPT_CACHE_DIR: o->how.cache.dir = optarg; break;
        case OPT_CACHE:
            if (!quant_cache_mode_by_name(optarg, &o->how.cache.mode))
                return fail(EXIT_USAGE, "--quantized-base-cache: found '%s', expected " QUANT_CACHE_MODES, optarg);
            break;
        case OPT_PROMPT: o->prompt = optarg; break;
        case OPT_CHAT: o->chat = true; break;
        case OPT_SYSTEM: o->system = optarg; break;
        case OPT_SCORE: o->score = optarg; break;
        case OPT_IMATRIX: o->imatrix = optarg; break;
        case OPT_TEXT: o->text = optarg; break;
        case OPT_JSON: o->json = true; break;
        case OPT_IGNORE_EOS: o->ignore_eos = true; break;
        case OPT_KV:
            if (take_kv(o, optarg)) return -1;
            break;
        case OPT_STOP:
            if (o->stops == STOPS_MAX) return fail(EXIT_USAGE, "--stop: more than %d of them", STOPS_MAX);
            o->stop[o->stops++] = optarg;
            break;
        case OPT_PRECISE: o->precise = true; break;
        case OPT_BACKEND: o->how.backend = optarg; break;
        case OPT_HELP: fputs(usage_text, stdout); exit(EXIT_DONE);
        case '?': return fail(EXIT_USAGE, "see ./infer --help");
        default:
            if (take_number(o, opt, long_options[index].name, optarg)) return -1;
        }
    if (optind < argc) return fail(EXIT_USAGE, "unexpected argument '%s'; see ./infer --help", argv[optind]);
    if (!o->precise && !o->score && !o->imatrix) o->how.backend = backend_fast(o->how.backend);
    if (!o->model) return fail(EXIT_USAGE, "--model is missing; see ./infer --help");
    if (!!o->score + !!o->imatrix + (o->chat || o->prompt) != 1)
        return fail(EXIT_USAGE, "expected one of --prompt, --chat, --score and --imatrix; see ./infer --help");
    if (!o->imatrix != !o->text) return fail(EXIT_USAGE, "--imatrix and --text belong together; see ./infer --help");
    if (o->system && !o->chat) return fail(EXIT_USAGE, "--system needs --chat");
    return 0;
}

/* ---- one answer ---- */

typedef struct reply {
    request_stats stats;
    char *text; /* heap */
    size_t length;
} reply;

/* One request from beginning to end; the engine finds what it has computed of the prompt before. */
static int generate(app *a, const token_list *prompt, reply *r) {
    const options *o = &a->o;
    request q = REQUEST_PLAIN;
    q.prompt = prompt->id, q.n = (int)prompt->n, q.max_tokens = o->max_tokens, q.sampling = o->sampling;
    q.ignore_eog = o->ignore_eos, q.stop = o->stop, q.stops = o->stops;
    engine_default_adapters(a->e, &q);
    *r = (reply){0};
    if (engine_add(a->e, &q) < 0) return -1;
    FILE *text = open_memstream(&r->text, &r->length);
    while (engine_step(a->e))
        for (engine_event ev; engine_next(a->e, &ev);) {
            r->stats = ev.stats;
            fwrite(ev.text, 1, (size_t)ev.bytes, text);
            if (o->json || !ev.bytes) continue;
            fwrite(ev.text, 1, (size_t)ev.bytes, stdout);
            fflush(stdout);
        }
    fclose(text);
    return 0;
}

static double rate(double n, double seconds) { return seconds > 0 ? n / seconds : 0; }

static void report(const app *a, const reply *r) {
    const request_stats *s = &r->stats;
    int tokens = s->completion_tokens;
    double first = s->queue_seconds + s->prefill_seconds;
    double prefill = rate(s->prompt_tokens - s->cached_tokens, s->prefill_seconds),
           decode = rate(tokens > 1 ? tokens - 1 : 0, s->decode_seconds);
    uint64_t rss = peak_rss_bytes();
    if (!a->o.json) {
        fflush(stdout);
        fprintf(stderr, "\n[prompt %d tokens, %.0f/s; answer %d tokens, %.1f/s; first after %.2f s; %.0f MiB]\n",
                s->prompt_tokens, prefill, tokens, decode, first, (double)rss / 1048576);
        return;
    }
    json_t *o =
        json_pack("{s:i,s:i,s:s%,s:f,s:f,s:f,s:I}", "prompt_tokens", s->prompt_tokens, "completion_tokens", tokens,
                  "text", r->text, r->length, "prefill_tokens_per_second", prefill, "decode_tokens_per_second", decode,
                  "time_to_first_token_seconds", first, "peak_rss_bytes", (json_int_t)rss);
    CHECK(o, "answer as JSON%s", "");
    json_dumpf(o, stdout, 0);
    putchar('\n');
    fflush(stdout);
    json_decref(o);
}

static int run_prompt(app *a) {
    token_list ids = {0};
    reply r = {0};
    int bad =
        tokenizer_encode(a->tok, a->o.prompt, (int64_t)strlen(a->o.prompt), TOKENIZE_SPECIAL | TOKENIZE_ADD, &ids);
    bad = bad || generate(a, &ids, &r);
    if (!bad) report(a, &r);
    token_list_free(&ids);
    free(r.text);
    return bad ? -1 : 0;
}

/* ---- chat ---- */

static void say(json_t *history, const char *role, const char *content, size_t n) {
    json_array_append_new(history, json_pack("{s:s,s:s%}", "role", role, "content", content, n));
}

static int answer_turn(app *a, json_t *history, const char *content) {
    chat_text text = {0};
    token_list ids = {0};
    reply r = {0};
    const chat_options o = {.add_generation_prompt = true};
    say(history, "user", content, strlen(content));
    int bad = chat_render(a->chat, history, &o, &text) || chat_encode(&text, a->tok, &ids) || generate(a, &ids, &r);
    if (!bad) {
        report(a, &r);
        say(history, "assistant", r.text, r.length);
    }
    chat_text_free(&text);
    token_list_free(&ids);
    free(r.text);
    return bad ? -1 : 0;
}

static int run_chat(app *a) {
    json_t *history = json_array();
    char *line = NULL;
    size_t cap = 0;
    int bad = 0;
    if (a->o.system) say(history, "system", a->o.system, strlen(a->o.system));
    if (a->o.prompt) bad = answer_turn(a, history, a->o.prompt);
    while (!a->o.prompt && !bad) {
        if (isatty(STDIN_FILENO)) fputs("> ", stderr);
        ssize_t n = getline(&line, &cap, stdin);
        if (n > 0 && line[n - 1] == '\n') line[--n] = 0;
        if (n <= 0) break;
        bad = answer_turn(a, history, line);
    }
    json_decref(history), free(line);
    return bad;
}

/* ---- all ---- */

static int open_text(app *a) {
    if (!(a->tok = model_tokenizer(&a->src, NULL))) return -1;
    if (!a->o.chat) return 0;
    return (a->chat = chat_open_named("", a->src.path, a->tok)) ? 0 : -1;
}

static int run(app *a) {
    const options *o = &a->o;
    if (model_source_open(&a->src, o->model)) return -1;
    if (o->score) return score_file(&a->src, &o->how, o->score);
    if (o->imatrix) return imatrix_file(&a->src, &o->how, o->text, o->imatrix);
    if (open_text(a)) return -1;
    const engine_options how = {
        .src = &a->src, .how = o->how, .tok = a->tok, .context = o->context, .kv_type = o->kv_type};
    if (!(a->e = engine_open(&how))) return -1;
    const char *nonfinite = engine_session(a->e)->m.nonfinite;
    if (nonfinite) fprintf(stderr, "note: %s: %s: expect no sense of this model\n", o->model, nonfinite);
    return o->chat ? run_chat(a) : run_prompt(a);
}

int main(int argc, char **argv) {
    static app a;
    file_guard("infer");
    threads_settle(argv);
    int bad = parse(&a.o, argc, argv) || run(&a) ? fail_report("infer") : EXIT_DONE;
    engine_close(a.e);
    chat_close(a.chat);
    tokenizer_close(a.tok);
    model_source_close(&a.src);
    return bad;
}
