/* Every state in which a crash may leave a POSIX file system, out of a recorded list of calls (recorder.h).
 *
 * At a crash a file holds what it held at its last fsync, and any prefix of what was written since, at the borders of
 * writes and inside one (Pillai et al. 2014, "All file systems are not created equal"). A change of a directory
 * (create, rename, exchange, unlink, mkdir, rmdir) is on the disk when that directory has been flushed since; of the
 * others any subset is, each as it would apply to what is there. Where more than CRASH_SUBSETS changes are open only
 * prefixes, all but one, and single ones are taken. */
#ifndef PEFT_TESTS_CRASH_MODEL_H
#define PEFT_TESTS_CRASH_MODEL_H

#include "tests/recorder.h"

#include <dirent.h>

enum { CRASH_SUBSETS = 6, CRASH_NODES = 4096, CRASH_ENTRIES = 4096, CRASH_PENDING = 256 };

typedef struct {
    bool dir;
    char *data;
    size_t n, synced; /* bytes written; of them flushed */
} crash_node;
typedef struct {
    char path[192];
    int node;
} crash_entry;
typedef struct {
    crash_entry at[CRASH_ENTRIES];
    int n;
} crash_tree;
typedef struct {
    rec_kind kind;
    char path[192], to[192];
    int node;
} crash_change;

static struct {
    crash_node node[CRASH_NODES];
    int nodes;
    crash_tree now, disk;
    crash_change open[CRASH_PENDING];
    int n_open;
} crash;

static inline crash_entry *crash_find(crash_tree *t, const char *path) {
    for (int i = 0; i < t->n; i++)
        if (!strcmp(t->at[i].path, path)) return &t->at[i];
    return NULL;
}

static inline void crash_drop(crash_tree *t, const char *path) {
    crash_entry *e = crash_find(t, path);
    if (e) *e = t->at[--t->n];
}

static inline void crash_put(crash_tree *t, const char *path, int node) {
    crash_drop(t, path);
    snprintf(t->at[t->n].path, sizeof t->at[t->n].path, "%s", path);
    t->at[t->n++].node = node;
}

/* what lies below a directory goes where it goes */
static inline void crash_move(crash_tree *t, const char *from, const char *to) {
    size_t n = strlen(from);
    for (int i = 0; i < t->n; i++) {
        crash_entry *e = &t->at[i];
        if (strncmp(e->path, from, n) || (e->path[n] && e->path[n] != '/')) continue;
        char rest[sizeof e->path];
        memcpy(rest, e->path + n, strlen(e->path + n) + 1);
        if (strlen(to) + strlen(rest) >= sizeof e->path) abort();
        memcpy(e->path, to, strlen(to));
        memcpy(e->path + strlen(to), rest, strlen(rest) + 1);
    }
}

static inline void crash_apply(crash_tree *t, const crash_change *c) {
    if (c->kind == REC_CREATE || c->kind == REC_MKDIR) crash_put(t, c->path, c->node);
    if (c->kind == REC_UNLINK || c->kind == REC_RMDIR) crash_drop(t, c->path);
    if (c->kind == REC_RENAME && crash_find(t, c->path)) crash_drop(t, c->to), crash_move(t, c->path, c->to);
    if (c->kind == REC_EXCHANGE && crash_find(t, c->path) && crash_find(t, c->to)) {
        crash_move(t, c->path, "\1");
        crash_move(t, c->to, c->path);
        crash_move(t, "\1", c->to);
    }
}

static inline void crash_parent(const char *path, char *out) {
    snprintf(out, 192, "%s", path);
    char *slash = strrchr(out, '/');
    *(slash ? slash : out) = 0;
}

static inline bool crash_in(const crash_change *c, const char *dir) {
    char parent[192];
    crash_parent(c->path, parent);
    if (!strcmp(parent, dir)) return true;
    crash_parent(c->to, parent);
    return (c->kind == REC_RENAME || c->kind == REC_EXCHANGE) && !strcmp(parent, dir);
}

/* One call that went through. */
static inline void crash_step(const rec_op *o) {
    crash_change c = {.kind = o->kind, .node = -1};
    snprintf(c.path, sizeof c.path, "%s", o->path);
    if (o->to) snprintf(c.to, sizeof c.to, "%s", o->to);
    crash_entry *e = crash_find(&crash.now, o->path);
    if (o->kind == REC_WRITE) {
        crash_node *f = &crash.node[e->node];
        f->data = realloc(f->data, f->n + o->n);
        memcpy(f->data + f->n, o->data, o->n), f->n += o->n;
    } else if (o->kind == REC_FSYNC) {
        if (e && !crash.node[e->node].dir) crash.node[e->node].synced = crash.node[e->node].n;
        int kept = 0;
        for (int i = 0; i < crash.n_open; i++)
            if (crash_in(&crash.open[i], o->path))
                crash_apply(&crash.disk, &crash.open[i]);
            else
                crash.open[kept++] = crash.open[i];
        crash.n_open = kept;
    } else if (o->kind != REC_ACK) {
        if (o->kind == REC_CREATE || o->kind == REC_MKDIR) {
            c.node = crash.nodes++;
            crash.node[c.node] = (crash_node){.dir = o->kind == REC_MKDIR};
        }
        crash_apply(&crash.now, &c);
        crash.open[crash.n_open++] = c;
    }
}

static inline void crash_remove(const char *dir) {
    DIR *d = opendir(dir);
    for (struct dirent *e; d && (e = readdir(d));) {
        char path[512];
        if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, "..")) continue;
        if (snprintf(path, sizeof path, "%s/%s", dir, e->d_name) >= (int)sizeof path) abort();
        if (syscall(SYS_unlinkat, AT_FDCWD, path, 0)) crash_remove(path);
    }
    if (d) closedir(d);
    syscall(SYS_unlinkat, AT_FDCWD, dir, AT_REMOVEDIR);
}

static inline void crash_clear_dir(const char *dir) {
    crash_remove(dir);
    if (syscall(SYS_mkdirat, AT_FDCWD, dir, 0777)) abort();
}

static inline bool crash_is_loose(const crash_tree *t) {
    for (int i = 0; i < t->n; i++)
        if (crash.node[t->at[i].node].synced < crash.node[t->at[i].node].n) return true;
    return false;
}

/* Writes the tree below dir; `loose`: how many of the unflushed bytes files hold, 0 none, 1 half, 2 all. */
static inline void crash_write(const crash_tree *t, const char *dir, int loose) {
    crash_clear_dir(dir);
    for (int pass = 0; pass < 2; pass++)
        for (int i = 0; i < t->n; i++) {
            const crash_node *f = &crash.node[t->at[i].node];
            char path[512];
            snprintf(path, sizeof path, "%s/%s", dir, t->at[i].path);
            if (f->dir && !pass) mkdir(path, 0777);
            if (f->dir || !pass) continue;
            size_t n = f->synced + (f->n - f->synced) * (size_t)loose / 2;
            FILE *out = fopen(path, "wb"); /* in a directory that is not there: lost with it */
            if (!out) continue;
            if (n) fwrite(f->data, 1, n, out);
            fclose(out);
        }
}

/* Calls check(dir, acknowledged) for every state in which a crash before each call and after the last may leave `dir`.
 * Returns how many there were. */
static inline long crash_states(const char *dir, void (*check)(const char *dir, long acked)) {
    long states = 0, acked = 0;
    for (int k = 0; k <= rec.n; k++) {
        int n = crash.n_open;
        bool all = n <= CRASH_SUBSETS;
        for (long s = 0; s < (all ? 1L << n : 3L * n + 1); s++) {
            static crash_tree t;
            t = crash.disk;
            for (int i = 0; i < n; i++)
                if (all ? s >> i & 1 : s <= n ? i < s : s <= 2 * n ? i != s - n - 1 : i == s - 2 * n - 1)
                    crash_apply(&t, &crash.open[i]);
            for (int loose = 0; loose < (crash_is_loose(&t) ? 3 : 1); loose++, states++) {
                crash_write(&t, dir, loose);
                check(dir, acked);
            }
        }
        if (k == rec.n) break;
        if (rec.op[k].kind == REC_ACK) acked = rec.op[k].ack;
        crash_step(&rec.op[k]);
    }
    return states;
}

#endif
