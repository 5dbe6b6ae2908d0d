#include "core/memory.h"
#include "core/error.h"

#include <stdlib.h>
#include <string.h>

void memory_put(memory *m, void *to, const void *from, size_t bytes) {
    if (m)
        m->put(m, to, from, bytes);
    else if (bytes)
        memcpy(to, from, bytes);
}

void memory_get(memory *m, void *to, const void *from, size_t bytes) {
    if (m)
        m->get(m, to, from, bytes);
    else if (bytes)
        memcpy(to, from, bytes);
}

const void *memory_view(memory *m, const void *p, void *buf, size_t bytes) {
    if (!m) return p;
    m->get(m, buf, p, bytes);
    return buf;
}

void memory_post(memory *m, void *to, const void *from, size_t bytes, int slot) {
    CHECK(slot >= 0 && slot < MEMORY_SLOTS, "slot %d", slot);
    if (m)
        m->post(m, to, from, bytes, slot);
    else
        memcpy(to, from, bytes);
}

void memory_wait(memory *m, int slot) {
    if (m) m->wait(m, slot);
}

memory_run memory_record(memory *m, uint64_t key) { return m && m->record ? m->record(m, key) : MEMORY_RUNS; }

void memory_play(memory *m) {
    if (m && m->play) m->play(m);
}

void *memory_shared(memory *m, size_t bytes) {
    if (m) return m->map_shared(m, bytes);
    void *p = calloc(1, bytes ? bytes : 1);
    if (!p) fail(EXIT_MEMORY, "memory for results: %zu bytes", bytes);
    return p;
}

void memory_shared_free(memory *m, void *p) {
    if (m && p)
        m->unmap_shared(m, p);
    else
        free(p);
}

/* ---- the device that is only planned for ---- */

static void plan_put(memory *m, void *to, const void *from, size_t bytes) {
    (void)m, (void)to, (void)from, (void)bytes;
}
static void plan_get(memory *m, void *to, const void *from, size_t bytes) {
    (void)m, (void)from;
    memset(to, 0, bytes);
}
static void plan_post(memory *m, void *to, const void *from, size_t bytes, int slot) {
    (void)slot;
    plan_get(m, to, from, bytes);
}
static void plan_wait(memory *m, int slot) { (void)m, (void)slot; }
static void *plan_shared(memory *m, size_t bytes) {
    (void)m;
    return memory_shared(NULL, bytes);
}
static void plan_shared_free(memory *m, void *p) {
    (void)m;
    free(p);
}

/* map and unmap: arena_plan has addresses of its own */
memory memory_plan = {NULL, NULL, plan_put, plan_get, plan_shared, plan_shared_free, plan_post, plan_wait, NULL, NULL};
