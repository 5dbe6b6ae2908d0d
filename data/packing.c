#include "data/packing.h"
#include "core/arena.h"
#include "core/error.h"

#include <stdlib.h>
#include <string.h>

/* In first fit the first item of a bin did not fit into the bin before it, so two neighbours hold more than one
 * capacity: with k bins, floor(k / 2) * capacity < total. */
static int bins_bound(int items, int64_t total, int capacity) {
    int64_t k = total > 0 ? 2 * ((total - 1) / capacity) + 1 : 0;
    return k < items ? (int)k : items;
}

void bins_open(bin_list *b, int items_max, int64_t total, int capacity) {
    CHECK(items_max >= 0 && capacity > 0, "%d items, capacity %d", items_max, capacity);
    *b = (bin_list){.items_max = items_max, .capacity = capacity, .leaves = 1};
    b->bins_max = bins_bound(items_max, total, capacity);
    while (b->leaves < b->bins_max) b->leaves *= 2;
    size_t n = (size_t)items_max;
    b->start = xcalloc((size_t)b->bins_max + 1, sizeof *b->start);
    b->item = xcalloc(n, sizeof *b->item), b->queue = xcalloc(n, sizeof *b->queue),
    b->where = xcalloc(n, sizeof *b->where);
    b->room = xcalloc(2 * (size_t)b->leaves, sizeof *b->room);
}

void bins_close(bin_list *b) {
    free(b->start), free(b->item), free(b->queue), free(b->where), free(b->room);
    *b = (bin_list){0};
}

void bins_begin(bin_list *b) {
    b->n = b->n_bins = 0;
    memset(b->start, 0, ((size_t)b->bins_max + 1) * sizeof *b->start);
    for (int i = 0; i < 2 * b->leaves; i++) b->room[i] = b->capacity; /* a bin not yet opened has all its room */
}

void bins_add(bin_list *b, int item, int length) {
    CHECK(length > 0 && length <= b->capacity && b->n < b->items_max,
          "item %d of length %d into bins of %d, %d of %d items", item, length, b->capacity, b->n, b->items_max);
    int node = 1;
    while (node < b->leaves) node = b->room[2 * node] >= length ? 2 * node : 2 * node + 1;
    int bin = node - b->leaves;
    CHECK(bin < b->bins_max && b->room[node] >= length, "bin %d of %d has %d left for %d", bin, b->bins_max,
          b->room[node], length);
    b->room[node] -= length;
    for (node /= 2; node; node /= 2) {
        int left = b->room[2 * node], right = b->room[2 * node + 1];
        b->room[node] = left > right ? left : right;
    }
    if (bin >= b->n_bins) b->n_bins = bin + 1;
    b->queue[b->n] = item, b->where[b->n++] = bin;
    b->start[bin]++;
}

/* Counting sort by bin; it keeps the order of arrival. */
void bins_end(bin_list *b) {
    int sum = 0;
    for (int i = 0; i <= b->bins_max; i++) {
        int count = b->start[i];
        b->start[i] = sum;
        sum += count;
    }
    for (int i = 0; i < b->n; i++) b->item[b->start[b->where[i]]++] = b->queue[i];
    for (int i = b->bins_max; i > 0; i--) b->start[i] = b->start[i - 1]; /* each start had moved to its bin's end */
    b->start[0] = 0;
}
