/* Memory that may belong to a device. A backend whose kernels run on a GPU gives one `memory`; NULL stands for the
 * host's own memory, where every call below is a memcpy or nothing at all. Host code never dereferences what lies in a
 * device's memory: it comes and goes through put and get, which keep their order with the kernels of the same device.
 */
#ifndef PEFT_CORE_MEMORY_H
#define PEFT_CORE_MEMORY_H

#include <stddef.h>

enum { MEMORY_SLOTS = 4 }; /* posts that may be on their way at a time */

/* What a device implements; the callers use the functions below. */
typedef struct memory memory;
struct memory {
    void *(*map)(memory *m, const char *what, size_t bytes); /* zeroed, 256-byte aligned; NULL after fail() */
    void (*unmap)(memory *m, void *base);
    void (*put)(memory *m, void *to, const void *from, size_t bytes); /* `from` may be written again at once */
    void (*get)(memory *m, void *to, const void *from, size_t bytes); /* waits for it */
    void *(*map_shared)(memory *m, size_t bytes); /* host memory that the device reads and writes too (pinned) */
    void (*unmap_shared)(memory *m, void *p);
    void (*post)(memory *m, void *to, const void *from, size_t bytes, int slot); /* `to` is shared memory */
    void (*wait)(memory *m, int slot);                                           /* until that post has arrived */
};

extern memory memory_plan; /* of a device that is only planned for: nothing moves */

void memory_put(memory *m, void *to, const void *from, size_t bytes); /* host to m */
void memory_get(memory *m, void *to, const void *from, size_t bytes); /* m to host, now */
/* The bytes at p for the host to read: p itself, or, from a device, buf after a get. */
const void *memory_view(memory *m, const void *p, void *buf, size_t bytes);
/* A get that nobody waits for yet: what lies at `from` when the kernels before it are done is in `to` after
 * memory_wait(slot). On the host it is there at once. */
void memory_post(memory *m, void *to, const void *from, size_t bytes, int slot);
void memory_wait(memory *m, int slot);
void *memory_shared(memory *m, size_t bytes); /* zeroed host memory for posts; NULL after fail() */
void memory_shared_free(memory *m, void *p);

#endif
