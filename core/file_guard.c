/* SIGBUS of a mapping becomes a message. The table of live mappings is the one global that changes while the program
 * runs: a signal handler has no other way to learn the file's name. Slots are claimed and freed by compare and swap,
 * and written before they become visible; a mapping that finds no free slot is merely not named. */
#include "core/error.h"
#include "core/file.h"

#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <unistd.h>

#define SLOTS 1024

static struct {
    _Atomic(const uint8_t *) data;
    _Atomic uint64_t size;
    _Atomic(const char *) path;
} slots[SLOTS];
static const uint8_t claimed; /* stands in a slot that is being written */
static _Atomic(const char *) program_name;

void file_guard_add(const file_map *m) {
    if (!m->data) return;
    for (int i = 0; i < SLOTS; i++) {
        const uint8_t *none = NULL;
        if (!atomic_compare_exchange_strong(&slots[i].data, &none, &claimed)) continue;
        atomic_store(&slots[i].size, m->size);
        atomic_store(&slots[i].path, m->path);
        atomic_store(&slots[i].data, m->data);
        return;
    }
}

void file_guard_remove(const file_map *m) {
    if (!m->data) return;
    for (int i = 0; i < SLOTS; i++) {
        if (atomic_load(&slots[i].data) != m->data) continue;
        atomic_store(&slots[i].size, 0);
        atomic_store(&slots[i].data, NULL);
        return;
    }
}

static void say(const char *s) {
    ssize_t ignored = write(STDERR_FILENO, s, strlen(s)); /* async-signal-safe, and nowhere to report to */
    (void)ignored;
}

static void on_bus_error(int signal_number, siginfo_t *info, void *context) {
    (void)context;
    uintptr_t at = (uintptr_t)info->si_addr, nearest = 0;
    const char *path = NULL;
    for (int i = 0; i < SLOTS; i++) {
        const uint8_t *data = atomic_load(&slots[i].data);
        uint64_t size = atomic_load(&slots[i].size) + 65535; /* the last page is whole, and at most of 64 KiB */
        if (!data || data == &claimed || at < (uintptr_t)data || at - (uintptr_t)data >= size) continue;
        if ((uintptr_t)data < nearest) continue;
        nearest = (uintptr_t)data, path = atomic_load(&slots[i].path);
    }
    if (path) {
        say(atomic_load(&program_name)), say(": error: "), say(path);
        say(": cannot be read any more: the file was cut short or its disk failed while it was in use\n");
        _exit(EXIT_IO);
    }
    signal(signal_number, SIG_DFL); /* not ours: a bug, and it is raised again on return */
}

void file_guard(const char *program) {
    struct sigaction action = {.sa_sigaction = on_bus_error, .sa_flags = SA_SIGINFO};
    atomic_store(&program_name, program);
    sigaction(SIGBUS, &action, NULL);
}
