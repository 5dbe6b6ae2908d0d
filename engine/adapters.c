#include "engine/adapters.h"
#include "core/error.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

void adapters_close(adapters *a) {
    for (int i = 0; i < a->n; i++) {
        if (a->adapter[i]) served_close(a->adapter[i]);
        free(a->adapter[i]);
    }
    free(a->adapter), free(a->users), free(a->set), free(a->share), free(a->key);
    *a = (adapters){0};
}

int adapters_load(adapters *a, const session *s, const model_source *src, const char *path,
                  const inference_options *o) {
    served *made = xcalloc(1, sizeof *made);
    if (inference_adapter(made, s, src, path, o)) {
        free(made);
        return -1;
    }
    a->adapter = xrealloc(a->adapter, (size_t)a->n + 1, sizeof *a->adapter);
    a->users = xrealloc(a->users, (size_t)a->n + 1, sizeof *a->users);
    a->adapter[a->n] = made, a->users[a->n] = 0;
    return a->n++;
}

static bool loaded(const adapters *a, int i) { return i >= 0 && i < a->n && a->adapter[i]; }

int adapters_unload(adapters *a, int adapter) {
    if (!loaded(a, adapter)) return fail(EXIT_USAGE, "adapter %d: none of that number is loaded", adapter);
    if (a->users[adapter])
        return fail(EXIT_USAGE, "adapter '%s': %d requests use it: cancel them or wait", a->adapter[adapter]->path,
                    a->users[adapter]);
    for (int i = 0; i < a->sets; i++)
        for (int k = 0; k < a->set[i].shares; k++)
            if (a->share[i][k].adapter == adapter) a->key[i] = 0;
    served_close(a->adapter[adapter]);
    free(a->adapter[adapter]);
    a->adapter[adapter] = NULL;
    return 0;
}

static int check(const adapters *a, const adapter_share *share, int shares) {
    int ranks = 0;
    if (shares > SHARES_MAX)
        return fail(EXIT_USAGE, "adapters: %d for one request, expected at most %d", shares, SHARES_MAX);
    for (int i = 0; i < shares; i++) {
        if (!loaded(a, share[i].adapter))
            return fail(EXIT_USAGE, "adapter %d: none of that number is loaded", share[i].adapter);
        if (!isfinite(share[i].scale))
            return fail(EXIT_USAGE, "adapter '%s': its scale is not a number", a->adapter[share[i].adapter]->path);
        ranks += a->adapter[share[i].adapter]->rank;
    }
    if (ranks <= SET_RANKS_MAX) return 0;
    return fail(EXIT_USAGE, "adapters: ranks of %d together, expected at most %d", ranks, SET_RANKS_MAX);
}

static bool same(const adapters *a, int set, const adapter_share *share, int shares) {
    if (!a->key[set] || a->set[set].shares != shares) return false;
    for (int i = 0; i < shares; i++)
        if (a->share[set][i].adapter != share[i].adapter || a->share[set][i].scale != share[i].scale) return false;
    return true;
}

int adapters_set(adapters *a, const adapter_share *share, int shares) {
    int at = 0;
    if (!shares) return -1;
    if (check(a, share, shares)) return -2;
    for (int i = 0; i < a->sets; i++)
        if (same(a, i, share, shares)) return i;
    while (at < a->sets && a->key[at]) at++; /* the place of one that is gone */
    if (at == a->sets) {
        size_t n = (size_t)++a->sets;
        a->set = xrealloc(a->set, n, sizeof *a->set);
        a->share = xrealloc(a->share, n, sizeof *a->share);
        a->key = xrealloc(a->key, n, sizeof *a->key);
    }
    a->set[at].shares = shares, a->key[at] = ++a->keys;
    for (int i = 0; i < shares; i++) {
        a->share[at][i] = share[i];
        a->set[at].share[i] = (lora_share){a->adapter[share[i].adapter], share[i].scale};
    }
    a->book = (struct lora_sets){a->set, a->sets};
    return at;
}

uint64_t adapters_key(const adapters *a, int set) { return set < 0 ? a->base_key : a->key[set]; }

void adapters_new_base(adapters *a) {
    a->base_key = ++a->keys;
    for (int i = 0; i < a->sets; i++)
        if (a->key[i]) a->key[i] = ++a->keys;
}

void adapters_use(adapters *a, int set, int more) {
    for (int k = 0; set >= 0 && k < a->set[set].shares; k++) a->users[a->share[set][k].adapter] += more;
}
