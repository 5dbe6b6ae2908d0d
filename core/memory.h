/* Memory that may belong to a device. A backend whose kernels run on a GPU gives one `memory`; NULL stands for the
 * host's own memory, where every call below is a memcpy or nothing at all. Host code never dereferences what lies in a
 * device's memory: it comes and goes through put and get, which keep their order with the kernels of the same device.
 */
#ifndef PEFT_CORE_MEMORY_H
#define PEFT_CORE_MEMORY_H

#include <stddef.h>
#include <stdint.h>

enum { MEMORY_SLOTS = 4 };          /* posts that may be on their way at a time */
enum { MEMORY_RECORDED = 1 << 20 }; /* bytes that may be put between record and play, each rounded up to 64 */

/* What a device implements; the callers use the functions below. */
typedef enum { MEMORY_RUNS, MEMORY_RECORDS, MEMORY_REPLAYS } memory_run;
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
    memory_run (*record)(memory *m, uint64_t key);                               /* NULL: the device records nothing */
    void (*play)(memory *m);
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
/* Work that comes again and again with other numbers alone (decoding a token): between record and play the device keeps
 * the puts and kernels that it is given under `key`, and later plays them in one launch. The caller promises that the
 * same key comes with the same kernels, shapes and addresses and with puts of the same sizes in the same order; nothing
 * but puts and kernels may stand between. MEMORY_REPLAYS: puts alone are to be given again, no kernels (backend
 * "plan"); MEMORY_RECORDS, MEMORY_RUNS: everything as usual. play ends each of them. */
memory_run memory_record(memory *m, uint64_t key);
void memory_play(memory *m);
void *memory_shared(memory *m, size_t bytes); /* zeroed host memory for posts; NULL after fail() */
void memory_shared_free(memory *m, void *p);

#endif
