/* Files: what may be mapped, and writing under faults. The system calls of writing are replaced by ones that fail at
 * the n-th call; after each fault the old file or the whole new one stands there, and no temporary is left. */
#include "core/file.h"
#include "core/text.h"
#include "tests/hostile.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>

/* ---- system calls with faults ---- */

typedef enum { CALL_WRITE = 1, CALL_FSYNC = 2, CALL_RENAME = 4, CALL_CLOSE = 8, CALL_OPEN = 16 } call;
typedef enum { FAULT_ERROR, FAULT_INTERRUPT, FAULT_SHORT, FAULT_KILL } fault_kind;
static struct {
    int armed, calls, at;
    bool sticky, fired;
    fault_kind kind;
    int error;
} fault;

static bool hit(call c) {
    if (!(fault.armed & (int)c)) return false;
    fault.calls++;
    bool now = fault.calls == fault.at || (fault.sticky && fault.calls > fault.at);
    fault.fired |= now;
    if (now) errno = fault.kind == FAULT_INTERRUPT ? EINTR : fault.error;
    return now;
}

ssize_t write(int fd, const void *p, size_t n) {
    if (fault.armed && hit(CALL_WRITE)) {
        if (fault.kind == FAULT_ERROR || fault.kind == FAULT_INTERRUPT) return -1;
        n = n / 2 ? n / 2 : 1;
        if (fault.kind == FAULT_KILL) {
            syscall(SYS_write, fd, p, n);
            raise(SIGKILL);
        }
    }
    return syscall(SYS_write, fd, p, n);
}

int fsync(int fd) { return fault.armed && hit(CALL_FSYNC) ? -1 : (int)syscall(SYS_fsync, fd); }

int rename(const char *from, const char *to) {
    return fault.armed && hit(CALL_RENAME) ? -1 : (int)syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0);
}

int close(int fd) {
    int r = (int)syscall(SYS_close, fd);
    return fault.armed && hit(CALL_CLOSE) ? -1 : r;
}

int open(const char *path, int flags, ...) {
    va_list ap;
    va_start(ap, flags);
    mode_t mode = flags & O_CREAT ? va_arg(ap, mode_t) : 0;
    va_end(ap);
    return fault.armed && hit(CALL_OPEN) ? -1 : (int)syscall(SYS_openat, AT_FDCWD, path, flags, mode);
}

/* ---- helpers ---- */

static char dir[] = "/tmp/peft_file_XXXXXX";

static char *in_dir(const char *name) { return path_join(dir, name); }

static int entries(void) {
    int n = 0;
    DIR *d = opendir(dir);
    for (struct dirent *e; (e = readdir(d));) n += e->d_name[0] != '.';
    closedir(d);
    return n;
}

static bool holds(const char *path, const char *text, size_t n) {
    file_map m;
    if (file_open(&m, path)) fail_msg("%s", fail_text());
    bool same = m.size == n && !memcmp(m.data, text, n);
    file_close(&m);
    return same;
}

static int make_dir_for_all(void **state) {
    (void)state;
    return mkdtemp(dir) ? 0 : -1;
}

static int remove_dir(void **state) {
    (void)state;
    return rmdir(dir);
}

/* ---- reading ---- */

static void g43_kinds(void **state) {
    (void)state;
    file_map m;
    char *fifo = in_dir("fifo"), *link = in_dir("link"), *sock = in_dir("sock"), *loop = in_dir("loop");
    assert_int_equal(mkfifo(fifo, 0600), 0);
    assert_int_equal(symlink("/nowhere/at/all", link), 0);
    assert_int_equal(symlink("loop", loop), 0);
    int s = socket(AF_UNIX, SOCK_STREAM, 0);
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    snprintf(a.sun_path, sizeof a.sun_path, "%s", sock);
    assert_int_equal(bind(s, (struct sockaddr *)&a, sizeof a), 0);
    close(s);
    const struct {
        const char *path, *says;
    } rows[] = {
        {dir, "not a regular file: a directory"},
        {fifo, "not a regular file: a FIFO"},
        {"/dev/zero", "not a regular file: a character device"},
        {link, "a symbolic link to nothing"},
        {sock, "not a regular file"},
        {loop, "cannot open"},
        {"/nowhere", "cannot open: No such file"},
        {"/etc/passwd/x", "cannot open: Not a directory"},
        {"", "cannot open"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        assert_int_equal(file_open(&m, rows[i].path), -1);
        assert_null(m.path);
        assert_said(EXIT_INPUT, rows[i].path, rows[i].says);
    }
    unlink(fifo), unlink(link), unlink(sock), unlink(loop);
    free(fifo), free(link), free(sock), free(loop);
}

static void maps(void **state) {
    (void)state;
    char *path = in_dir("empty"), *link = in_dir("link");
    file_map m;
    assert_int_equal(file_save(path, "", 0), 0);
    assert_int_equal(file_open(&m, path), 0);
    assert_true(m.size == 0 && !m.data);
    assert_string_equal(m.path, path);
    assert_null(file_guess(m.data, m.size));
    file_close(&m);
    assert_int_equal(file_save(path, "abc", 3), 0);
    assert_int_equal(symlink(path, link), 0); /* Hugging Face's cache is made of links */
    assert_true(holds(link, "abc", 3));
    fault.armed = CALL_OPEN, fault.calls = 0, fault.at = 1, fault.kind = FAULT_ERROR, fault.error = EACCES;
    assert_int_equal(file_open(&m, path), -1);
    fault.armed = 0;
    assert_said(EXIT_IO, "cannot open: Permission denied");
    unlink(path), unlink(link);
    free(path), free(link);
}

static void guesses(void **state) {
    (void)state;
    uint8_t tar[512] = {'x'};
    snprintf((char *)tar + 257, 6, "ustar");
    assert_non_null(strstr(file_guess(tar, sizeof tar), "tar archive"));
    assert_null(file_guess(tar, 256));
    static const char text[] = "version https://git-lfs";
    for (size_t n = 0; n < sizeof text - 1; n++) assert_null(file_guess((const uint8_t *)text, n));
    assert_non_null(strstr(file_guess((const uint8_t *)text, sizeof text - 1), "git lfs pull"));
    assert_null(file_guess((const uint8_t *)"\n\n\n", 3));
    assert_null(file_guess((const uint8_t *)"PK", 2));
}

/* a file that shrinks while it is mapped: one line and EXIT_IO, no crash */
static void g33_cut_short(void **state) {
    (void)state;
    for (int guarded = 0; guarded < 2; guarded++) {
        int said[2], status;
        assert_int_equal(pipe(said), 0);
        pid_t child = fork();
        if (!child) {
            dup2(said[1], STDERR_FILENO);
            bytes b = {0};
            put_fill(&b, 1, 20000);
            crafted f = crafted_file(b.data, b.n);
            file_map m, other;
            file_guard("train");
            if (file_open(&other, "/proc/self/exe") || file_open(&m, f.path) || ftruncate(f.fd, 100)) _exit(99);
            if (!guarded) file_guard_remove(&m), signal(SIGBUS, SIG_DFL);
            volatile uint8_t byte = m.data[19999];
            _exit(byte ? 98 : 97);
        }
        close(said[1]);
        char text[256] = "";
        ssize_t n = 0, r;
        while ((r = read(said[0], text + n, sizeof text - 1 - (size_t)n)) > 0) n += r;
        close(said[0]);
        assert_int_equal(waitpid(child, &status, 0), child);
        if (guarded)
            assert_true(WIFEXITED(status) && WEXITSTATUS(status) == EXIT_IO);
        else
            assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGBUS);
        if (guarded) assert_non_null(strstr(text, "train: error: /proc/self/fd/"));
        if (guarded) assert_non_null(strstr(text, "cut short"));
    }
}

/* ---- writing ---- */

static void paths(void **state) {
    (void)state;
    static const char *const joins[][3] = {{"a", "b", "a/b"}, {"a/", "b", "a/b"}, {"", "b", "b"}, {"/", "b", "/b"}};
    for (int i = 0; i < 4; i++) {
        char *p = path_join(joins[i][0], joins[i][1]);
        assert_string_equal(p, joins[i][2]);
        free(p);
    }
    char *deep = in_dir("a/b//c/"), *file = in_dir("f"), *below = in_dir("f/x");
    assert_int_equal(path_make_dirs(deep), 0);
    assert_int_equal(path_make_dirs(deep), 0);
    assert_true(path_is_dir(deep));
    assert_int_equal(file_save(file, "x", 1), 0);
    assert_true(path_exists(file) && !path_is_dir(file) && !path_exists(below));
    assert_int_equal(path_make_dirs(file), -1);
    assert_said(EXIT_IO, "something else has this name");
    assert_int_equal(path_make_dirs(below), -1);
    assert_said(EXIT_IO, file);
    assert_int_equal(path_make_dirs(""), -1);
    assert_said(EXIT_IO, "without a name");
    assert_int_equal(file_save(dir, "x", 1), -1);
    assert_said(EXIT_IO, "a directory has this name");
    assert_int_equal(file_save(below, "x", 1), -1);
    assert_said(EXIT_IO, "cannot create");
    unlink(file);
    static const char *const made[] = {"a/b/c", "a/b", "a"};
    for (int i = 0; i < 3; i++) {
        char *p = in_dir(made[i]);
        assert_int_equal(rmdir(p), 0);
        free(p);
    }
    free(deep), free(file), free(below);
}

static void creates_and_abandons(void **state) {
    (void)state;
    char *path = in_dir("out"), *tmp = xprintf("%s.tmp.%ld", path, (long)getpid());
    file_out o;
    assert_int_equal(file_create(&o, path), 0);
    assert_int_equal(file_write(&o, "ab", 2), 0);
    assert_true(path_exists(tmp) && !path_exists(path));
    assert_int_equal(o.written, 2);
    file_abandon(&o);
    assert_int_equal(entries(), 0);
    assert_int_equal(file_commit(&o), -1); /* after an abandoned or failed write nothing can be saved */
    assert_said(EXIT_IO, "abandoned");
    assert_int_equal(symlink("/etc/passwd", tmp), 0); /* left by a dead process: neither followed nor in the way */
    assert_int_equal(file_save(path, "new", 3), 0);
    assert_true(holds(path, "new", 3));
    assert_int_equal(entries(), 1);
    assert_int_equal(chdir(dir), 0); /* a name without a directory */
    assert_int_equal(file_save("out", "newer", 5), 0);
    assert_true(holds(path, "newer", 5));
    assert_int_equal(chdir("/"), 0);
    unlink(path);
    free(path), free(tmp);
}

static const size_t BIG = 300000;

static int save_in_pieces(const char *path, const char *text) {
    file_out o;
    if (file_create(&o, path)) return -1;
    for (size_t i = 0; i < BIG; i += 65536)
        if (file_write(&o, text + i, BIG - i < 65536 ? BIG - i : 65536)) return -1;
    return file_commit(&o);
}

/* One fault per run, at every call in turn. A fault must fail the save and leave the old file, or be overcome and leave
 * the new one; only the last step, flushing the directory, may fail with the new file in place. */
static void faults(void **state) {
    (void)state;
    static const struct {
        int calls;
        fault_kind kind;
        bool sticky, overcome;
        int error;
        const char *says;
    } rows[] = {
        {CALL_WRITE, FAULT_ERROR, false, false, ENOSPC, "No space left"},
        {CALL_WRITE, FAULT_ERROR, true, false, EIO, "Input/output error"},
        {CALL_WRITE, FAULT_INTERRUPT, false, true, 0, ""},
        {CALL_WRITE, FAULT_SHORT, false, true, 0, ""},
        {CALL_WRITE, FAULT_SHORT, true, true, 0, ""},
        {CALL_FSYNC, FAULT_ERROR, false, false, EIO, "flush"},
        {CALL_FSYNC, FAULT_INTERRUPT, false, true, 0, ""},
        {CALL_RENAME, FAULT_ERROR, false, false, EACCES, "rename into place"},
        {CALL_OPEN, FAULT_ERROR, false, false, EROFS, "Read-only"},
        {CALL_OPEN, FAULT_INTERRUPT, false, true, 0, ""},
        {CALL_CLOSE, FAULT_INTERRUPT, false, true, 0, ""},
    };
    char *path = in_dir("out"), *old = xcalloc(BIG, 1), *text = xcalloc(BIG, 1);
    memset(old, 'o', BIG), memset(text, 'n', BIG);
    int injected = 0;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        for (int at = 1;; at++) {
            assert_int_equal(file_save(path, old, BIG), 0);
            memset(&fault, 0, sizeof fault);
            fault.kind = rows[i].kind, fault.error = rows[i].error, fault.sticky = rows[i].sticky, fault.at = at;
            fault.armed = rows[i].calls;
            int r = save_in_pieces(path, text);
            fault.armed = 0;
            if (!fault.fired) {
                if (rows[i].calls == CALL_FSYNC) assert_int_equal(at, 3); /* the file and its directory were flushed */
                break;
            }
            injected++;
            assert_int_equal(r, rows[i].overcome ? 0 : -1);
            assert_int_equal(entries(), 1);
            bool dir_flush = rows[i].calls == CALL_FSYNC && r && at == 2;
            assert_true(holds(path, r && !dir_flush ? old : text, BIG));
            if (r) assert_said(EXIT_IO, path, rows[i].says);
        }
    assert_true(injected >= 30);
    unlink(path);
    free(path), free(old), free(text);
}

/* close(2) that reports an error loses nothing that fsync has not kept, but is not believed */
static void close_fails(void **state) {
    (void)state;
    char *path = in_dir("out");
    assert_int_equal(file_save(path, "old", 3), 0);
    memset(&fault, 0, sizeof fault);
    fault.kind = FAULT_ERROR, fault.error = EIO, fault.at = 1, fault.armed = CALL_CLOSE;
    int r = file_save(path, "new", 3);
    fault.armed = 0;
    assert_int_equal(r, -1);
    assert_said(EXIT_IO, "cannot close");
    assert_true(holds(path, "old", 3));
    assert_int_equal(entries(), 1);
    unlink(path);
    free(path);
}

static void killed_while_writing(void **state) {
    (void)state;
    char *path = in_dir("out"), *text = xcalloc(BIG, 1);
    assert_int_equal(file_save(path, "old", 3), 0);
    for (int at = 1; at <= 5; at++) {
        pid_t child = fork();
        if (!child) {
            memset(&fault, 0, sizeof fault);
            fault.kind = FAULT_KILL, fault.at = at, fault.armed = CALL_WRITE;
            _exit(save_in_pieces(path, text) ? 1 : 0);
        }
        int status;
        assert_int_equal(waitpid(child, &status, 0), child);
        assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
        assert_true(holds(path, "old", 3));
        char *tmp = xprintf("%s.tmp.%ld", path, (long)child);
        assert_int_equal(unlink(tmp), 0);
        free(tmp);
    }
    unlink(path);
    free(path), free(text);
}

/* ---- text ---- */

/* against the definition: encode every code point, and count the well-formed sequences of two and three bytes */
static void utf8(void **state) {
    (void)state;
    for (uint32_t c = 0; c < 0x110000; c++) {
        uint8_t s[4];
        size_t n = c < 0x80 ? 1 : c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
        for (size_t i = n; i-- > 1;) s[i] = (uint8_t)(0x80 | (c >> 6 * (n - 1 - i) & 63));
        s[0] = (uint8_t)(n == 1 ? c : (0xf00u >> n & 0xff) | c >> 6 * (n - 1));
        bool surrogate = c >= 0xd800 && c < 0xe000;
        if (utf8_length(s, n) != (surrogate ? 0 : n)) fail_msg("U+%04X", c);
        if (n > 1 && utf8_length(s, n - 1)) fail_msg("U+%04X cut", c);
    }
    int two = 0, three = 0;
    for (uint32_t v = 0; v < 1u << 24; v++) {
        uint8_t s[3] = {(uint8_t)(v >> 16), (uint8_t)(v >> 8), (uint8_t)v};
        three += utf8_length(s, 3) == 3;
        if (!(v & 255)) two += utf8_length(s, 2) == 2;
    }
    assert_int_equal(two, 0x800 - 0x80);
    assert_int_equal(three, 0x10000 - 0x800 - 0x800);
    assert_int_equal(utf8_valid((const uint8_t *)"aaaaaaaaaaaa\xff", 13), 12);
    assert_true(text_is_name("caf\xc3\xa9 \xc2\xa0", 8) && !text_is_name("a\xc2\x85", 3) && !text_is_name("\x1f", 1));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(g43_kinds),     cmocka_unit_test(maps),        cmocka_unit_test(guesses),
        cmocka_unit_test(g33_cut_short), cmocka_unit_test(paths),       cmocka_unit_test(creates_and_abandons),
        cmocka_unit_test(faults),        cmocka_unit_test(close_fails), cmocka_unit_test(killed_while_writing),
        cmocka_unit_test(utf8),
    };
    return cmocka_run_group_tests(tests, make_dir_for_all, remove_dir);
}
