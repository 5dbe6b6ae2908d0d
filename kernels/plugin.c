/* Where shared objects of backends are looked for, and the check that they belong to this program. */
#include "kernels/plugin.h"
#include "core/error.h"

#include <dlfcn.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* From the program's folder: the source tree's root, its build folder, a test program's, an installation's. */
static const char *const places[] = {"build/", "", "../", "../lib/peft.c/"};

enum { PATH_BYTES = 4096 };

static int own_folder(char *dir) {
    ssize_t n = readlink("/proc/self/exe", dir, PATH_BYTES - 1);
    if (n <= 0) return fail(EXIT_IO, "/proc/self/exe cannot be read: where is this program?");
    dir[n] = 0;
    strrchr(dir, '/')[1] = 0;
    return 0;
}

static bool same_abi(const plugin *p) {
    return p->n_sizes == sizeof plugin_sizes / sizeof *plugin_sizes && !strcmp(p->rows, plugin_rows) &&
           !memcmp(p->sizes, plugin_sizes, sizeof plugin_sizes);
}

/* The opened object, which stays open, and where it was; NULL after fail() when it cannot be opened, or, with *path
 * empty, without a word when it is nowhere. */
static void *open_object(const char *file, char path[static PATH_BYTES + 64]) {
    char dir[PATH_BYTES];
    *path = 0;
    if (own_folder(dir)) return NULL;
    for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
        snprintf(path, PATH_BYTES + 64, "%s%s%s", dir, places[i], file);
        if (access(path, R_OK)) continue;
        void *so = dlopen(path, RTLD_NOW | RTLD_LOCAL);
        if (!so) fail(EXIT_USAGE, "%s", dlerror());
        return so;
    }
    *path = 0;
    return NULL;
}

const backend *plugin_open(const char *name) {
    char file[64], path[PATH_BYTES + 64];
    snprintf(file, sizeof file, "peft_%s.so", name);
    void *so = open_object(file, path);
    const plugin *p = so ? dlsym(so, "peft_plugin") : NULL;
    if (!so && !*path)
        fail(EXIT_USAGE,
             "backend '%s': there is no %s beside this program or in its build folder: `make %s` builds it and needs "
             "NVIDIA's toolkit",
             name, file, name);
    else if (so && !p)
        fail(EXIT_USAGE, "backend '%s': %s", name, dlerror());
    else if (so && !same_abi(p))
        fail(EXIT_USAGE, "backend '%s': %s was built from other sources than this program: make %s", name, path, name);
    else if (so && strcmp(p->be->name, name) != 0)
        fail(EXIT_USAGE, "backend '%s': %s holds '%s'", name, path, p->be->name);
    else if (so)
        return p->be;
    if (so) dlclose(so);
    return NULL;
}

const void *plugin_symbol(const char *file, const char *symbol) {
    char path[PATH_BYTES + 64];
    void *so = open_object(file, path);
    return so ? dlsym(so, symbol) : NULL;
}
