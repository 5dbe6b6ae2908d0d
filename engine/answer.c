#include "engine/answer.h"
#include "core/arena.h"

#include <stdlib.h>
#include <string.h>

void answer_open(answer *a, const char *const *stop, int stops) {
    *a = (answer){0};
    a->stop = xcalloc((size_t)stops + 1, sizeof *a->stop);
    for (int i = 0; i < stops; i++)
        if (*stop[i]) a->stop[a->stops++] = xstrdup(stop[i]);
    a->out = xcalloc(1, 1);
}

void answer_close(answer *a) {
    for (int i = 0; i < a->stops; i++) free(a->stop[i]);
    free(a->stop), free(a->held), free(a->out);
    *a = (answer){0};
}

/* Where the first stop string begins that is there as a whole; n: none. */
static size_t find_stop(const answer *a) {
    size_t first = a->n;
    for (int i = 0; i < a->stops; i++) {
        const char *at = a->n ? memmem(a->held, a->n, a->stop[i], strlen(a->stop[i])) : NULL;
        if (at && (size_t)(at - a->held) < first) first = (size_t)(at - a->held);
    }
    return first;
}

/* Bytes at the end that a stop string may begin with. */
static size_t doubtful(const answer *a) {
    size_t most = 0;
    for (int i = 0; i < a->stops; i++) {
        size_t n = strlen(a->stop[i]) - 1;
        for (n = n < a->n ? n : a->n; n > most; n--)
            if (!memcmp(a->held + a->n - n, a->stop[i], n)) most = n;
    }
    return most;
}

/* the first n held bytes go through the stream of characters */
static int release(answer *a, size_t n, bool end) {
    size_t room = UTF8_STREAM_OUT(n) + UTF8_STREAM_OUT(0) + 1;
    if (room > a->out_cap) a->out = xrealloc(a->out, a->out_cap = 2 * room, 1);
    int out = utf8_stream_feed(&a->whole, n ? a->held : "", (int)n, a->out);
    if (end) out += utf8_stream_end(&a->whole, a->out + out);
    a->out[out] = 0;
    if (n) memmove(a->held, a->held + n, a->n - n);
    a->n -= n;
    return out;
}

void answer_copy(answer *to, const answer *from) {
    answer_open(to, (const char *const *)from->stop, from->stops);
    to->held = xcalloc(from->cap + 1, 1), to->cap = from->cap, to->n = from->n;
    if (from->n) memcpy(to->held, from->held, from->n);
    to->whole = from->whole;
}

const char *answer_feed(answer *a, const char *bytes, int size, bool last, int *n, bool *stopped) {
    if (a->n + (size_t)size > a->cap) a->held = xrealloc(a->held, a->cap = 2 * (a->n + (size_t)size), 1);
    if (size) memcpy(a->held + a->n, bytes, (size_t)size);
    a->n += (size_t)size;
    size_t stop = find_stop(a);
    *stopped = stop < a->n;
    *n = release(a, *stopped ? stop : last ? a->n : a->n - doubtful(a), *stopped || last);
    if (*stopped) a->n = 0;
    return a->out;
}
