/* First fit in order: each item goes into the first bin that still has room for it, a new bin opening when none has.
 * Exact, in O(log bins) an item: the leftmost leaf of a tree of largest remaining rooms (Johnson 1973, section 2). */
#ifndef PEFT_DATA_PACKING_H
#define PEFT_DATA_PACKING_H

#include <stdint.h>

typedef struct {
    int *start; /* [n_bins + 1] first entry of each bin in item */
    int *item;  /* [n] bin after bin; inside a bin in the order of arrival */
    int n, n_bins;
    int items_max, bins_max, leaves, capacity;
    int *room;          /* [2 * leaves] room[1] is the root; bin b is leaf leaves + b */
    int *queue, *where; /* [items_max] items in the order of arrival, and their bins */
} bin_list;

/* Room for at most items_max items of `total` units in all; nothing later allocates. */
void bins_open(bin_list *b, int items_max, int64_t total, int capacity);
void bins_close(bin_list *b);
void bins_begin(bin_list *b);
void bins_add(bin_list *b, int item, int length); /* CHECKs 0 < length <= capacity */
void bins_end(bin_list *b);                       /* start, item and n_bins are valid from here on */

#endif
