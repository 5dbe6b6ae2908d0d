/* The adapters of an engine and the sets that requests have made of them. A set is a list of adapters with scales; two
 * requests with the same list have the same set. What keys and values depend on is the set's `key`: a number that is
 * never given twice, so that an adapter that is loaded again is another one. */
#ifndef PEFT_ENGINE_ADAPTERS_H
#define PEFT_ENGINE_ADAPTERS_H

#include "engine/engine.h"
#include "peft/served.h"

typedef struct adapters {
    served **adapter; /* [n] heap; NULL: unloaded */
    int *users;       /* [n] requests that have not ended */
    int n;
    lora_set *set; /* [sets] heap */
    adapter_share (*share)[SHARES_MAX];
    uint64_t *key; /* 0: the set is gone with one of its adapters */
    int sets;
    uint64_t keys, base_key; /* given so far; of the base, which merging changes */
    struct lora_sets book;   /* what batches see */
} adapters;

void adapters_close(adapters *a);
int adapters_load(adapters *a, const session *s, const model_source *src, const char *path, const inference_options *o);
int adapters_unload(adapters *a, int adapter);
/* The set of these shares, -1 for none of them, or -2 after fail(). */
int adapters_set(adapters *a, const adapter_share *share, int shares);
uint64_t adapters_key(const adapters *a, int set); /* of the base: -1 */
void adapters_new_base(adapters *a); /* what was computed with the base or on top of it is not what it is now */
void adapters_use(adapters *a, int set, int more); /* +1: a request begins; -1: it has ended */

#endif
