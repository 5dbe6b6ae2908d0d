#include "core/file_set.h"
#include "core/arena.h"
#include "core/error.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int file_set_open(file_set *s, const char *dir) {
    *s = (file_set){.dir = xstrdup(dir), .made = !path_exists(dir)};
    if (!path_make_dirs(dir)) return 0;
    free(s->dir);
    *s = (file_set){0};
    return -1;
}

char *file_set_path(const file_set *s, const char *name) { return path_join(s->dir, name); }

void file_set_take(file_set *s, file_out *o) {
    s->out = xrealloc(s->out, (size_t)s->n + 1, sizeof *s->out);
    s->out[s->n++] = *o;
    *o = (file_out){.fd = -1};
}

int file_set_add(file_set *s, const char *name, const void *data, uint64_t n) {
    file_out o;
    char *path = file_set_path(s, name);
    int bad = file_create(&o, path) || file_write(&o, data, n);
    free(path);
    if (bad) return -1;
    file_set_take(s, &o);
    return 0;
}

bool file_set_has(const file_set *s, const char *name) {
    char *path = file_set_path(s, name);
    bool found = false;
    for (int i = 0; i < s->n && !found; i++) found = s->out[i].path && !strcmp(s->out[i].path, path);
    free(path);
    return found;
}

/* Files that replaced another stay: what they replaced is gone, and each of them is whole. */
static void take_back(char **fresh, int n) {
    for (int i = 0; i < n; i++)
        if (fresh[i]) unlink(fresh[i]);
}

int file_set_commit(file_set *s) {
    int bad = 0, done = 0;
    char **fresh = xcalloc((size_t)s->n, sizeof *fresh);
    for (; done < s->n && !bad; done++) {
        file_out *o = &s->out[done];
        if (o->path && !path_exists(o->path)) fresh[done] = xstrdup(o->path);
        bad = file_commit(o);
    }
    if (bad) take_back(fresh, done);
    for (int i = 0; i < done; i++) free(fresh[i]);
    free(fresh);
    if (bad) {
        file_set_abandon(s);
        return -1;
    }
    free(s->out), free(s->dir);
    *s = (file_set){0};
    return 0;
}

void file_set_abandon(file_set *s) {
    for (int i = 0; i < s->n; i++) file_abandon(&s->out[i]);
    if (s->made) rmdir(s->dir); /* fails, and should, when something is in it */
    free(s->out), free(s->dir);
    *s = (file_set){0};
}
