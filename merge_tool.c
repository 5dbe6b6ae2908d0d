/* From options to files. */
#include "merge_tool.h"
#include "core/error.h"
#include "core/file.h"
#include "core/threads.h"
#include "merge_parts.h"
#include "model/lora_file.h"
#include "model/quant_cache.h"
#include "model/session.h"

#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct merger {
    merge_options o;
    model_source src;
    quant_cache quant; /* of the base, where training left it */
    model m;
    lora_file file;
    adapter ad;
    arena plan; /* addresses of what is never loaded as a whole: model and adapter */
    arena run;  /* --to lora: the adapter, which is */
    kctx k;
    imatrix importance;
    export_options how;
    bool gguf;    /* one file, else a directory */
    bool to_lora; /* the adapter itself is written, in the other container or the same */
} merger;

/* ---- what is written ---- */

static bool ends(const char *s, const char *with) {
    size_t n = strlen(s), k = strlen(with);
    return n > k && !strcmp(s + n - k, with);
}

static const struct {
    const char *name;
    int fmt;
    st_dtype dtype;
} floats[] = {{"f32", FMT_F32, ST_F32}, {"bf16", FMT_BF16, ST_BF16}, {"f16", FMT_F16, ST_F16}};

static const char *dtype_word(st_dtype t) {
    for (int i = 0; i < 3; i++)
        if (floats[i].dtype == t) return floats[i].name;
    return "?";
}

/* The type of floats in a directory: as --dtype, or as --to, or as the base's linear layers. */
static int choose_dtype(merger *me) {
    weight w;
    const proj *p = &me->m.groups[0].p[0];
    const char *asked = me->o.dtype;
    char *name = xprintf("%s.weight", p->name);
    int bad = model_source_weight(&me->src, name, p->w.rows, p->w.cols, &w);
    free(name);
    if (!bad && w.fmt->id == FMT_NF4) /* what that checkpoint keeps as floats */
        bad = model_source_weight(&me->src, "model.embed_tokens.weight", me->src.hp.vocab, me->src.hp.dim, &w);
    if (bad) return -1;
    if (!asked && me->o.to && weight_formats[me->how.to->fmt].block == 1) asked = me->o.to;
    me->how.dtype = ST_DTYPES;
    for (int i = 0; i < 3; i++)
        if (asked ? !strcmp(asked, floats[i].name) : w.fmt->id == floats[i].fmt) me->how.dtype = floats[i].dtype;
    if (me->how.dtype != ST_DTYPES) return 0;
    if (asked) return fail(EXIT_USAGE, "--dtype: found '%s', expected f32, bf16 or f16", asked);
    me->how.dtype = ST_BF16;
    printf("dtype: bf16, since the base is %s; --dtype chooses another\n", w.fmt->name);
    return 0;
}

static int choose_target(merger *me) {
    const merge_options *o = &me->o;
    bool named = ends(o->out, ".gguf");
    me->gguf = named, me->to_lora = o->to && !strcmp(o->to, "lora");
    if (me->to_lora && (!o->adapter || o->dtype || o->imatrix || o->check))
        return fail(EXIT_USAGE, !o->adapter
                                    ? "--to lora: --adapter is missing"
                                    : "--to lora writes an adapter: --dtype, --imatrix and --check are of models");
    if (me->to_lora) return 0;
    if (o->to) me->how.to = export_target_by_name(o->to);
    if (me->how.to && me->how.to->hf_only && named)
        return fail(EXIT_USAGE, "--out: '%s': %s is written as a directory, not as GGUF", o->out, o->to);
    if (me->how.to && !me->how.to->hf && !named)
        return fail(EXIT_USAGE, "--out: '%s': %s is written as GGUF: expected a name that ends in .gguf", o->out,
                    o->to);
    if (o->to && o->dtype && me->how.to->fmt != FMT_NF4)
        return fail(EXIT_USAGE, "--dtype and --to %s contradict each other", o->to);
    if (o->dtype && named) return fail(EXIT_USAGE, "--dtype is of directories: use --to %s", o->dtype);
    return 0;
}

/* Without --to: floats as they are, which in a directory is --dtype's or the base's own type. */
static int settle_target(merger *me) {
    if (choose_dtype(me)) return -1;
    if (!me->how.to) me->how.to = export_target_by_name(dtype_word(me->how.dtype));
    me->how.double_quant = !me->o.plain_scales;
    if (me->o.imatrix && weight_formats[me->how.to->fmt].block == 1)
        return fail(EXIT_USAGE, "--imatrix is for quantising: %s is not", me->how.to->name);
    if (me->o.imatrix && me->how.to->fmt == FMT_NF4)
        return fail(EXIT_USAGE,
                    "--imatrix has no effect on nf4, whose levels follow from the largest value of a block");
    if (me->o.imatrix && imatrix_read(&me->importance, me->o.imatrix)) return -1;
    me->how.importance = me->o.imatrix ? &me->importance : NULL;
    return 0;
}

/* ---- what is merged ---- */

static base_quant choose_base(const merge_options *o, base_quant trained) {
    bool plain = o->plain_scales && !(o->to && !strcmp(o->to, "nf4"));
    bool four_bit = o->load_in_4bit == ASK_YES || (o->load_in_4bit == ASK_ADAPTER && (trained != BASE_AS_IS || plain));
    if (!four_bit) return BASE_AS_IS;
    if (plain) return BASE_NF4;
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

static int open_kernels(kctx *k, const merge_options *o) {
    *k = (kctx){.be = backend_open(o->backend), .threads = o->threads ? o->threads : omp_get_num_procs()};
    if (!k->be) return -1;
    if (k->threads > THREADS_MAX) k->threads = THREADS_MAX;
    k->scratch_bytes = (backend_scratch(k->threads) + 63) / 64 * 64;
    k->scratch = aligned_alloc(64, k->scratch_bytes);
    return k->scratch ? 0 : fail(EXIT_MEMORY, "memory for kernel scratch: %zu bytes", k->scratch_bytes);
}

/* Room for every layer's A and B, of which only what is used is ever touched. */
static int open_run(merger *me) {
    size_t bytes = 4096;
    for (int g = 0; g < me->m.n_groups; g++)
        for (int i = 0; i < me->m.groups[g].n; i++)
            bytes += (size_t)(me->m.groups[g].p[i].w.rows + me->m.groups[g].p[i].w.cols) * (size_t)me->file.cfg.r *
                     sizeof(float);
    return arena_open(&me->run, "adapter", bytes);
}

static int open_adapter(merger *me) {
    if (lora_file_open(&me->file, &me->src, me->o.adapter) || (me->to_lora && open_run(me))) return -1;
    if (adapter_attach(&me->ad, &me->file.cfg, me->m.groups, me->m.n_groups, 0, false,
                       me->to_lora ? &me->run : &me->plan))
        return -1;
    if (me->to_lora) return lora_file_load(&me->file, &me->ad);
    if (lora_file_check(&me->file, &me->ad)) return -1;
    me->how.base = choose_base(&me->o, me->ad.cfg.base);
    if (me->how.base != BASE_AS_IS) {
        const quant_cache_options kept = {QUANT_CACHE_READ, NULL, QUANT_CACHE_MIN_BYTES};
        quant_cache_open(&me->quant, &me->src, me->how.base == BASE_NF4_DOUBLE, &kept);
        me->how.quant = &me->quant;
    }
    return 0;
}

static int open_merger(merger *me) {
    const model_options o = {.positions = 1};
    arena_plan(&me->plan, "plan");
    if (me->o.check && !path_exists(me->o.check))
        return fail(EXIT_INPUT, "--check: '%s' is not there", me->o.check); /* before the work, not after it */
    if (choose_target(me) || model_source_open(&me->src, me->o.model) ||
        merge_check_out(&me->o, me->gguf      ? MERGE_FILE
                                : me->to_lora ? MERGE_ADAPTER
                                              : MERGE_MODEL))
        return -1;
    if (model_open(&me->m, &me->src, &o, &me->plan) || (me->o.adapter && open_adapter(me))) return -1;
    if (me->to_lora) return 0;
    me->how.shard_bytes = (uint64_t)me->o.shard_bytes;
    return settle_target(me) || open_kernels(&me->k, &me->o) ? -1 : 0;
}

static void close_merger(merger *me) {
    lora_file_close(&me->file);
    adapter_close(&me->ad);
    model_close(&me->m);
    quant_cache_close(&me->quant);
    model_source_close(&me->src);
    imatrix_free(&me->importance);
    arena_close(&me->plan), arena_close(&me->run);
    free(me->k.scratch);
}

/* ---- the run ---- */

static void show(void *ctx, int done, int of) {
    (void)ctx;
    if (isatty(STDERR_FILENO)) fprintf(stderr, "\r  %d of %d tensors%s", done, of, done == of ? "\n" : "");
}

static int write_dir(merger *me, const export_input *in, export_report *r) {
    file_set set;
    if (file_set_open(&set, me->o.out)) return -1;
    if (export_texts(&me->src, me->o.tokenizer, &me->how, &set) || export_hf(in, &me->how, &set, r) ||
        merge_set_aside(&set)) {
        file_set_abandon(&set);
        return -1;
    }
    return file_set_commit(&set);
}

static int convert_adapter(merger *me) {
    if (me->gguf ? lora_file_write_gguf(&me->ad, &me->src, me->o.out)
                 : lora_file_write_peft(&me->ad, &me->m, me->o.out))
        return -1;
    printf("written: %d modules of rank %d, %s: %s\n", me->ad.n_loras, me->ad.cfg.r, me->gguf ? "GGUF" : "PEFT",
           me->o.out);
    return 0;
}

static int run(merger *me) {
    export_report r = {0};
    if (open_merger(me)) return -1;
    if (me->to_lora) return convert_adapter(me);
    const export_input in = {&me->src, &me->m, me->o.adapter ? &me->ad : NULL, &me->file.st, &me->k};
    if (me->o.adapter) say_base(me), note_other_base(me);
    me->how.progress = show;
    int bad = me->gguf ? export_gguf(&in, &me->how, me->o.tokenizer, me->o.out, &r) : write_dir(me, &in, &r);
    if (!bad) merge_report(&me->o, &r, me->how.to->name);
    export_report_free(&r);
    return bad || (me->o.check && merge_check(&me->o, &me->src, me->how.base)) ? -1 : 0;
}

int merge_main(const merge_program *p, int argc, char **argv) {
    merger me = {0};
    int code = EXIT_DONE;
    file_guard(p->name);
    if (merge_parse(&me.o, p, argc, argv) || run(&me)) code = fail_report(p->name);
    close_merger(&me);
    return code;
}
