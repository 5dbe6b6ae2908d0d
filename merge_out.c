/* Where a merge goes: nothing that is read or that others made is written over. */
#include "core/error.h"
#include "merge_parts.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static bool same_place(const char *a, const char *b) {
    struct stat x, y;
    return !stat(a, &x) && !stat(b, &y) && x.st_dev == y.st_dev && x.st_ino == y.st_ino;
}

static bool is_empty(const char *dir) {
    DIR *d = opendir(dir);
    bool empty = true;
    for (struct dirent *e; d && empty && (e = readdir(d));) empty = !strcmp(e->d_name, ".") || !strcmp(e->d_name, "..");
    if (d) closedir(d);
    return empty;
}

static int check_dir(const char *out, merge_kind kind, bool overwrite) {
    if (!path_is_dir(out)) return fail(EXIT_USAGE, "--out: '%s' is not a directory", out);
    if (is_empty(out)) return 0;
    if (!overwrite)
        return fail(EXIT_USAGE,
                    "--out: '%s' is not empty: give another directory, or --overwrite to replace a former merge", out);
    if (kind == MERGE_ADAPTER) return 0;
    char *nested = path_join(out, "adapter_config.json");
    bool adapter_there = path_exists(nested);
    free(nested);
    /* transformers would put that adapter on top of the merged weights */
    return adapter_there
               ? fail(EXIT_USAGE, "--out: '%s' holds an adapter, which would be loaded on top: give another directory",
                      out)
               : 0;
}

int merge_check_out(const merge_options *o, merge_kind what) {
    const char *out = o->out, *kind = what == MERGE_FILE ? "file" : "directory";
    if (!path_exists(out)) return 0;
    if (same_place(out, o->model)) return fail(EXIT_USAGE, "--out: '%s' is the base model: give another %s", out, kind);
    if (o->adapter && same_place(out, o->adapter))
        return fail(EXIT_USAGE, "--out: '%s' is the adapter: give another %s", out, kind);
    if (o->imatrix && same_place(out, o->imatrix))
        return fail(EXIT_USAGE, "--out: '%s' is the importance matrix: give another %s", out, kind);
    if (what != MERGE_FILE) return check_dir(out, what, o->overwrite);
    if (path_is_dir(out)) return fail(EXIT_USAGE, "--out: '%s' is a directory, expected a file FILE.gguf", out);
    return o->overwrite ? 0 : fail(EXIT_USAGE, "--out: '%s' is there already: give another file, or --overwrite", out);
}

int merge_set_aside(const file_set *set) {
    int bad = 0;
    for (int i = 0; export_names[i] && !bad; i++) {
        char *path = file_set_path(set, export_names[i]), *old = xprintf("%s.old", path);
        if (path_exists(path) && !file_set_has(set, export_names[i])) {
            if (rename(path, old))
                bad = fail(EXIT_IO, "%s: cannot rename to %s: %s", path, old, strerror(errno));
            else
                fprintf(stderr, "note: %s is not part of this merge: renamed to %s.old\n", path, export_names[i]);
        }
        free(path), free(old);
    }
    return bad;
}
