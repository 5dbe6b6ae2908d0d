/* The command line of ./merge and ./quantize: one table, of which each program knows its part. */
#include "core/config_parts.h"
#include "core/error.h"
#include "core/file.h"
#include "core/threads.h"
#include "merge_parts.h"

#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    OPT_MODEL = 256,
    OPT_ADAPTER,
    OPT_OUT,
    OPT_TO,
    OPT_DTYPE,
    OPT_IMATRIX,
    OPT_CHECK,
    OPT_4BIT,
    OPT_PLAIN,
    OPT_SHARD,
    OPT_TOKENIZER,
    OPT_PER_TENSOR,
    OPT_OVERWRITE,
    OPT_THREADS,
    OPT_BACKEND,
    OPT_HELP
};

static const struct option all_options[] = {
    {"model", 1, NULL, OPT_MODEL},
    {"adapter", 1, NULL, OPT_ADAPTER},
    {"out", 1, NULL, OPT_OUT},
    {"to", 1, NULL, OPT_TO},
    {"dtype", 1, NULL, OPT_DTYPE},
    {"imatrix", 1, NULL, OPT_IMATRIX},
    {"check", 1, NULL, OPT_CHECK},
    {"load-in-4bit", 2, NULL, OPT_4BIT},
    {"no-double-quant", 0, NULL, OPT_PLAIN},
    {"max-shard-size", 1, NULL, OPT_SHARD},
    {"tokenizer", 1, NULL, OPT_TOKENIZER},
    {"per-tensor", 0, NULL, OPT_PER_TENSOR},
    {"overwrite", 0, NULL, OPT_OVERWRITE},
    {"threads", 1, NULL, OPT_THREADS},
    {"backend", 1, NULL, OPT_BACKEND},
    {"help", 0, NULL, OPT_HELP},
};
enum { OPTIONS = sizeof all_options / sizeof *all_options };

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

static const char *given(const merge_options *o, const char *name) {
    return !strcmp(name, "model") ? o->model : !strcmp(name, "out") ? o->out : o->to;
}

static int check(const merge_options *o, const merge_program *p, int argc, char **argv) {
    if (optind < argc) return fail(EXIT_USAGE, "unexpected argument '%s'; see ./%s --help", argv[optind], p->name);
    for (int i = 0; p->needs[i]; i++)
        if (!given(o, p->needs[i])) return fail(EXIT_USAGE, "--%s is missing; see ./%s --help", p->needs[i], p->name);
    if (o->to && strcmp(o->to, "lora") != 0 && !export_target_by_name(o->to)) {
        char list[256];
        export_target_list(list, sizeof list);
        return fail(EXIT_USAGE, "--to: found '%s', expected one of %s or lora", o->to, list);
    }
    if (o->plain_scales && o->load_in_4bit == ASK_NO)
        return fail(EXIT_USAGE, "--no-double-quant contradicts --load-in-4bit=false");
    if (o->tokenizer && !path_is_dir(o->tokenizer))
        return fail(EXIT_USAGE, "--tokenizer: '%s' is not a directory", o->tokenizer);
    if (o->load_in_4bit == ASK_YES && !o->adapter)
        return fail(EXIT_USAGE, "--load-in-4bit is for merging an adapter; --to nf4 writes a model in NF4");
    return 0;
}

int merge_parse(merge_options *o, const merge_program *p, int argc, char **argv) {
    struct option known[OPTIONS + 1] = {0};
    int opt, n = 0;
    *o = (merge_options){.backend = "auto", .shard_bytes = EXPORT_SHARD_BYTES, .per_tensor = p->per_tensor};
    for (int i = 0; i < OPTIONS; i++)
        for (int k = 0; p->knows[k]; k++)
            if (!strcmp(p->knows[k], all_options[i].name)) known[n++] = all_options[i];
    while ((opt = getopt_long(argc, argv, "", known, NULL)) >= 0) switch (opt) {
        case OPT_MODEL: o->model = optarg; break;
        case OPT_ADAPTER: o->adapter = optarg; break;
        case OPT_OUT: o->out = optarg; break;
        case OPT_TO: o->to = optarg; break;
        case OPT_DTYPE: o->dtype = optarg; break;
        case OPT_IMATRIX: o->imatrix = optarg; break;
        case OPT_CHECK: o->check = optarg; break;
        case OPT_4BIT:
            if (take_bool(optarg, &o->load_in_4bit)) return -1;
            break;
        case OPT_PLAIN: o->plain_scales = true; break;
        case OPT_SHARD:
            if (take_size(optarg, &o->shard_bytes)) return -1;
            break;
        case OPT_TOKENIZER: o->tokenizer = optarg; break;
        case OPT_PER_TENSOR: o->per_tensor = true; break;
        case OPT_OVERWRITE: o->overwrite = true; break;
        case OPT_THREADS:
            if (take_threads(optarg, &o->threads)) return -1;
            break;
        case OPT_BACKEND: o->backend = optarg; break;
        case OPT_HELP: fputs(p->usage, stdout); exit(EXIT_DONE);
        default: return fail(EXIT_USAGE, "see ./%s --help", p->name);
        }
    return check(o, p, argc, argv);
}
