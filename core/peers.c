/* Messages are a header (what, n) and n bytes. Only the listening thread reads; writes are whole under a lock. */
#include "core/peers.h"
#include "core/arena.h"
#include "core/error.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

typedef enum { HELLO = 0x70656665, ALIVE, DATA, DEAD, BYE } message_kind;

typedef struct message {
    uint32_t what, n;
} message;
typedef struct greeting {
    int32_t rank, size;
} greeting;

enum { BEAT = 3, PATIENCE = 10, DATA_MAX = 1 << 20 }; /* seconds between signs of life; for goodbyes */

typedef struct peer {
    int fd; /* -1: left, or this process itself */
    double heard;
} peer;

struct peers {
    int rank, size;
    peer peer[PEERS_MAX]; /* rank 0: by rank; others: [0] alone */
    pthread_t listener;
    pthread_mutex_t lock; /* of what follows, and of writing */
    pthread_cond_t came;
    char *data; /* what rank 0 sent and nobody has fetched */
    size_t n;
    bool closing;
    double until; /* how long the others' goodbyes are waited for */
};

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void wait_ms(int ms) { poll(NULL, 0, ms); }

static bool write_all(int fd, const void *p, size_t n) {
    for (size_t at = 0; at < n;) {
        ssize_t k = send(fd, (const char *)p + at, n - at, MSG_NOSIGNAL);
        if (k < 0 && errno != EINTR) return false;
        if (k > 0) at += (size_t)k;
    }
    return true;
}

static bool read_all(int fd, void *p, size_t n) {
    for (size_t at = 0; at < n;) {
        ssize_t k = recv(fd, (char *)p + at, n - at, 0);
        if (k == 0 || (k < 0 && errno != EINTR)) return false;
        if (k > 0) at += (size_t)k;
    }
    return true;
}

/* under the lock */
static bool say(int fd, message_kind what, const void *bytes, size_t n) {
    const message m = {what, (uint32_t)n};
    return write_all(fd, &m, sizeof m) && write_all(fd, bytes, n);
}

static void say_to_all(peers *p, message_kind what, const void *bytes, size_t n) {
    for (int i = 0; i < p->size; i++)
        if (p->peer[i].fd >= 0) say(p->peer[i].fd, what, bytes, n); /* whether it arrived the listener finds out */
}

/* ---- the listener ---- */

/* Ends this process, and, on rank 0, tells the others why. Under the lock. */
static void died(peers *p, int32_t rank, const char *how) {
    if (p->closing) return;
    if (p->rank == 0) say_to_all(p, DEAD, &rank, sizeof rank);
    fprintf(stderr, "rank %d: error: rank %d of %d %s; this rank stops\n", p->rank, rank, p->size, how);
    fflush(stderr);
    _exit(EXIT_PEER);
}

static void keep_data(peers *p, int fd, size_t n) {
    CHECK(p->rank != 0 && n <= DATA_MAX, "%zu bytes from another rank", n);
    char *data = xcalloc(n ? n : 1, 1);
    bool whole = read_all(fd, data, n);
    pthread_mutex_lock(&p->lock);
    if (!whole) died(p, 0, "broke off in a message");
    while (p->data) pthread_cond_wait(&p->came, &p->lock);
    p->data = data, p->n = n;
    pthread_cond_broadcast(&p->came);
    pthread_mutex_unlock(&p->lock);
}

static void hear(peers *p, int i) {
    message m;
    int32_t who = 0;
    const int fd = p->peer[i].fd;
    bool whole = read_all(fd, &m, sizeof m);
    p->peer[i].heard = now();
    if (whole && m.what == DATA) {
        keep_data(p, fd, m.n);
        return;
    }
    if (whole && m.what == DEAD) whole = read_all(fd, &who, sizeof who);
    pthread_mutex_lock(&p->lock);
    if ((whole && m.what == BYE) || (!whole && p->closing))
        close(fd), p->peer[i].fd = -1;
    else if (whole && m.what == DEAD)
        died(p, who, "died");
    else if (!whole)
        died(p, i, "died (its connection closed)");
    pthread_mutex_unlock(&p->lock);
}

static void *listen_on(void *arg) {
    peers *p = arg;
    double beat = now();
    for (;;) {
        struct pollfd f[PEERS_MAX];
        int of[PEERS_MAX], n = 0;
        pthread_mutex_lock(&p->lock);
        if (now() - beat >= BEAT) say_to_all(p, ALIVE, NULL, 0), beat = now();
        for (int i = 0; i < p->size; i++) {
            if (p->peer[i].fd < 0) continue;
            if (now() - p->peer[i].heard > PEERS_SILENCE) died(p, i, "is silent");
            of[n] = i, f[n++] = (struct pollfd){.fd = p->peer[i].fd, .events = POLLIN};
        }
        bool done = p->closing && (n == 0 || now() > p->until); /* all have said goodbye */
        pthread_mutex_unlock(&p->lock);
        if (done) return NULL;
        poll(f, (nfds_t)n, 100);
        for (int k = 0; k < n; k++)
            if (f[k].revents) hear(p, of[k]);
    }
}

/* ---- meeting ---- */

static void tune(int fd) {
    int one = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
}

/* A socket bound to or connected with host:port; -1: not now. */
static int reach(const char *host, int port, bool to_listen) {
    struct addrinfo want = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICSERV}, *all;
    char service[16];
    int fd = -1;
    snprintf(service, sizeof service, "%d", port);
    if (getaddrinfo(host, service, &want, &all)) return -1;
    for (struct addrinfo *a = all; a && fd < 0; a = a->ai_next) {
        int one = 1;
        fd = socket(a->ai_family, a->ai_socktype | SOCK_CLOEXEC, a->ai_protocol);
        if (fd < 0) continue;
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
        bool ok = to_listen ? !bind(fd, a->ai_addr, a->ai_addrlen) && !listen(fd, PEERS_MAX)
                            : !connect(fd, a->ai_addr, a->ai_addrlen);
        if (!ok) close(fd), fd = -1;
    }
    freeaddrinfo(all);
    return fd;
}

/* What a caller said within five seconds: its rank, or -1 when it is no rank of this run. */
static int greet(const peers *p, int fd) {
    message m;
    greeting g;
    struct timeval limit = {5, 0}, none = {0, 0};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    bool ok = read_all(fd, &m, sizeof m) && m.what == HELLO && m.n == sizeof g && read_all(fd, &g, sizeof g);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &none, sizeof none);
    if (!ok || g.size != p->size || g.rank < 1 || g.rank >= p->size || p->peer[g.rank].fd >= 0) return -1;
    return g.rank;
}

static int gather(peers *p, const char *host, int port) {
    const double until = now() + PEERS_START;
    int met = 1, door = reach(host, port, true);
    if (door < 0)
        return fail(EXIT_PEER,
                    "rank 0 cannot listen on %s:%d: %s; set MASTER_ADDR to this machine and MASTER_PORT to a free port",
                    host, port, strerror(errno));
    while (met < p->size && now() < until) {
        struct pollfd f = {.fd = door, .events = POLLIN};
        if (poll(&f, 1, 200) < 1) continue;
        int fd = accept(door, NULL, NULL), rank = fd < 0 ? -1 : greet(p, fd);
        if (rank < 0) {
            if (fd >= 0) close(fd);
            continue;
        }
        tune(fd);
        p->peer[rank] = (peer){fd, now()};
        met++;
    }
    close(door);
    for (int i = 1; i < p->size; i++)
        if (p->peer[i].fd < 0)
            return fail(EXIT_PEER, "rank %d of %d did not come to %s:%d within %d seconds: start all ranks together", i,
                        p->size, host, port, PEERS_START);
    return 0;
}

static int come(peers *p, const char *host, int port) {
    const double until = now() + PEERS_START;
    const greeting g = {p->rank, p->size};
    while (now() < until) {
        int fd = reach(host, port, false);
        if (fd >= 0 && say(fd, HELLO, &g, sizeof g)) {
            tune(fd);
            p->peer[0] = (peer){fd, now()};
            return 0;
        }
        if (fd >= 0) close(fd);
        wait_ms(100);
    }
    return fail(EXIT_PEER, "rank %d of %d finds no rank 0 at %s:%d (MASTER_ADDR, MASTER_PORT) within %d seconds",
                p->rank, p->size, host, port, PEERS_START);
}

peers *peers_open(int rank, int size, const char *host, int port) {
    CHECK(size > 1 && size <= PEERS_MAX && rank >= 0 && rank < size, "rank %d of %d", rank, size);
    peers *p = xcalloc(1, sizeof *p);
    p->rank = rank, p->size = size;
    for (int i = 0; i < size; i++) p->peer[i].fd = -1;
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->came, NULL);
    if (!(rank ? come(p, host, port) : gather(p, host, port)) && !pthread_create(&p->listener, NULL, listen_on, p))
        return p;
    for (int i = 0; i < size; i++)
        if (p->peer[i].fd >= 0) close(p->peer[i].fd);
    free(p);
    return NULL;
}

void peers_broadcast(peers *p, void *bytes, size_t n) {
    pthread_mutex_lock(&p->lock);
    if (p->rank == 0)
        say_to_all(p, DATA, bytes, n);
    else {
        while (!p->data) pthread_cond_wait(&p->came, &p->lock);
        CHECK(p->n == n, "%zu bytes from rank 0, expected %zu", p->n, n);
        memcpy(bytes, p->data, n);
        free(p->data), p->data = NULL;
        pthread_cond_broadcast(&p->came);
    }
    pthread_mutex_unlock(&p->lock);
}

void peers_close(peers *p) {
    if (!p) return;
    pthread_mutex_lock(&p->lock);
    p->closing = true, p->until = now() + PATIENCE;
    say_to_all(p, BYE, NULL, 0);
    pthread_mutex_unlock(&p->lock);
    pthread_join(p->listener, NULL);
    for (int i = 0; i < p->size; i++)
        if (p->peer[i].fd >= 0) close(p->peer[i].fd);
    free(p->data);
    free(p);
}
