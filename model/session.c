#include "model/session.h"
#include "core/error.h"

#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

enum { HOST_BYTES = 64 << 20 }; /* addresses; pages are touched as nodes are made, some KB a layer */

int session_plan(session *s, const char *backend, bool half) {
    memory *mem = backend_is_device(backend) ? &memory_plan : NULL;
    *s = (session){.k = {.be = &backend_plan, .threads = 1, .mem = mem}, .half = half};
    arena_plan(&s->run, "run");
    arena_plan(&s->act, "act");
    arena_plan(&s->tmp, "tmp");
    arena_plan(&s->window, "window");
    s->run.mem = s->act.mem = s->tmp.mem = s->window.mem = mem;
    return arena_open(&s->host, "host", HOST_BYTES);
}

int session_open(session *s, const session *planned, const char *backend_name, int threads) {
    const backend *be = backend_open(backend_name);
    *s = (session){.half = planned->half};
    if (!be || kctx_open(&s->k, be, threads)) return -1;
    memory *mem = s->k.mem;
    CHECK(!mem == !planned->k.mem, "planned for another kind of memory than that of '%s'", backend_name);
    return arena_open_in(&s->run, mem, "run", planned->run.peak) ||
                   arena_open_in(&s->act, mem, "act", planned->act.peak) ||
                   arena_open_in(&s->tmp, mem, "tmp", planned->tmp.peak) ||
                   arena_open_in(&s->window, mem, "window", planned->window.peak) ||
                   arena_open(&s->host, "host", planned->host.peak)
               ? -1
               : 0;
}

void session_close(session *s) {
    adapter_close(&s->ad);
    model_close(&s->m);
    arena_close(&s->run), arena_close(&s->act), arena_close(&s->tmp), arena_close(&s->host), arena_close(&s->window);
    kctx_close(&s->k);
    *s = (session){0};
}

int session_load(session *s, const model_source *src, const model_options *o, lora_config *lora, uint64_t seed,
                 bool trainable) {
    if (model_open(&s->m, src, o, &s->run)) return -1;
    if (!lora) return 0;
    if (adapter_attach(&s->ad, lora, s->m.groups, s->m.n_groups, seed, trainable, &s->run)) return -1;
    model_find_trainable(&s->m);
    return 0;
}

tape session_tape(session *s, bool training, bool checkpoint) {
    arena_release(&s->act, 0), arena_release(&s->tmp, 0), arena_release(&s->host, 0);
    tape t = tape_begin(&s->k, &s->act, &s->tmp, &s->host, training, checkpoint);
    s->k.products = s->k.mem && s->half ? BF16 : F32;
    if (s->k.mem && s->half)
        t.type = BF16;
    else if (s->half && training)
        t.window = &s->window;
    return t;
}

tokenizer *model_tokenizer(const model_source *src, const char *other) {
    if (other && !path_is_dir(other)) {
        fail(EXIT_USAGE, "tokenizer: '%s' is not a directory", other);
        return NULL;
    }
    tokenizer *t = other          ? tokenizer_open_dir(other)
                   : src->is_gguf ? tokenizer_open_gguf(&src->g)
                                  : tokenizer_open_dir(src->path);
    if (!t || tokenizer_vocab(t) <= src->hp.vocab) return t;
    fail(EXIT_INPUT,
         "%s: the tokenizer has %d tokens, but the model's embedding has %ld rows: they do not belong together",
         other ? other : src->path, tokenizer_vocab(t), (long)src->hp.vocab);
    tokenizer_close(t);
    return NULL;
}

uint64_t peak_rss_bytes(void) {
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return (uint64_t)u.ru_maxrss * 1024;
}
