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

static const backend *load(const char *name, const char *path) {
    void *so = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    const plugin *p = so ? dlsym(so, "peft_plugin") : NULL;
    if (!p)
        fail(EXIT_USAGE, "backend '%s': %s", name, dlerror());
    else if (!same_abi(p))
        fail(EXIT_USAGE, "backend '%s': %s was built from other sources than this program: make %s", name, path, name);
    else if (strcmp(p->be->name, name) != 0)
        fail(EXIT_USAGE, "backend '%s': %s holds '%s'", name, path, p->be->name);
    else
        return p->be; /* stays open: its code runs until the program ends */
    if (so) dlclose(so);
    return NULL;
}

const backend *plugin_open(const char *name) {
    char dir[PATH_BYTES], path[PATH_BYTES + 64];
    if (own_folder(dir)) return NULL;
    for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
        snprintf(path, sizeof path, "%s%speft_%s.so", dir, places[i], name);
        if (!access(path, R_OK)) return load(name, path);
    }
    fail(
        EXIT_USAGE,
        "backend '%s': there is no peft_%s.so in %s or its build folder: `make %s` builds it and needs NVIDIA's toolkit",
        name, name, dir, name);
    return NULL;
}
