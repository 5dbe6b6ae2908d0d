/* ./merge: writes base + adapter as one model, W' = W + scale * B A, in a Hugging Face directory. */
#include "core/config_parts.h"
#include "core/error.h"
#include "core/file.h"
#include "core/threads.h"
#include "model/export.h"
#include "model/quant_cache.h"
#include "model/session.h"

#include <dirent.h>
#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

typedef enum { ASK_ADAPTER, ASK_YES, ASK_NO } answer; /* to --load-in-4bit: what the adapter's file says unless given */

typedef struct options {
    const char *model, *adapter, *out, *dtype, *tokenizer, *backend;
    answer load_in_4bit;
    bool plain_scales, overwrite;
    int threads;
    int64_t shard_bytes;
} options;

typedef struct merger {
    options o;
    model_source src;
    quant_cache quant; /* of the base, where training left it */
    model m;
    adapter ad;
    safetensors tensors;
    arena plan; /* addresses of what is never loaded as a whole: model and adapter */
    kctx k;
    export_options how;
} merger;

static const char usage_text[] =
    "usage: ./merge --model M --adapter DIR --out DIR [--dtype f32|bf16|f16]\n"
    "\n"
    "  --model M             base model: Hugging Face directory or GGUF file\n"
    "  --adapter DIR         LoRA adapter in PEFT's layout\n"
    "  --out DIR             where the merged model goes, a Hugging Face directory: new or empty\n"
    "  --dtype NAME          f32, bf16 or f16 (the base's own; bf16 when the base is quantised)\n"
    "  --load-in-4bit[=BOOL] merge onto the NF4 weights that training with load_in_4bit saw, dequantised\n"
    "                        (what the adapter's file says it was trained on)\n"
    "  --no-double-quant     with --load-in-4bit: plain fp32 scales\n"
    "  --max-shard-size N    bytes of one weights file at most, 500MB or 2GiB (5GB)\n"
    "  --tokenizer DIR       take the tokenizer's files from there instead of from the model\n"
    "  --overwrite           DIR may hold files: those of a former merge are replaced\n"
    "  --threads N           0 = one for each core (0)\n"
    "  --backend NAME        auto, ref, avx2, avx512, neon (auto)\n";

enum {
    OPT_MODEL = 256,
    OPT_ADAPTER,
    OPT_OUT,
    OPT_DTYPE,
    OPT_4BIT,
    OPT_PLAIN,
    OPT_SHARD,
    OPT_TOKENIZER,
    OPT_OVERWRITE,
    OPT_THREADS,
    OPT_BACKEND,
    OPT_HELP
};

static const struct option long_options[] = {{"model", 1, NULL, OPT_MODEL},
                                             {"adapter", 1, NULL, OPT_ADAPTER},
                                             {"out", 1, NULL, OPT_OUT},
                                             {"dtype", 1, NULL, OPT_DTYPE},
                                             {"load-in-4bit", 2, NULL, OPT_4BIT},
                                             {"no-double-quant", 0, NULL, OPT_PLAIN},
                                             {"max-shard-size", 1, NULL, OPT_SHARD},
                                             {"tokenizer", 1, NULL, OPT_TOKENIZER},
                                             {"overwrite", 0, NULL, OPT_OVERWRITE},
                                             {"threads", 1, NULL, OPT_THREADS},
                                             {"backend", 1, NULL, OPT_BACKEND},
                                             {"help", 0, NULL, OPT_HELP},
                                             {NULL, 0, NULL, 0}};

/* ---- options ---- */

static int take_bool(const char *text, answer *a) {
    bool on = true;
    const char *problem = text ? scalar_bool(text, &on) : NULL;
    *a = on ? ASK_YES : ASK_NO;
    return problem ? fail(EXIT_USAGE, "--load-in-4bit: found '%s', expected true or false", text) : 0;
}

static int take_threads(const char *text, int *threads) {
    char *end;
    errno = 0;
    long n = strtol(text, &end, 10);
    if (end == text || *end || errno || n < 0 || n > THREADS_MAX)
        return fail(EXIT_USAGE, "--threads: found '%s', expected a whole number from 0 to %d", text, THREADS_MAX);
    *threads = (int)n;
    return 0;
}

static int take_size(const char *text, int64_t *bytes) {
    const char *problem = scalar_size(text, bytes);
    if (!problem && *bytes > 0) return 0;
    return fail(EXIT_USAGE, "--max-shard-size: found '%s', expected bytes such as 500MB or 2GiB", text);
}

static int check_options(const options *o, int argc, char **argv) {
    if (optind < argc) return fail(EXIT_USAGE, "unexpected argument '%s'; see ./merge --help", argv[optind]);
    if (!o->model || !o->adapter || !o->out)
        return fail(EXIT_USAGE, "--%s is missing; see ./merge --help",
                    !o->model     ? "model"
                    : !o->adapter ? "adapter"
                                  : "out");
    if (o->plain_scales && o->load_in_4bit == ASK_NO)
        return fail(EXIT_USAGE, "--no-double-quant contradicts --load-in-4bit=false");
    if (o->tokenizer && !path_is_dir(o->tokenizer))
        return fail(EXIT_USAGE, "--tokenizer: '%s' is not a directory", o->tokenizer);
    return 0;
}

static int parse(options *o, int argc, char **argv) {
    *o = (options){.backend = "auto", .shard_bytes = EXPORT_SHARD_BYTES};
    int opt;
    while ((opt = getopt_long(argc, argv, "", long_options, NULL)) >= 0) switch (opt) {
        case OPT_MODEL: o->model = optarg; break;
        case OPT_ADAPTER: o->adapter = optarg; break;
        case OPT_OUT: o->out = optarg; break;
        case OPT_DTYPE: o->dtype = optarg; break;
        case OPT_4BIT:
            if (take_bool(optarg, &o->load_in_4bit)) return -1;
            break;
        case OPT_PLAIN: o->plain_scales = true; break;
        case OPT_SHARD:
            if (take_size(optarg, &o->shard_bytes)) return -1;
            break;
        case OPT_TOKENIZER: o->tokenizer = optarg; break;
        case OPT_OVERWRITE: o->overwrite = true; break;
        case OPT_THREADS:
            if (take_threads(optarg, &o->threads)) return -1;
            break;
        case OPT_BACKEND: o->backend = optarg; break;
        case OPT_HELP: fputs(usage_text, stdout); exit(EXIT_DONE);
        default: return fail(EXIT_USAGE, "see ./merge --help");
        }
    return check_options(o, argc, argv);
}

/* ---- where it goes ---- */

static bool same_place(const char *a, const char *b) {
    struct stat x, y;
    return !stat(a, &x) && !stat(b, &y) && x.st_dev == y.st_dev && x.st_ino == y.st_ino;
}

static bool is_empty(const char *dir) {
    DIR *d = opendir(dir);
    bool empty = true;
    for (struct dirent *e; d && empty && (e = readdir(d));) empty = !strcmp(e->d_name, ".") || !strcmp(e->d_name, "..");
    if (d) closedir(d);
    return empty;
}

static int check_out(const options *o) {
    const char *out = o->out;
    if (!path_exists(out)) return 0;
    if (same_place(out, o->model))
        return fail(EXIT_USAGE, "--out: '%s' is the base model: give another directory", out);
    if (same_place(out, o->adapter)) return fail(EXIT_USAGE, "--out: '%s' is the adapter: give another directory", out);
    if (!path_is_dir(out)) return fail(EXIT_USAGE, "--out: '%s' is not a directory", out);
    if (is_empty(out)) return 0;
    if (!o->overwrite)
        return fail(EXIT_USAGE,
                    "--out: '%s' is not empty: give another directory, or --overwrite to replace a former merge", out);
    char *nested = path_join(out, "adapter_config.json");
    bool adapter_there = path_exists(nested);
    free(nested);
    /* transformers would put that adapter on top of the merged weights */
    return adapter_there
               ? fail(EXIT_USAGE, "--out: '%s' holds an adapter, which would be loaded on top: give another directory",
                      out)
               : 0;
}

/* What a former merge has left and this one does not replace would be loaded with or instead of the new files. */
static int set_aside(const file_set *set) {
    int bad = 0;
    for (int i = 0; export_names[i] && !bad; i++) {
        char *path = file_set_path(set, export_names[i]), *old = xprintf("%s.old", path);
        if (path_exists(path) && !file_set_has(set, export_names[i])) {
            if (rename(path, old))
                bad = fail(EXIT_IO, "%s: cannot rename to %s: %s", path, old, strerror(errno));
            else
                fprintf(stderr, "note: %s is not part of this merge: renamed to %s.old\n", path, export_names[i]);
        }
        free(path), free(old);
    }
    return bad;
}

/* ---- what is merged ---- */

static base_quant choose_base(const options *o, base_quant trained) {
    bool four_bit =
        o->load_in_4bit == ASK_YES || (o->load_in_4bit == ASK_ADAPTER && (trained != BASE_AS_IS || o->plain_scales));
    if (!four_bit) return BASE_AS_IS;
    if (o->plain_scales) return BASE_NF4;
    return trained == BASE_AS_IS ? BASE_NF4_DOUBLE : trained;
}

static void say_base(const merger *me) {
    base_quant trained = me->ad.cfg.base, base = me->how.base;
    if (base == BASE_AS_IS)
        printf("base: the weights of %s as they are\n", me->src.path);
    else
        printf("base: the 4-bit weights that training saw (%s), dequantised: linear layers differ from %s\n",
               base_quant_names[base], me->src.path);
    if (trained != BASE_AS_IS && trained != base)
        fprintf(stderr,
                "note: the adapter was trained on a base of %s; merging onto another loses what it learnt to correct\n",
                base_quant_names[trained]);
}

static const char *last_part(const char *path, size_t *n) {
    size_t end = strlen(path);
    while (end > 1 && path[end - 1] == '/') end--;
    size_t begin = end;
    while (begin > 0 && path[begin - 1] != '/') begin--;
    *n = end - begin;
    return path + begin;
}

static void note_other_base(const merger *me) {
    if (!me->ad.cfg.base_model) return;
    size_t n, m;
    const char *trained = last_part(me->ad.cfg.base_model, &n), *given = last_part(me->o.model, &m);
    if (n && (n != m || memcmp(trained, given, n)))
        fprintf(stderr, "note: the adapter names '%s' as its base; merging onto %s\n", me->ad.cfg.base_model,
                me->o.model);
}

static int choose_dtype(merger *me) {
    static const struct {
        const char *name;
        int fmt;
        st_dtype dtype;
    } rows[] = {{"f32", FMT_F32, ST_F32}, {"bf16", FMT_BF16, ST_BF16}, {"f16", FMT_F16, ST_F16}};
    weight w;
    const proj *p = &me->m.groups[0].p[0];
    char *name = xprintf("%s.weight", p->name);
    int bad = model_source_weight(&me->src, name, p->w.rows, p->w.cols, &w);
    free(name);
    if (bad) return -1;
    me->how.dtype = ST_DTYPES;
    for (int i = 0; i < 3; i++)
        if (me->o.dtype ? !strcmp(me->o.dtype, rows[i].name) : w.fmt->id == rows[i].fmt) me->how.dtype = rows[i].dtype;
    if (me->how.dtype != ST_DTYPES) return 0;
    if (me->o.dtype) return fail(EXIT_USAGE, "--dtype: found '%s', expected f32, bf16 or f16", me->o.dtype);
    me->how.dtype = ST_BF16;
    printf("dtype: bf16, since the base is %s; --dtype chooses another\n", w.fmt->name);
    return 0;
}

static int open_kernels(kctx *k, const options *o) {
    if (backend_is_device(o->backend))
        return fail(EXIT_USAGE, "--backend: '%s' does not merge: the weights never leave the host; use auto",
                    o->backend);
    const backend *be = backend_open(o->backend);
    return be ? kctx_open(k, be, o->threads) : -1;
}

static int open_merger(merger *me) {
    const model_options o = {.positions = 1};
    lora_config l;
    arena_plan(&me->plan, "plan");
    if (model_source_open(&me->src, me->o.model) || check_out(&me->o) || lora_config_read(&l, me->o.adapter)) return -1;
    if (model_open(&me->m, &me->src, &o, &me->plan)) return lora_config_free(&l), -1;
    if (adapter_attach(&me->ad, &l, me->m.groups, me->m.n_groups, 0, false, &me->plan) ||
        adapter_file_open(&me->ad, me->o.adapter, &me->tensors) || choose_dtype(me) || open_kernels(&me->k, &me->o))
        return -1;
    me->how.base = choose_base(&me->o, me->ad.cfg.base);
    if (me->how.base != BASE_AS_IS) {
        const quant_cache_options kept = {QUANT_CACHE_READ, NULL, QUANT_CACHE_MIN_BYTES};
        quant_cache_open(&me->quant, &me->src, me->how.base == BASE_NF4_DOUBLE, &kept);
        me->how.quant = &me->quant;
    }
    me->how.shard_bytes = (uint64_t)me->o.shard_bytes;
    return 0;
}

static void close_merger(merger *me) {
    safetensors_close(&me->tensors);
    adapter_close(&me->ad);
    model_close(&me->m);
    quant_cache_close(&me->quant);
    model_source_close(&me->src);
    arena_close(&me->plan);
    kctx_close(&me->k);
}

/* ---- the run ---- */

static void show(void *ctx, int done, int of) {
    (void)ctx;
    if (isatty(STDERR_FILENO)) fprintf(stderr, "\r  %d of %d tensors%s", done, of, done == of ? "\n" : "");
}

static const char *dtype_word(st_dtype t) { return t == ST_F32 ? "f32" : t == ST_F16 ? "f16" : "bf16"; }

static void report(const merger *me, const export_report *r) {
    printf("merged: %d modules of %d tensors, %s, %d file%s: %s\n", r->merged, r->tensors, dtype_word(me->how.dtype),
           r->files, r->files == 1 ? "" : "s", me->o.out);
    if (r->zero) fprintf(stderr, "note: the update of %d modules is zero: was the adapter trained?\n", r->zero);
    if (me->how.dtype != ST_F32)
        printf("rounding to %s: updates are %.3g times the rounding error (rms; mean of modules, from %.3g to %.3g)\n",
               dtype_word(me->how.dtype), r->ratio_sum / r->merged, r->ratio_min, r->ratio_max);
    printf("peak memory: %.1f MiB\n", (double)peak_rss_bytes() / (1 << 20));
}

static int merge(merger *me) {
    file_set set;
    export_report r;
    if (open_merger(me)) return -1;
    say_base(me);
    note_other_base(me);
    me->how.progress = show;
    if (file_set_open(&set, me->o.out)) return -1;
    if (export_texts(&me->src, me->o.tokenizer, me->how.dtype, &set) ||
        export_weights(&me->src, &me->m, &me->ad, &me->tensors, &me->k, &me->how, &set, &r) || set_aside(&set)) {
        file_set_abandon(&set);
        return -1;
    }
    if (file_set_commit(&set)) return -1;
    report(me, &r);
    return 0;
}

static int merge_main(int argc, char **argv) {
    merger me = {0};
    int code = EXIT_DONE;
    file_guard("merge");
    if (parse(&me.o, argc, argv) || merge(&me)) code = fail_report("merge");
    close_merger(&me);
    return code;
}

int main(int argc, char **argv) {
    threads_settle(argv);
    return merge_main(argc, argv);
}
