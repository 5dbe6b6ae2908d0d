/* Ranks that meet, hear rank 0, part without alarm, and stop when one of them dies. Each rank is a process. */
#include "core/error.h"
#include "core/peers.h"
#include "kernels/comm.h"

#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

static int next_port(void) {
    static int n;
    return 21000 + (int)getpid() % 9000 + n++;
}

static void sleep_ms(long ms) { nanosleep(&(struct timespec){ms / 1000, ms % 1000 * 1000000}, NULL); }

typedef int rank_fn(peers *p, int rank);

static pid_t fork_rank(rank_fn *f, int rank, int size, int port) {
    fflush(NULL);
    pid_t pid = fork();
    if (pid) return pid;
    int null = open("/dev/null", O_WRONLY);
    dup2(null, 2);
    peers *p = peers_open(rank, size, "127.0.0.1", port);
    _exit(p ? f(p, rank) : fail_code());
}

static int code_of(pid_t pid) {
    int status;
    waitpid(pid, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

static int hears_rank_0(peers *p, int rank) {
    uint64_t secret = rank ? 0 : 42, more[100];
    memset(more, rank ? 0 : 7, sizeof more);
    peers_broadcast(p, &secret, sizeof secret);
    peers_broadcast(p, more, sizeof more);
    sleep_ms(rank * 150); /* they part one after another */
    peers_close(p);
    return secret == 42 && more[99] == 0x0707070707070707u ? 0 : 1;
}

static void ranks_meet_and_part(void **state) {
    (void)state;
    pid_t pid[4];
    int port = next_port();
    for (int r = 3; r >= 0; r--) pid[r] = fork_rank(hears_rank_0, r, 4, port);
    for (int r = 0; r < 4; r++) assert_int_equal(code_of(pid[r]), 0);
}

static int waits(peers *p, int rank) {
    (void)p, (void)rank;
    sleep_ms(60000);
    return 1;
}

static int ends_without_goodbye(peers *p, int rank) {
    if (rank == 1) sleep_ms(300), _exit(3);
    return waits(p, rank);
}

static void a_killed_rank_stops_the_others(void **state) {
    (void)state;
    for (int victim = 0; victim < 3; victim += 2) {
        pid_t pid[3];
        int port = next_port();
        for (int r = 0; r < 3; r++) pid[r] = fork_rank(waits, r, 3, port);
        sleep_ms(700);
        kill(pid[victim], SIGKILL);
        for (int r = 0; r < 3; r++) assert_int_equal(code_of(pid[r]), r == victim ? -SIGKILL : EXIT_PEER);
    }
}

static void a_rank_that_fails_stops_the_others(void **state) {
    (void)state;
    pid_t pid[3];
    int port = next_port();
    for (int r = 0; r < 3; r++) pid[r] = fork_rank(ends_without_goodbye, r, 3, port);
    for (int r = 0; r < 3; r++) assert_int_equal(code_of(pid[r]), r == 1 ? 3 : EXIT_PEER);
}

/* what launchers say */

static const char *const names[] = {"RANK",         "WORLD_SIZE",   "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE",
                                    "SLURM_PROCID", "SLURM_NTASKS", "SLURM_NNODES",         "MASTER_ADDR",
                                    "MASTER_PORT"};

static int begin_with(const char *text) {
    char copy[256];
    comm w;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) unsetenv(names[i]);
    snprintf(copy, sizeof copy, "%s", text);
    for (char *p = strtok(copy, " "); p; p = strtok(NULL, " ")) {
        char *eq = strchr(p, '=');
        *eq = 0;
        setenv(p, eq + 1, 1);
    }
    fail_clear();
    return comm_begin(&w) ? -1 : w.size;
}

static void launchers_are_understood(void **state) {
    (void)state;
    assert_int_equal(begin_with(""), 1);
    assert_int_equal(begin_with("RANK=0 WORLD_SIZE=1"), 1);
    assert_int_equal(begin_with("SLURM_PROCID=0 SLURM_NTASKS=1"), 1);
    const struct {
        const char *environment, *says;
    } bad[] = {{"RANK=2 WORLD_SIZE=2", "RANK=2"},
               {"RANK=x WORLD_SIZE=2", "RANK=x"},
               {"OMPI_COMM_WORLD_RANK=0 OMPI_COMM_WORLD_SIZE=0", "OMPI_COMM_WORLD_SIZE=0"},
               {"RANK=0 WORLD_SIZE=2 MASTER_PORT=70000", "MASTER_PORT=70000"},
               {"SLURM_PROCID=1 SLURM_NTASKS=4 SLURM_NNODES=2", "MASTER_ADDR"}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_int_equal(begin_with(bad[i].environment), -1);
        assert_int_equal(fail_code(), EXIT_USAGE);
        if (!strstr(fail_text(), bad[i].says)) fail_msg("%s: %s", bad[i].environment, fail_text());
    }
    begin_with("");
}

static void one_rank_sums_nothing(void **state) {
    (void)state;
    comm w;
    kctx c = {.be = backend_open("ref"), .threads = 1};
    float v[] = {1, 2};
    step_sums s = {.loss = 3, .targets = 4};
    assert_int_equal(comm_begin(&w), 0);
    assert_int_equal(comm_join(&w, &c), 0);
    comm_sum(&w, &c, v, 2, &s);
    assert_true(v[0] == 1 && v[1] == 2 && s.loss == 3 && s.targets == 4);
    comm_end(&w);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ranks_meet_and_part),
        cmocka_unit_test(a_killed_rank_stops_the_others),
        cmocka_unit_test(a_rank_that_fails_stops_the_others),
        cmocka_unit_test(launchers_are_understood),
        cmocka_unit_test(one_rank_sums_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
