#include "core/stop.h"

#include <signal.h>
#include <string.h>

static volatile sig_atomic_t came;

static void note(int sig) { came = sig; }

static void set(int sig, void (*to)(int), int flags) {
    struct sigaction a;
    memset(&a, 0, sizeof a);
    a.sa_handler = to, a.sa_flags = flags;
    sigaction(sig, &a, NULL);
}

void stop_listen(void) {
    came = 0;
    set(SIGTERM, note, (int)SA_RESETHAND | SA_RESTART), set(SIGINT, note, (int)SA_RESETHAND | SA_RESTART);
    set(SIGHUP, SIG_IGN, 0), set(SIGPIPE, SIG_IGN, 0);
}

void stop_unlisten(void) { set(SIGTERM, SIG_DFL, 0), set(SIGINT, SIG_DFL, 0); }

int stop_signal(void) { return came; }
