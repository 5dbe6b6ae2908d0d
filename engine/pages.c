#include "engine/pages.h"
#include "core/error.h"
#include "core/rng.h"

#include <stdlib.h>
#include <string.h>

static void unlink_idle(page_pool *p, int id) {
    page *x = &p->page[id];
    *(x->older < 0 ? &p->oldest : &p->page[x->older].newer) = x->newer;
    *(x->newer < 0 ? &p->newest : &p->page[x->newer].older) = x->older;
    p->idle--;
}

static void link_newest(page_pool *p, int id) {
    page *x = &p->page[id];
    x->older = p->newest, x->newer = -1;
    *(p->newest < 0 ? &p->oldest : &p->page[p->newest].newer) = id;
    p->newest = id, p->idle++;
}

static void link_oldest(page_pool *p, int id) {
    page *x = &p->page[id];
    x->newer = p->oldest, x->older = -1;
    *(p->oldest < 0 ? &p->newest : &p->page[p->oldest].older) = id;
    p->oldest = id, p->idle++;
}

void pages_open(page_pool *p, int n) {
    *p = (page_pool){.n = n, .oldest = -1, .newest = -1, .buckets = 16};
    while (p->buckets < 2 * (uint64_t)n) p->buckets *= 2;
    p->page = xcalloc((size_t)n, sizeof *p->page);
    p->bucket = xcalloc((size_t)p->buckets, sizeof *p->bucket);
    for (uint64_t i = 0; i < p->buckets; i++) p->bucket[i] = -1;
    for (int i = 0; i < n; i++) link_newest(p, i);
}

void pages_close(page_pool *p) {
    free(p->page), free(p->bucket);
    *p = (page_pool){0};
}

static int *chain_of(page_pool *p, uint64_t hash) { return &p->bucket[hash & (p->buckets - 1)]; }

static void forget(page_pool *p, int id) {
    page *x = &p->page[id];
    x->age++;
    if (!x->named) return;
    int *at = chain_of(p, x->hash);
    while (*at != id) at = &p->page[*at].next;
    *at = x->next, x->named = false;
}

int pages_take(page_pool *p) {
    int id = p->oldest;
    if (id < 0) return -1;
    unlink_idle(p, id);
    forget(p, id);
    p->page[id].refs = 1;
    return id;
}

void pages_hold(page_pool *p, int id) {
    if (!p->page[id].refs++) unlink_idle(p, id);
}

void pages_drop(page_pool *p, int id) {
    page *x = &p->page[id];
    CHECK(x->refs > 0, "page %d has no holder", id);
    if (--x->refs) return;
    if (x->named)
        link_newest(p, id);
    else
        link_oldest(p, id);
}

static uint32_t age_of(const page_pool *p, int before) { return before < 0 ? 0 : p->page[before].age; }

static uint64_t hash_of(const page_pool *p, uint64_t key, int before, const int32_t *token) {
    uint64_t h = hash_bytes(HASH_SEED, &key, sizeof key);
    uint64_t parent = before < 0 ? 0 : p->page[before].hash;
    h = hash_bytes(h, &parent, sizeof parent);
    return hash_bytes(h, token, KV_PAGE * sizeof *token);
}

static int lookup(page_pool *p, uint64_t hash, uint64_t key, int before, const int32_t *token) {
    for (int id = *chain_of(p, hash); id >= 0; id = p->page[id].next) {
        const page *x = &p->page[id];
        if (x->hash == hash && x->key == key && x->before == before && x->before_age == age_of(p, before) &&
            !memcmp(x->token, token, sizeof x->token))
            return id;
    }
    return -1;
}

int pages_find(page_pool *p, uint64_t key, int before, const int32_t *token) {
    int id = lookup(p, hash_of(p, key, before, token), key, before, token);
    p->looked_up++;
    if (id < 0) return -1;
    p->found++;
    pages_hold(p, id);
    return id;
}

int pages_name(page_pool *p, int id, uint64_t key, int before, const int32_t *token) {
    uint64_t hash = hash_of(p, key, before, token);
    int twin = lookup(p, hash, key, before, token);
    page *x = &p->page[id];
    CHECK(!x->named && x->refs == 1, "page %d: %d holders", id, x->refs);
    if (twin >= 0) {
        pages_hold(p, twin);
        pages_drop(p, id);
        return twin;
    }
    x->named = true, x->hash = hash, x->key = key, x->before = before, x->before_age = age_of(p, before);
    memcpy(x->token, token, sizeof x->token);
    x->next = *chain_of(p, hash), *chain_of(p, hash) = id;
    return id;
}
