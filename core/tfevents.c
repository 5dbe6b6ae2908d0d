#include "core/tfevents.h"
#include "core/arena.h"
#include "core/error.h"
#include "core/file.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

uint32_t crc32c(const void *data, size_t n) {
    const uint8_t *p = data;
    uint32_t c = ~0u;
    while (n--) {
        c ^= *p++;
        for (int k = 0; k < 8; k++) c = c >> 1 ^ (0x82f63b78u & -(c & 1));
    }
    return ~c;
}

typedef struct {
    uint8_t byte[1024];
    size_t n;
} message;

static void put(message *m, const void *p, size_t n) {
    CHECK(m->n + n <= sizeof m->byte, "event of %zu bytes", m->n + n);
    memcpy(m->byte + m->n, p, n);
    m->n += n;
}

static void put_varint(message *m, uint64_t x) {
    for (; x >= 0x80; x >>= 7) put(m, &(uint8_t){(uint8_t)(x | 0x80)}, 1);
    put(m, &(uint8_t){(uint8_t)x}, 1);
}

/* wire types: 0 varint, 1 eight bytes, 2 length and bytes, 5 four bytes; numbers are little endian */
static void put_key(message *m, int field, int wire) { put_varint(m, (uint64_t)(field << 3 | wire)); }
static void put_bytes(message *m, int field, const void *p, size_t n) {
    put_key(m, field, 2), put_varint(m, n), put(m, p, n);
}

static void write_record(FILE *f, const message *m) {
    uint64_t n = m->n;
    uint32_t sum[2] = {crc32c(&n, sizeof n), crc32c(m->byte, m->n)};
    for (int i = 0; i < 2; i++) sum[i] = (sum[i] >> 15 | sum[i] << 17) + 0xa282ead8u;
    fwrite(&n, sizeof n, 1, f), fwrite(&sum[0], 4, 1, f);
    fwrite(m->byte, 1, m->n, f), fwrite(&sum[1], 4, 1, f);
    fflush(f);
}

static message begin_event(void) {
    message m = {.n = 0};
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    double now = (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
    put_key(&m, 1, 1), put(&m, &now, sizeof now);
    return m;
}

int tfevents_open(tfevents *e, const char *dir) {
    char host[65] = "host", *name, *path;
    gethostname(host, sizeof host - 1);
    name = xprintf("events.out.tfevents.%010ld.%s.%ld", (long)time(NULL), host, (long)getpid());
    path = path_join(dir, name);
    e->f = fopen(path, "wb");
    int bad = e->f ? 0 : fail(EXIT_IO, "%s: cannot create: %s", path, strerror(errno));
    if (!bad) {
        static const char version[] = "brain.Event:2";
        setvbuf(e->f, NULL, _IOFBF, 4096);
        message m = begin_event();
        put_bytes(&m, 3, version, sizeof version - 1);
        write_record(e->f, &m);
    }
    free(name), free(path);
    return bad;
}

void tfevents_add(tfevents *e, int64_t step, const tf_scalar *s, int n) {
    if (!e->f) return;
    CHECK(n <= TF_SCALARS_MAX, "%d scalars", n);
    message m = begin_event(), summary = {.n = 0};
    for (int i = 0; i < n; i++) {
        message value = {.n = 0};
        put_bytes(&value, 1, s[i].tag, strlen(s[i].tag));
        put_key(&value, 2, 5), put(&value, &s[i].value, 4);
        put_bytes(&summary, 1, value.byte, value.n);
    }
    put_key(&m, 2, 0), put_varint(&m, (uint64_t)step);
    put_bytes(&m, 5, summary.byte, summary.n);
    write_record(e->f, &m);
}

void tfevents_close(tfevents *e) {
    if (e->f) fclose(e->f);
    e->f = NULL;
}
