/* Who holds which page of the cache. A page is free, or held by one or more sequences (reference counts); a full page
 * may have a name, which is what its keys and values are a function of: its tokens, the page before it, and the adapter
 * set (`key`). A named page that nobody holds any more keeps its content until the memory is needed, least recently
 * used first, so that a later prompt with the same beginning finds it (Kwon et al. 2023; vLLM's prefix caching).
 *
 * Names are exact: a page is found by its hash, then tokens, key and the page before are compared; that page is one of
 * the same chain, and `age` tells whether it still is. Two pages never have one name, so chains do not split. */
#ifndef PEFT_ENGINE_PAGES_H
#define PEFT_ENGINE_PAGES_H

#include "kernels/backend.h"

#include <stdbool.h>

typedef struct page {
    int refs;
    bool named;
    uint64_t hash, key;
    int before;               /* page id or -1: the first of a sequence */
    uint32_t age, before_age; /* times this page lost its content; of `before` when the name was given */
    int32_t token[KV_PAGE];
    int next;         /* in the hash's chain */
    int older, newer; /* among pages without holders, oldest first; -1 = end */
} page;

typedef struct page_pool {
    page *page;
    int n, idle; /* pages; those without holders */
    int oldest, newest;
    int *bucket; /* heads of chains */
    uint64_t buckets;
    int64_t looked_up, found; /* pages asked for and found by pages_find */
} page_pool;

void pages_open(page_pool *p, int n);
void pages_close(page_pool *p);
/* A page with one holder and no name; -1: every page is held. The one longest without holders loses its content. */
int pages_take(page_pool *p);
void pages_hold(page_pool *p, int id);
/* Without a name it is the first to be taken again. Drop the pages of a sequence last to first: ends go before
 * beginnings. */
void pages_drop(page_pool *p, int id);
int pages_find(page_pool *p, uint64_t key, int before, const int32_t *token); /* held once more; -1: none */
/* Gives a full page its name. Where another page has it already, id is dropped, that one is held instead and returned.
 */
int pages_name(page_pool *p, int id, uint64_t key, int before, const int32_t *token);

#endif
