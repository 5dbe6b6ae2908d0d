/* Runs blocks. A worker (an OS thread) runs one block at a time; the block's threads are fibers. Warps run one after
 * another, each until all its lanes wait for a barrier or are done, in the order that EMU_ORDER says; when no lane can
 * run, either all have reached the barrier or the block is stuck, which is reported with every place where a thread
 * waits. */
#include "kernels/emu/emu_fiber.h"
#include "kernels/emu/emu_parts.h"

#include <algorithm>
#include <link.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
#include <vector>

enum lane_state { READY, AT_WARP, AT_BARRIER, DONE };
enum { LANES = 32, THREADS = 1024, SHARED_MAX = 99 << 10, WORKERS = 64 }; /* shared: of sm_86, 89 and 120 */

namespace {

struct lane : emu_thread {
    emu_fiber fiber;
    int number; /* in the block */
    lane_state state;
    const char *kind, *file; /* of what it waits for */
    int line, value;
    unsigned mask, syncs;
    void *mine;
    std::vector<emu_copy> copies; /* asynchronous ones, from `copied` on still to do */
    std::vector<size_t> groups;   /* where each committed group of them ends */
    size_t copied;
};

struct job {
    const emu_launch *l;
    const std::function<void()> *body;
    std::vector<size_t> blocks; /* in the order of running */
};

struct worker {
    emu_fiber fiber; /* the OS thread itself */
    std::vector<lane *> lanes;
    size_t threads; /* of the running block */
    unsigned arrived[THREADS / LANES];
    const job *work;
    dim3 block;
    void *shared;
    size_t shared_bytes;
    char *statics; /* this OS thread's copies of static shared arrays, and of the two variables below */
    size_t statics_bytes;
    unsigned barriers;
    uint64_t random;
    /* objects that order memory for ThreadSanitizer: alternating, so that who runs ahead to the next barrier releases
     * another */
    char at_begin, at_end, at_barrier[2], at_sync[THREADS / LANES][2];
};

__thread worker *self;

struct pool {
    pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    pthread_cond_t start = PTHREAD_COND_INITIALIZER, done = PTHREAD_COND_INITIALIZER;
    size_t size = 0, running = 0;
    uint64_t generation = 0;
    const job *work = nullptr;
} team;

enum order_kind { FORWARD, REVERSE, RANDOM };

} // namespace

__thread emu_thread *emu_now;

const char *emu_option(const char *name, const char *fallback) {
    const char *v = getenv(name);
    return v && *v ? v : fallback;
}

static order_kind order(void) {
    static const order_kind o = [] {
        const char *v = emu_option("EMU_ORDER", "forward");
        return !strcmp(v, "reverse") ? REVERSE : !strcmp(v, "random") ? RANDOM : FORWARD;
    }();
    return o;
}

/* the i-th of n things to run, in this worker's order; random orders are drawn anew by shuffle() */
static uint64_t next_random(uint64_t *s) { /* xorshift64*, Vigna 2016 */
    *s ^= *s >> 12, *s ^= *s << 25, *s ^= *s >> 27;
    return *s * 0x2545F4914F6CDD1Dull;
}

template <class T> static void arrange(std::vector<T> &v, size_t n, uint64_t *seed) {
    v.resize(n);
    for (size_t i = 0; i < n; i++) v[i] = (T)(order() == REVERSE ? n - 1 - i : i);
    if (order() == RANDOM)
        for (size_t i = n; i > 1; i--) std::swap(v[i - 1], v[next_random(seed) % i]);
}

/* ---- reports ---- */

static void say_where(const worker *w, const lane *l) {
    const emu_launch *k = w->work->l;
    fprintf(stderr, "emu: kernel %s (launched at %s:%d), block (%u, %u, %u)", k->kernel, k->file, k->line, w->block.x,
            w->block.y, w->block.z);
    if (l) fprintf(stderr, ", thread (%u, %u, %u)", l->thread.x, l->thread.y, l->thread.z);
    fputs(": ", stderr);
}

void emu_fault(const char *file, int line, const char *fmt, ...) {
    va_list a;
    va_start(a, fmt);
    say_where(self, static_cast<lane *>(emu_now));
    vfprintf(stderr, fmt, a);
    fprintf(stderr, " at %s:%d\n", file, line);
    va_end(a);
    abort();
}

[[noreturn]] static void stuck(worker *w, const char *what) {
    say_where(w, nullptr);
    fprintf(stderr, "%s:", what);
    std::vector<bool> told(w->threads);
    for (size_t i = 0; i < w->threads; i++) {
        const lane *l = w->lanes[i];
        if (told[i]) continue;
        size_t n = 0;
        for (size_t j = i; j < w->threads; j++) {
            const lane *m = w->lanes[j];
            bool same = m->state == l->state && (l->state == DONE || (m->line == l->line && !strcmp(m->file, l->file)));
            if (same) told[j] = true, n++;
        }
        if (l->state == DONE)
            fprintf(stderr, " %zu returned (first: thread %zu);", n, i);
        else
            fprintf(stderr, " %zu at %s at %s:%d (first: thread %zu);", n, l->kind, l->file, l->line, i);
    }
    fputs("\n", stderr);
    abort();
}

/* ---- what a thread calls ---- */

static void wait_here(lane *l, lane_state s) {
    l->state = s;
    emu_fiber_switch(&l->fiber, &self->fiber);
}

int emu_barrier(int value, const char *file, int line) {
    worker *w = self;
    lane *l = static_cast<lane *>(emu_now);
    l->kind = "__syncthreads()", l->file = file, l->line = line, l->value = value != 0;
    void *o = &w->at_barrier[w->barriers % 2];
    emu_order_release(o);
    wait_here(l, AT_BARRIER);
    emu_order_acquire(o);
    return l->value;
}

void emu_warp(const char *kind, emu_warp_fn *all, void *mine, unsigned mask, const char *file, int line) {
    worker *w = self;
    lane *l = static_cast<lane *>(emu_now);
    size_t first = (size_t)l->number / LANES * LANES, left = w->threads - first;
    unsigned exist = left >= LANES ? ~0u : (1u << left) - 1, me = 1u << l->number % LANES;
    unsigned *arrived = &w->arrived[first / LANES];
    if (!(mask & me))
        emu_fault(file, line, "%s with mask %08x, which leaves out the calling lane %d", kind, mask, l->number % LANES);
    if (mask & ~exist) emu_fault(file, line, "%s with mask %08x of a warp of %zu lanes", kind, mask, left);
    for (int i = 0; i < LANES; i++) {
        const lane *o = mask & *arrived & 1u << i ? w->lanes[first + (size_t)i] : nullptr;
        if (o && (o->mask != mask || strcmp(o->kind, kind) || o->line != line || strcmp(o->file, file)))
            emu_fault(file, line, "%s, mask %08x, meets lane %d in %s, mask %08x, of %s:%d", kind, mask, i, o->kind,
                      o->mask, o->file, o->line);
    }
    l->kind = kind, l->file = file, l->line = line, l->mask = mask, l->mine = mine;
    *arrived |= me;
    if ((*arrived & mask) != mask) {
        wait_here(l, AT_WARP);
        return;
    }
    void *lanes[LANES];
    for (int i = 0; i < LANES; i++) {
        lane *o = mask & 1u << i ? w->lanes[first + (size_t)i] : nullptr;
        lanes[i] = o ? o->mine : nullptr;
        if (o) o->state = READY;
    }
    if (all) all(lanes, mask);
    *arrived &= ~mask;
}

void emu_warp_sync(unsigned mask, const char *file, int line) {
    lane *l = static_cast<lane *>(emu_now);
    void *o = &self->at_sync[l->number / LANES][l->syncs++ % 2];
    emu_order_release(o);
    emu_warp("__syncwarp()", nullptr, nullptr, mask, file, line);
    emu_order_acquire(o);
}

void *emu_dynamic_shared(void) { return self->shared; }

void emu_copy_begin(emu_copy c, const char *, int) { static_cast<lane *>(emu_now)->copies.push_back(c); }

void emu_copy_commit(void) {
    lane *l = static_cast<lane *>(emu_now);
    l->groups.push_back(l->copies.size());
}

int emu_copy_take(int groups, emu_copy *c) {
    lane *l = static_cast<lane *>(emu_now);
    if (l->groups.size() <= (size_t)groups || l->copied >= l->groups[l->groups.size() - 1 - (size_t)groups]) return 0;
    *c = l->copies[l->copied++];
    return 1;
}

/* ---- blocks ---- */

static void thread_main(void) {
    for (;;) {
        worker *w = self;
        lane *l = static_cast<lane *>(emu_now);
        emu_order_acquire(&w->at_begin);
        (*w->work->body)();
        emu_order_release(&w->at_end);
        wait_here(l, DONE);
    }
}

/* Static shared arrays are thread-local variables of this shared object, and of its others only `self` and `emu_now`
 * matter. */
static int find_statics(struct dl_phdr_info *m, size_t, void *arg) {
    worker *w = (worker *)arg;
    bool mine = false;
    size_t bytes = 0;
    for (int i = 0; i < m->dlpi_phnum; i++) {
        const ElfW(Phdr) *p = &m->dlpi_phdr[i];
        ElfW(Addr) at = m->dlpi_addr + p->p_vaddr, here = (ElfW(Addr)) & thread_main;
        mine |= p->p_type == PT_LOAD && here >= at && here < at + p->p_memsz;
        if (p->p_type == PT_TLS) bytes = p->p_memsz;
    }
    if (mine) w->statics = (char *)m->dlpi_tls_data, w->statics_bytes = bytes;
    return mine;
}

static worker *worker_here(void) {
    if (self) return self;
    self = new worker();
    emu_now = nullptr;
    emu_fiber_adopt(&self->fiber);
    dl_iterate_phdr(find_statics, self);
    return self;
}

static void poison(worker *w, size_t shared) {
    if (w->shared_bytes != shared) {
        free(w->shared), w->shared = nullptr;
        if (shared && posix_memalign(&w->shared, 128, shared)) abort();
        w->shared_bytes = shared;
    }
    if (shared) memset(w->shared, 0xff, shared);
    memset(w->statics, 0xff, w->statics_bytes);
    self = w, emu_now = nullptr;
}

static void set_up(worker *w, size_t number) {
    const emu_launch *l = w->work->l;
    w->threads = (size_t)l->block.x * l->block.y * l->block.z;
    w->block = dim3((unsigned)(number % l->grid.x), (unsigned)(number / l->grid.x % l->grid.y),
                    (unsigned)(number / l->grid.x / l->grid.y));
    w->random = (number + 1) * 0x9E3779B97F4A7C15ull ^ strtoull(emu_option("EMU_SEED", "1"), nullptr, 0);
    memset(w->arrived, 0, sizeof w->arrived);
    while (w->lanes.size() < w->threads) {
        lane *n = new lane();
        n->number = (int)w->lanes.size();
        emu_fiber_make(&n->fiber, thread_main, n->number);
        w->lanes.push_back(n);
    }
    for (size_t i = 0; i < w->threads; i++) {
        lane *n = w->lanes[i];
        n->thread = make_uint3((unsigned)i % l->block.x, (unsigned)i / l->block.x % l->block.y,
                               (unsigned)i / l->block.x / l->block.y);
        n->block = make_uint3(w->block.x, w->block.y, w->block.z);
        n->block_dim = l->block, n->grid_dim = l->grid;
        n->state = READY, n->syncs = 0, n->copied = 0;
        n->copies.clear(), n->groups.clear();
    }
}

/* runs the lanes of a warp as long as one can */
static bool run_warp(worker *w, size_t first, const std::vector<int> &turn) {
    bool any = false, again;
    do {
        again = false;
        for (int i : turn) {
            size_t n = first + (size_t)i;
            if (n >= w->threads || w->lanes[n]->state != READY) continue;
            emu_now = w->lanes[n];
            emu_fiber_switch(&w->fiber, &w->lanes[n]->fiber);
            any = again = true;
        }
    } while (again);
    return any;
}

static void open_barrier(worker *w) {
    int sum = 0;
    for (size_t i = 0; i < w->threads; i++) {
        const lane *l = w->lanes[i], *first = w->lanes[0];
        if (l->state == DONE) stuck(w, "a thread returned before the block's last barrier");
        if (l->state != AT_BARRIER) stuck(w, "deadlock");
        if (l->line != first->line || strcmp(l->file, first->file)) stuck(w, "threads wait at different barriers");
        sum += l->value;
    }
    for (size_t i = 0; i < w->threads; i++) w->lanes[i]->state = READY, w->lanes[i]->value = sum;
    w->barriers++;
}

static void run_block(worker *w, size_t number) {
    set_up(w, number);
    poison(w, w->work->l->shared);
    emu_order_release(&w->at_begin);
    std::vector<size_t> warps;
    std::vector<int> turn;
    for (;;) {
        arrange(warps, (w->threads + LANES - 1) / LANES, &w->random);
        arrange(turn, LANES, &w->random);
        for (size_t i : warps) run_warp(w, i * LANES, turn);
        if (std::all_of(w->lanes.begin(), w->lanes.begin() + (long)w->threads,
                        [](lane *l) { return l->state == DONE; }))
            break;
        open_barrier(w);
    }
    emu_now = nullptr;
    emu_order_acquire(&w->at_end);
}

/* ---- grids ---- */

static void run_share(const job *j, size_t share, size_t of) {
    worker *w = worker_here();
    w->work = j;
    for (size_t i = share; i < j->blocks.size(); i += of) run_block(w, j->blocks[i]);
}

static void *worker_main(void *arg) {
    size_t share = (size_t)arg;
    uint64_t seen = 0;
    pthread_mutex_lock(&team.lock);
    for (;;) {
        while (team.generation == seen) pthread_cond_wait(&team.start, &team.lock);
        seen = team.generation;
        const job *j = team.work;
        pthread_mutex_unlock(&team.lock);
        run_share(j, share, team.size);
        pthread_mutex_lock(&team.lock);
        if (--team.running == 0) pthread_cond_signal(&team.done);
    }
    return nullptr;
}

static void start_team(void) {
    long n = atol(emu_option("EMU_WORKERS", "0"));
    if (n <= 0) n = std::min(sysconf(_SC_NPROCESSORS_ONLN), 8l);
    team.size = (size_t)std::min(n, (long)WORKERS);
    for (size_t i = 1; i < team.size; i++) {
        pthread_t t;
        if (pthread_create(&t, nullptr, worker_main, (void *)i)) abort();
        pthread_detach(t);
    }
}

void emu_run(const emu_launch *l, const std::function<void()> &body) {
    static uint64_t launches;
    job j = {l, &body, {}};
    uint64_t seed = ++launches * 0x9E3779B97F4A7C15ull ^ strtoull(emu_option("EMU_SEED", "1"), nullptr, 0);
    arrange(j.blocks, (size_t)l->grid.x * l->grid.y * l->grid.z, &seed);
    if (!team.size) start_team();
    if (team.size == 1 || j.blocks.size() == 1) {
        run_share(&j, 0, 1);
        return;
    }
    pthread_mutex_lock(&team.lock);
    team.work = &j, team.running = team.size - 1, team.generation++;
    pthread_cond_broadcast(&team.start);
    pthread_mutex_unlock(&team.lock);
    run_share(&j, 0, team.size);
    pthread_mutex_lock(&team.lock);
    while (team.running) pthread_cond_wait(&team.done, &team.lock);
    pthread_mutex_unlock(&team.lock);
}

static const char *shape_error(const emu_launch *l) {
    const dim3 &g = l->grid, &b = l->block;
    if (!g.x || !g.y || !g.z || g.y > 65535 || g.z > 65535 || g.x > 0x7fffffff) return "grid";
    if (!b.x || !b.y || !b.z || b.z > 64 || (size_t)b.x * b.y * b.z > THREADS) return "block";
    return l->shared > SHARED_MAX ? "shared memory" : nullptr;
}

void emu_enqueue(const emu_launch *l, std::function<void()> body) {
    if (const char *wrong = shape_error(l)) {
        fprintf(
            stderr,
            "emu: kernel %s (launched at %s:%d): %s out of range: grid (%u, %u, %u), block (%u, %u, %u), %zu bytes\n",
            l->kernel, l->file, l->line, wrong, l->grid.x, l->grid.y, l->grid.z, l->block.x, l->block.y, l->block.z,
            l->shared);
        emu_error(cudaErrorInvalidConfiguration);
        return;
    }
    emu_launch copy = *l;
    emu_submit(l->stream, [copy, body] { emu_run(&copy, body); });
}

void emu_check_pointer(const emu_launch *l, int argument, const void *p) {
    if (!p || emu_find(p)) return;
    fprintf(stderr, "emu: kernel %s (launched at %s:%d): argument %d, %p, is not memory of the device\n", l->kernel,
            l->file, l->line, argument, p);
    abort();
}
