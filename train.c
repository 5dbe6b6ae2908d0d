/* ./train CONFIG.yaml [--key=value ...]: fine-tunes an adapter on a frozen base.
 *
 *     YAML -> config -> dataset -> tokens -> packed batch -> model_forward on the tape -> head loss
 *          -> tape_backward -> adapter gradient (one flat vector) -> sum over ranks -> AdamW -> adapter files
 *
 * One call per arrow; what a step allocates was counted before the first one (see plan). */
#include "core/config.h"
#include "core/error.h"
#include "core/file.h"
#include "core/progress.h"
#include "core/stop.h"
#include "core/threads.h"
#include "data/dataset.h"
#include "kernels/comm.h"
#include "model/quant_cache.h"
#include "model/session.h"
#include "optim/adamw.h"
#include "optim/schedule.h"
#include "train_log.h"
#include "train_plan.h"
#include "train_report.h"
#include "train_state.h"

#include <errno.h>
#include <math.h>
#include <omp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct trainer {
    config cfg;
    model_source src;
    quant_cache quant; /* the base in NF4, when it is kept between starts */
    tokenizer *tok;
    chat_template *chat; /* NULL where no row is a chat */
    dataset ds;
    session s;
    comm world;
    adamw opt;
    lr_schedule lr;
    batch b;
    int32_t *rows, *target; /* of one batch's targets; host, [rows_max] */
    float *row_weight;
    step_sums *sums, *seen; /* in the run arena; what the host has read of them, shared memory, [MEMORY_SLOTS] */
    train_row row[MEMORY_SLOTS];
    int posted, read;                      /* steps whose results are on their way, and those that were logged */
    bool plan, json;                       /* --plan, --json */
    int64_t steps, eval_every, save_every; /* of the run; between evaluations and between saves, 0 = never */
    train_place at;                        /* where the run stands */
    output_lock lock;
    const char *gradients; /* --dump-gradients=FILE or NULL */
    train_log log;
} trainer;

/* ---- one step ---- */

static void loss_of(trainer *t, tape *tp, tensor *h) {
    float *logprob = arena_array(&t->s.act, (size_t)t->b.targets, sizeof *logprob);
    model_loss(tp, &t->s.m, h, &t->b, t->rows, t->target, t->row_weight, logprob, t->sums);
}

static void forward(trainer *t, tape *tp) { loss_of(t, tp, model_forward(tp, &t->s.m, &t->b, NULL)); }

static void forward_backward(trainer *t) {
    tape tp = session_tape(&t->s, true, t->cfg.gradient_checkpointing);
    forward(t, &tp);
    tape_backward(&tp);
}

static void zero_sums(trainer *t) { t->s.k.be->zero(&t->s.k, t->sums, sizeof *t->sums); }

/* One rank stops between two micro-batches; several stop together, after a step (see asked_to_stop). */
static bool stops_now(const trainer *t) { return t->world.size == 1 && stop_signal(); }

/* Mean loss of the held-out rows; without a meaning when the program is asked to stop meanwhile. */
static double evaluate(trainer *t) {
    step_sums sums;
    zero_sums(t);
    for (int i = t->world.rank; i < dataset_eval_batches(&t->ds) && !stops_now(t); i += t->world.size) {
        dataset_eval_batch(&t->ds, i, &t->b);
        tape tp = session_tape(&t->s, false, false);
        forward(t, &tp);
    }
    comm_sum(&t->world, &t->s.k, NULL, 0, t->sums);
    arena_get(&t->s.run, &sums, t->sums, sizeof sums);
    return sums.weight > 0 ? sums.loss / sums.weight : NAN;
}

/* ---- before the first step ---- */

static lora_config adapter_config(const trainer *t, int *bad) {
    lora_config l;
    *bad = lora_config_from(&l, &t->cfg);
    return l;
}

static void open_optimiser(trainer *t) {
    const config *c = &t->cfg;
    const adapter *ad = &t->s.ad;
    adamw *o = &t->opt;
    if (!strcmp(c->optimizer, "adamw_8bit")) {
        adamw_range *tensor = xcalloc((size_t)ad->n_views, sizeof *tensor);
        for (int i = 0; i < ad->n_views; i++) {
            const param *p = &ad->views[i].p;
            tensor[i] = (adamw_range){p->val - ad->param, p->rows * p->cols};
        }
        adamw_open_8bit(o, ad->param, ad->grad, ad->n, tensor, ad->n_views, &t->s.k, &t->s.run);
        free(tensor);
    } else
        adamw_open(o, ad->param, ad->grad, ad->n, &t->s.k, &t->s.run);
    o->beta1 = c->adam_beta1, o->beta2 = c->adam_beta2, o->eps = c->adam_epsilon;
    o->weight_decay = c->weight_decay, o->max_norm = c->max_grad_norm;
}

/* The same code for the plan and for the run: base, adapter, optimiser. */
static int build(trainer *t) {
    const config *c = &t->cfg;
    int bad;
    lora_config l = adapter_config(t, &bad);
    model_options o = {c->load_in_4bit, c->bnb_4bit_use_double_quant, .quant = &t->quant};
    o.positions = t->b.rows_max < c->sequence_len ? t->b.rows_max : c->sequence_len;
    if (bad || session_load(&t->s, &t->src, &o, &l, (uint64_t)c->seed, true)) return -1;
    if (t->s.m.nonfinite)
        return fail(EXIT_INPUT, "%s: %s: such a base cannot be trained on; get the file again", t->src.path,
                    t->s.m.nonfinite);
    adamw_close(&t->opt);
    open_optimiser(t);
    t->sums = arena_alloc(&t->s.run, sizeof *t->sums);
    return 0;
}

/* The largest batch that the data can make: every row a target. */
static void worst_batch(trainer *t) {
    batch_clear(&t->b);
    int seqs = t->b.seqs_max, rows = t->b.rows_max;
    int32_t *ids = xcalloc((size_t)rows, sizeof *ids);
    for (int s = 0; s < seqs && t->b.rows < rows; s++) {
        int n = s + 1 < seqs ? (rows - t->b.rows) / (seqs - s) : rows - t->b.rows;
        if (n) batch_add(&t->b, ids, ids, n, 0);
    }
    for (int i = 0; i < t->b.rows; i++) t->b.target[i] = 0;
    t->b.targets = t->b.rows;
    free(ids);
}

static void open_quantised(trainer *t) {
    const config *c = &t->cfg;
    quant_cache_options o = {.dir = c->quantized_base_cache_dir, .min_bytes = QUANT_CACHE_MIN_BYTES};
    CHECK(quant_cache_mode_by_name(c->quantized_base_cache, &o.mode), "%s", c->quantized_base_cache);
    if (c->load_in_4bit) quant_cache_open(&t->quant, &t->src, c->bnb_4bit_use_double_quant, &o);
}

/* The backend's name for backend_open, and whether activations are bf16. NULL after fail where keys clash. */
static const char *choose_types(const config *c, bool *half) {
    const bool device = backend_is_device(c->backend), given = strcmp(c->activation_dtype, "auto") != 0;
    *half = given ? !strcmp(c->activation_dtype, "bf16") : device;
    if (!device && *half && c->gradient_checkpointing) {
        fail(
            EXIT_USAGE,
            "%s: key 'activation_dtype': bf16 and gradient_checkpointing exclude each other: with checkpointing only the "
            "inputs of blocks are kept, in fp32",
            c->path);
        return NULL;
    }
    if (device && config_is_set(c, "compute_dtype") && *half != !strcmp(c->compute_dtype, "bf16")) {
        fail(EXIT_USAGE, "%s: key 'compute_dtype': %s contradicts activation_dtype: %s, which products follow on a GPU",
             c->path, c->compute_dtype, *half ? "bf16" : "f32");
        return NULL;
    }
    return device ? c->backend : backend_for(c->backend, c->compute_dtype);
}

/* Runs build and the worst step on backend "plan". */
static int plan_run(trainer *t, const char *be, bool half, plan_step *step) {
    if (session_plan(&t->s, be, half) || build(t)) return -1;
    worst_batch(t);
    tape tp = session_tape(&t->s, true, t->cfg.gradient_checkpointing);
    tensor *h = model_forward(&tp, &t->s.m, &t->b, NULL);
    step->layers = t->s.act.used;
    loss_of(t, &tp, h);
    step->head = t->s.act.used - step->layers;
    tape_backward(&tp);
    return 0;
}

static int check_limit(const trainer *t, const plan_bytes *b) {
    const int64_t limit = t->cfg.memory_limit;
    if (limit == CONFIG_UNSET || b->total <= (double)limit) return 0;
    return fail(
        EXIT_MEMORY,
        "%s: key 'memory_limit': the run needs %.0f bytes, %.0f more than the %ld that it may take; ./train --plan "
        "says which sequence_len and micro_batch_size fit",
        t->cfg.path, b->total, b->total - (double)limit, (long)limit);
}

/* Plans, prints what the run will take, and opens a session of exactly that. */
static int plan_and_open(trainer *t) {
    bool half;
    plan_step step;
    const char *be = choose_types(&t->cfg, &half);
    if (!be) return -1;
    open_quantised(t);
    if (plan_run(t, be, half, &step)) return -1;
    session planned = t->s;
    if (session_open(&t->s, &planned, be, (int)t->cfg.threads)) return -1;
    const plan_bytes b = plan_measure(&planned, &t->opt, step, t->s.k.scratch_bytes);
    plan_print_run(&b, &t->s.k, t->b.rows);
    session_close(&planned);
    if (check_limit(t, &b)) return -1;
    t->seen = memory_shared(t->s.k.mem, MEMORY_SLOTS * sizeof *t->seen);
    return t->seen ? build(t) : -1;
}

static int open_text(trainer *t) {
    const config *c = &t->cfg;
    bool text = false, chats = false;
    for (int i = 0; i < c->datasets.n; i++) {
        const char *type = c->datasets.item[i].type;
        text |= strcmp(type, "tokenized") != 0;
        chats |= !strcmp(type, "chat_template") || !strcmp(type, "sharegpt");
    }
    if (text && !(t->tok = model_tokenizer(&t->src, c->tokenizer))) return -1;
    if (!chats) return 0;
    const char *name = c->chat_template ? c->chat_template : "", *jinja = c->chat_template_jinja;
    if (jinja && *name && strcmp(name, "tokenizer_default"))
        return fail(EXIT_USAGE, "%s: key 'chat_template': '%s' and chat_template_jinja exclude each other", c->path,
                    name);
    t->chat = jinja ? chat_open(jinja, "chat_template_jinja", t->tok) : chat_open_named(name, c->path, t->tok);
    return t->chat ? 0 : -1;
}

static int open_batch(trainer *t, int rows, int seqs) {
    batch_close(&t->b);
    free(t->rows), free(t->target), free(t->row_weight);
    t->rows = xcalloc((size_t)rows, sizeof *t->rows), t->target = xcalloc((size_t)rows, sizeof *t->target);
    t->row_weight = xcalloc((size_t)rows, sizeof *t->row_weight);
    return batch_open(&t->b, rows, seqs);
}

static int steps_of(int batches, int accumulate) { return (batches + accumulate - 1) / accumulate; }

/* micro-batches of a step, of all ranks */
static int accumulated(const trainer *t) { return (int)t->cfg.gradient_accumulation_steps * t->world.size; }

/* Steps of the whole run: max_steps, or whole and broken epochs (each epoch's last accumulation may be partial). */
static void count_steps(trainer *t) {
    const config *c = &t->cfg;
    int accumulate = accumulated(t);
    int per_epoch = steps_of(dataset_begin_epoch(&t->ds, 0), accumulate);
    if (c->max_steps != CONFIG_UNSET)
        t->steps = c->max_steps;
    else
        for (int epoch = 0; epoch < c->num_epochs; epoch++) {
            int n = steps_of(dataset_begin_epoch(&t->ds, epoch), accumulate);
            t->steps += (int)ceil(fmin(1, c->num_epochs - epoch) * n);
        }
    t->eval_every = config_eval_every(c, per_epoch, t->steps);
    t->save_every = config_save_every(c, per_epoch, t->steps);
}

static void set_schedule(trainer *t) {
    const config *c = &t->cfg;
    int kind = 0;
    while (strcmp(lr_names[kind], c->lr_scheduler)) kind++;
    int warmup =
        config_is_set(c, "warmup_steps") ? (int)c->warmup_steps : (int)ceil(c->warmup_ratio * (double)t->steps);
    t->lr = (lr_schedule){(lr_kind)kind, c->learning_rate, warmup, (int)t->steps};
}

static int check_context(const trainer *t) {
    const config *c = &t->cfg;
    if (c->sequence_len <= t->src.hp.context) return 0;
    return fail(EXIT_USAGE, "%s: key 'sequence_len': %ld is more than the %ld positions of %s", c->path,
                (long)c->sequence_len, (long)t->src.hp.context, c->base_model);
}

static int open_trainer(trainer *t) {
    const config *c = &t->cfg;
    if (t->world.rank && !freopen("/dev/null", "w", stdout)) return fail(EXIT_IO, "/dev/null cannot be opened");
    if (model_source_open(&t->src, c->base_model) || open_text(t) || check_context(t)) return -1;
    if (dataset_open(&t->ds, c, t->tok, t->chat, (int)t->src.hp.vocab)) return -1;
    dataset_summary(&t->ds, stdout);
    if (open_batch(t, dataset_rows_max(&t->ds), dataset_seqs_max(&t->ds))) return -1;
    count_steps(t);
    set_schedule(t);
    if (plan_and_open(t) || comm_join(&t->world, &t->s.k)) return -1;
    if (c->lora_model_dir) {
        if (adapter_load(&t->s.ad, c->lora_model_dir)) return -1;
    } else
        adapter_init(&t->s.ad, (uint64_t)c->seed);
    train_log_params(t->s.ad.n, model_params(&t->s.m));
    return 0;
}

/* ---- a plan alone ---- */

/* Full bins or samples of the longest kind: data can make no larger batch. */
static int plan_of_size(void *ctx, plan_size size, plan_bytes *out) {
    trainer *t = ctx;
    config *c = &t->cfg;
    const plan_size kept = {c->sequence_len, c->micro_batch_size};
    plan_step step = {0};
    bool half;
    c->sequence_len = size.sequence_len, c->micro_batch_size = size.micro_batch_size;
    const char *be = choose_types(c, &half);
    int bad = !be || open_batch(t, (int)(size.sequence_len * size.micro_batch_size), (int)size.micro_batch_size) ||
              plan_run(t, be, half, &step);
    if (!bad)
        *out = plan_measure(&t->s, &t->opt, step, backend_scratch(c->threads ? (int)c->threads : omp_get_num_procs()));
    session_close(&t->s);
    c->sequence_len = kept.sequence_len, c->micro_batch_size = kept.micro_batch_size;
    return bad ? -1 : 0;
}

/* ./train --plan: headers or config.json alone, no data, no device. */
static int show_plan(trainer *t) {
    const config *c = &t->cfg;
    enum { ROWS_MOST = 1 << 20 }; /* of a batch */
    plan_text text = {.backend = c->backend, .size = {c->sequence_len, c->micro_batch_size}, .limit = c->memory_limit};
    plan_bytes b;
    bool half;
    if (model_source_open_shapes(&t->src, c->base_model) || check_context(t) || !choose_types(c, &half)) return -1;
    const int64_t rows = c->sequence_len * c->micro_batch_size;
    if (rows > ROWS_MOST)
        return fail(EXIT_USAGE, "%s: sequence_len times micro_batch_size: found %ld, expected at most %d", c->path,
                    (long)rows, ROWS_MOST);
    text.device = backend_is_device(c->backend), text.assumed = t->src.assumed;
    text.activations = half ? "bf16" : "f32";
    if (plan_of_size(t, text.size, &b)) return -1;
    plan_size most = {ROWS_MOST / c->micro_batch_size, ROWS_MOST / c->sequence_len};
    if (most.sequence_len > t->src.hp.context) most.sequence_len = t->src.hp.context;
    if (text.limit != CONFIG_UNSET && plan_largest(plan_of_size, t, text.size, most, text.limit, &text.largest))
        return -1;
    if (t->json) return plan_print_json(&b, &text, stdout);
    plan_print(&b, &text, stdout);
    return 0;
}

/* ---- results of steps ---- */

static int dump_gradients(trainer *t) {
    adapter *ad = &t->s.ad;
    step_sums sums;
    float *mean = xcalloc((size_t)ad->n, sizeof *mean);
    arena_get(&t->s.run, mean, ad->grad, (size_t)ad->n * sizeof *mean);
    arena_get(&t->s.run, &sums, t->sums, sizeof sums);
    for (int64_t i = 0; i < ad->n; i++) mean[i] = (float)((double)mean[i] / sums.weight);
    int bad = adapter_save_vector(ad, mean, t->gradients);
    free(mean);
    return bad;
}

/* Rank 0 writes: what is printed, metrics.jsonl, checkpoints, the adapter. The others compute the same and write
 * nothing. */
static bool writes(const trainer *t) { return t->world.rank == 0; }
static int log_step(trainer *t, const train_row *row) { return writes(t) ? train_log_step(&t->log, row) : 0; }

/* The oldest step whose results are on their way. */
static int read_step(trainer *t, train_row *row) {
    const int slot = t->read++ % MEMORY_SLOTS;
    const step_sums *sums = &t->seen[slot];
    memory_wait(t->s.k.mem, slot);
    *row = t->row[slot];
    row->loss = sums->loss / sums->weight, row->grad_norm = sums->norm, row->targets = sums->targets;
    if (sums->nonfinite)
        return fail(EXIT_DIVERGED,
                    "step %d: loss %g, gradient norm %g: not finite; nothing was saved after it. Lower learning_rate "
                    "or look at the rows of this step",
                    row->step, row->loss, row->grad_norm);
    return 0;
}

/* Everything that is to be logged before what follows: an evaluation, a file. */
static int settle(trainer *t) {
    train_row row;
    while (t->read < t->posted)
        if (read_step(t, &row) || log_step(t, &row)) return -1;
    return 0;
}

/* ---- checkpoints ---- */

static train_parts parts_of(trainer *t) { return (train_parts){&t->cfg, &t->src, &t->ds, &t->s, &t->opt, t->sums}; }

static int save_state(trainer *t) {
    const train_parts parts = parts_of(t);
    char *path;
    if (!writes(t)) return 0;
    t->at.metrics_bytes = train_log_bytes(&t->log);
    if (train_state_save(&parts, &t->at, &path)) return -1;
    train_log_say(&t->log, "saved %s", path);
    free(path);
    return 0;
}

/* The program was asked to stop: what has been done is kept. */
static int stop(trainer *t) {
    if (settle(t) || save_state(t)) return -1;
    return fail(EXIT_STOPPED, "stopped by %s after step %ld; resume_from_checkpoint: auto goes on from there",
                stop_signal() == SIGINT ? "SIGINT" : "SIGTERM", (long)t->at.step);
}

/* The checkpoints of an earlier run in output_dir are gone on from, moved away, or a reason to refuse. */
static int check_output(const config *c) {
    checkpoint_list l;
    if (!path_is_dir(c->output_dir) || c->resume_from_checkpoint) return 0;
    int bad = checkpoint_find(&l, c->output_dir);
    if (!bad && l.n && !c->overwrite_output_dir)
        bad = fail(EXIT_LOCKED,
                   "%s: holds the checkpoints of an earlier run: go on with resume_from_checkpoint: auto, give another "
                   "output_dir, or move it away with overwrite_output_dir: true",
                   c->output_dir);
    for (int i = 1; !bad && l.n; i++) {
        char *aside = xprintf("%s.%d", c->output_dir, i);
        bool taken = path_exists(aside);
        if (!taken && rename(c->output_dir, aside))
            bad = fail(EXIT_IO, "%s: cannot be moved to %s: %s", c->output_dir, aside, strerror(errno));
        if (!taken && !bad) fprintf(stderr, "note: %s: the earlier run is now %s\n", c->output_dir, aside);
        free(aside);
        if (!taken) break;
    }
    checkpoint_list_free(&l);
    return bad;
}

/* The directory is this run's, that is rank 0's: its lock, and what an interrupted save left behind. */
static int take_output(trainer *t) {
    const char *dir = t->cfg.output_dir;
    const train_parts parts = parts_of(t);
    return path_make_dirs(dir) || output_lock_take(&t->lock, dir) || checkpoint_sweep(dir) ||
                   output_room(dir, 2 * train_state_bytes(&parts))
               ? -1
               : 0;
}

/* Where the run goes on, and where it writes. */
static int open_output(trainer *t) {
    const config *c = &t->cfg;
    const train_parts parts = parts_of(t);
    char *from, ready = 1;
    if (writes(t) && take_output(t)) return -1;
    if (t->world.size > 1) peers_broadcast(t->world.peers, &ready, sizeof ready); /* the others look after rank 0 did */
    if (train_state_choose(c, &from)) return -1;
    t->at = (train_place){.after = true};
    int bad = from && train_state_load(&parts, from, &t->at);
    if (from && !bad) printf("resumed from %s: step %ld of %ld\n", from, (long)t->at.step, (long)t->steps);
    free(from);
    if (bad || !writes(t)) return bad;
    if (train_report_begin(c, &t->s) || train_log_open(&t->log, c->output_dir, (int)t->steps, (int)c->logging_steps,
                                                       t->at.metrics_bytes, t->at.seen_tokens))
        return -1;
    return c->use_tensorboard ? train_log_tensorboard(&t->log, c->output_dir) : 0;
}

/* ---- the run ---- */

/* The micro-batches of a step up to `last` of this epoch, from the one where the run stands. Asked to stop, it ends
 * between two of them. */
static void accumulate(trainer *t, int64_t last) {
    kctx *k = &t->s.k;
    if (!t->at.micro) {
        zero_sums(t);
        k->be->zero(k, t->s.ad.grad, (size_t)t->s.ad.n * sizeof(float));
        t->at.tokens = 0;
    }
    for (; t->at.batch + t->at.micro < last && !stops_now(t); t->at.micro++) {
        dataset_batch(&t->ds, (int)(t->at.batch + t->at.micro), &t->b);
        if (t->at.micro % t->world.size == t->world.rank) forward_backward(t);
        t->at.tokens += t->b.rows, t->at.seen_tokens += t->b.rows;
    }
}

/* One optimiser step. A step's results are logged at once on a CPU; on a device, which nothing here waits for, one step
 * late. */
static int train_step(trainer *t, int batches) {
    kctx *k = &t->s.k;
    train_place *at = &t->at;
    const int slot = t->posted % MEMORY_SLOTS, late = k->mem ? 1 : 0;
    int64_t last = at->batch + accumulated(t);
    if (last > batches) last = batches;
    accumulate(t, last);
    if (at->batch + at->micro < last) return 0;
    comm_sum(&t->world, k, t->s.ad.grad, t->s.ad.n, t->sums);
    if (at->step == 0 && t->gradients && writes(t) && dump_gradients(t)) return -1;
    train_row row = {.step = (int)at->step + 1,
                     .epoch = (double)at->epoch + (double)last / batches,
                     .learning_rate = lr_at(&t->lr, (int)at->step),
                     .tokens = at->tokens};
    adamw_step(&t->opt, k, row.learning_rate, t->sums);
    memory_post(k->mem, &t->seen[slot], t->sums, sizeof *t->sums, slot);
    t->row[slot] = row;
    at->step++, at->batch = last, at->micro = 0, at->after = true;
    if (++t->posted - t->read <= late) return 0;
    return read_step(t, &row) || log_step(t, &row) ? -1 : 0;
}

static bool due(int64_t step, int64_t every) { return every && step && step % every == 0; }

/* What a step is followed by: an evaluation, a save. */
static int after_step(trainer *t, int batches) {
    train_place *at = &t->at;
    const bool last = at->step == t->steps;
    const bool eval = t->ds.n_eval && (!at->step || last || due(at->step, t->eval_every));
    const bool save = !last && due(at->step, t->save_every);
    if ((last || eval || save) && settle(t)) return -1;
    if (eval) {
        double loss = evaluate(t);
        if (stops_now(t)) return 0;
        if (writes(t) && train_log_eval(&t->log, (int)at->step, (double)at->epoch + (double)at->batch / batches, loss))
            return -1;
    }
    at->after = false;
    return save ? save_state(t) : 0;
}

/* Whether all ranks stop here. Rank 0's signal counts, and all learn of it at the same place. */
static int asked_to_stop(trainer *t) {
    int signal = stop_signal();
    if (t->world.size > 1) peers_broadcast(t->world.peers, &signal, sizeof signal);
    return signal;
}

static int run(trainer *t) {
    train_place *at = &t->at;
    for (;; at->epoch++, at->batch = 0) {
        int batches = dataset_begin_epoch(&t->ds, (int)at->epoch);
        t->b.epoch = (uint32_t)at->epoch;
        while (at->after || (at->batch < batches && at->step < t->steps)) {
            if (at->after ? after_step(t, batches) : train_step(t, batches)) return -1;
            if (asked_to_stop(t)) return stop(t);
        }
        if (at->step == t->steps) return 0;
    }
}

static int train(trainer *t) {
    const config *c = &t->cfg;
    if (comm_begin(&t->world) || (writes(t) && check_output(c)) || open_trainer(t) || open_output(t)) return -1;
    stop_listen();
    int bad = run(t);
    stop_unlisten();
    if (!writes(t)) return bad;
    train_log_close(&t->log);
    if (bad || adapter_save(&t->s.ad, c->output_dir)) return -1;
    char *page = path_join(c->output_dir, "report.html");
    bad = train_report((const char *const *)&c->output_dir, 1, page);
    if (!bad) printf("adapter: %s/adapter_model.safetensors\nreport: %s\n", c->output_dir, page);
    free(page);
    return bad;
}

static void close_trainer(trainer *t) {
    output_lock_give(&t->lock);
    memory_shared_free(t->s.k.mem, t->seen);
    adamw_close(&t->opt);
    session_close(&t->s);
    batch_close(&t->b);
    free(t->rows), free(t->target), free(t->row_weight);
    dataset_close(&t->ds);
    chat_close(t->chat);
    tokenizer_close(t->tok);
    quant_cache_close(&t->quant);
    model_source_close(&t->src);
    config_close(&t->cfg);
}

static int usage(FILE *f, int code) {
    fprintf(
        f,
        "usage: ./train CONFIG.yaml [--key=value ...] [--dump-gradients=FILE]\n"
        "       ./train --plan [--json] CONFIG.yaml [--key=value ...]\n"
        "       ./train --report DIR [DIR ...]\n"
        "       ./train --help | --reference\n"
        "Fine-tunes a LoRA adapter on a frozen base model. Every key of the file can be overridden on the command line.\n"
        "--dump-gradients writes the mean gradient of the first step before clipping, as safetensors.\n"
        "--plan prints what the run would take, from the model's headers or its config.json alone, and what fits "
        "memory_limit.\n"
        "--report writes one HTML page about one run (into its directory) or several (report.html here).\n");
    return code;
}

static int report(char **dirs, int n) {
    char *page = n == 1 ? path_join(dirs[0], "report.html") : xstrdup("report.html");
    int bad = train_report((const char *const *)dirs, n, page);
    if (!bad) printf("report: %s\n", page);
    free(page);
    return bad ? fail_report("train") : EXIT_DONE;
}

static int train_main(int argc, char **argv) {
    if (argc > 2 && !strcmp(argv[1], "--report")) return report(argv + 2, argc - 2);
    trainer t = {.lock = {-1}};
    const char *path = NULL, **overrides = xcalloc((size_t)argc, sizeof *overrides);
    int n = 0, bad = 0;
    for (int i = 1; i < argc; i++) {
        const char *a = argv[i];
        if (!strcmp(a, "--help")) {
            usage(stdout, 0);
            config_help(stdout);
            free(overrides);
            return EXIT_DONE;
        }
        if (!strcmp(a, "--reference")) {
            config_reference(stdout);
            free(overrides);
            return EXIT_DONE;
        }
        if (!strncmp(a, "--dump-gradients=", 17))
            t.gradients = a + 17;
        else if (!strcmp(a, "--plan"))
            t.plan = true;
        else if (!strcmp(a, "--json"))
            t.json = true;
        else if (!strncmp(a, "--", 2))
            overrides[n++] = a + 2;
        else if (!path)
            path = a;
        else
            bad = 1;
    }
    if (bad || !path || (t.json && !t.plan)) {
        free(overrides);
        return usage(stderr, EXIT_USAGE);
    }
    if (t.plan ? config_open_unseen(&t.cfg, path, overrides, n) : config_open(&t.cfg, path, overrides, n))
        bad = fail_code() ? fail_code() : EXIT_USAGE;
    else if (t.plan ? show_plan(&t) : train(&t))
        bad = fail_report("train");
    free(overrides);
    if (!bad || bad == EXIT_STOPPED) comm_end(&t.world); /* who fails ends without goodbye, which stops the others */
    close_trainer(&t);
    return bad;
}

int main(int argc, char **argv) {
    file_guard("train");
    threads_settle(argv);
    return train_main(argc, argv);
}
