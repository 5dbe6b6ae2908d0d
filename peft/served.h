/* Adapters at inference: any number of them over one base, each in memory of its own that is counted before it is
 * taken, so that one can come and go while the base and the others stay as they are. A batch's rows choose: a set is a
 * sum of adapters with scales (none: the base), which is one adapter of all their ranks side by side. */
#ifndef PEFT_PEFT_SERVED_H
#define PEFT_PEFT_SERVED_H

#include "peft/adapter.h"

enum { SHARES_MAX = 8, SET_RANKS_MAX = 512 }; /* adapters of a set; their ranks together */

typedef struct served {
    char *path;
    int rank;
    float scale;     /* alpha / r as PEFT has it */
    base_quant base; /* what it was trained on */
    lora_part *part; /* [groups] heap; down.cols 0: nothing in this group */
    int groups;
    arena mem;
} served;

/* Takes the values of a checked file for an adapter that is attached to the groups, if only over planning memory; as
 * F32 or BF16 (rounded to nearest even). -1 after fail(): values that are not finite, too high a rank. */
int served_open(served *s, const char *path, const adapter *ad, const safetensors *st, const proj_group_ref *groups,
                int n_groups, dtype type, memory *mem);
void served_close(served *s);
size_t served_bytes(const served *s);

typedef struct lora_share {
    const served *adapter;
    float scale; /* times the adapter's own */
} lora_share;
typedef struct lora_set {
    lora_share share[SHARES_MAX];
    int shares;
} lora_set;
/* What batch.run[].set names; core/batch.h knows the name only. */
struct lora_sets {
    const lora_set *set;
    int n;
};

/* y[i] += what the rows' sets have for projection i of the model's group `group`, i < n. The scratch that it takes does
 * not depend on which adapters there are. */
void served_forward(tape *t, int group, int n, mat x, tensor *const *y, const batch *b);

#endif
