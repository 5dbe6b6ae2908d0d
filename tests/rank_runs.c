/* ./train on several ranks against one rank of the same global batch, as processes.
 *
 *   rank_runs mpi | nccl      mpi: mpirun on the CPU; nccl: backend emu, ranks by RANK and WORLD_SIZE, NCCL's stand-in
 *
 * What differs between numbers of ranks is the order of sums over micro-batches: losses within 1e-5, the first gradient
 * within 1e-6 of its norm, adapters after 20 steps within 1e-2 of theirs. Two runs of the same ranks are the same to
 * the byte, and a killed rank stops the others within 30 s with a line that names it. Ends with "N passed, N failed".
 */
#include "core/error.h"
#include "core/file.h"
#include "core/json.h"
#include "core/safetensors.h"

#include <fcntl.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { STEPS = 20, RANKS_MAX = 4, PATH = 256 };

static char dir[64];
static bool mpi;
static int port, passed, failed;

static void check(bool ok, const char *name, const char *what) {
    if (ok)
        passed++;
    else
        failed++;
    if (!ok) printf("  FAIL  %s: %s\n", name, what);
}

static const char yaml[] = "base_model: tests/golden/tiny_llama\n"
                           "lora_model_dir: tests/golden/tiny_train/adapter_init\n"
                           "datasets:\n  - path: tests/golden/tiny_train/rows.jsonl\n    type: tokenized\n"
                           "sequence_len: 128\nmicro_batch_size: 1\nlearning_rate: 1e-3\nlr_scheduler: cosine\n"
                           "warmup_steps: 3\nmax_grad_norm: 0.5\nweight_decay: 0.01\nsave_steps: 100000\n";

/* ---- runs: every rank's pid goes to DIR/NAME.pid.RANK, what it prints to DIR/NAME.log ---- */

static pid_t start(const char *command, const char *log) {
    fflush(NULL);
    pid_t pid = fork();
    if (pid) return pid;
    int fd = open(log, O_CREAT | O_WRONLY | O_APPEND, 0600);
    dup2(fd, 1), dup2(fd, 2);
    execl("/bin/sh", "sh", "-c", command, (char *)NULL);
    _exit(127);
}

/* Starts `ranks` ranks with accumulation of 4 / ranks micro-batches each; the processes to wait for go to pid. */
static int start_ranks(const char *name, int ranks, const char *more, pid_t pid[RANKS_MAX]) {
    char train[1024], command[2048], log[PATH];
    snprintf(log, sizeof log, "%s/%s.log", dir, name);
    snprintf(
        train, sizeof train,
        "./train %s/run.yaml --output_dir=%s/%s --dump-gradients=%s/%s.gradient --gradient_accumulation_steps=%d %s "
        "--threads=1 %s",
        dir, dir, name, dir, name, 4 / ranks, mpi ? "" : "--backend=emu --activation_dtype=f32", more);
    unlink(log);
    if (mpi && ranks > 1) {
        snprintf(command, sizeof command, "exec mpirun -n %d sh -c 'echo $$ >%s/%s.pid.$OMPI_COMM_WORLD_RANK; exec %s'",
                 ranks, dir, name, train);
        pid[0] = start(command, log);
        return 1;
    }
    for (int r = 0; r < ranks; r++) {
        snprintf(command, sizeof command,
                 "export EMU_WORKERS=1; %s RANK=%d WORLD_SIZE=%d MASTER_PORT=%d; echo $$ >%s/%s.pid.%d; exec %s",
                 ranks > 1 ? "export" : ":", r, ranks, port, dir, name, r, train);
        pid[r] = start(command, log);
    }
    port++;
    return ranks;
}

static void show(const char *name) {
    char command[PATH];
    snprintf(command, sizeof command, "tail -n 20 %s/%s.log | sed 's/^/        /'", dir, name);
    fflush(stdout);
    if (system(command)) return;
}

static bool run(const char *name, int ranks, const char *more) {
    pid_t pid[RANKS_MAX];
    int n = start_ranks(name, ranks, more, pid), bad = 0;
    for (int i = 0; i < n; i++) {
        int status;
        waitpid(pid[i], &status, 0);
        bad |= status;
    }
    check(!bad, name, "a rank failed");
    if (bad) show(name);
    return !bad;
}

/* ---- comparisons with run "one" ---- */

static int losses(const char *name, double loss[STEPS]) {
    char path[PATH];
    file_map m;
    int n = 0;
    snprintf(path, sizeof path, "%s/%s/metrics.jsonl", dir, name);
    if (file_open(&m, path)) return 0;
    const char *at = (const char *)m.data, *end = at + m.size;
    for (const char *nl; n < STEPS && at < end && (nl = memchr(at, '\n', (size_t)(end - at))); at = nl + 1) {
        json_t *row = json_parse(path, at, (size_t)(nl - at), 0);
        loss[n++] = json_number_value(json_object_get(row, "loss"));
        json_decref(row);
    }
    file_close(&m);
    return n;
}

static void same_losses(const char *name) {
    double a[STEPS], b[STEPS], worst = 0;
    bool all = losses("one", a) == STEPS && losses(name, b) == STEPS;
    for (int i = 0; all && i < STEPS; i++) worst = fmax(worst, fabs(a[i] - b[i]) / fabs(a[i]));
    check(all && worst <= 1e-5, name, "losses");
    printf("  %s: losses within %.1e", name, worst);
}

/* |a - b| / |b| over all tensors of two files; NAN where they cannot be compared */
static double distance(const char *a_path, const char *b_path) {
    safetensors a, b;
    double difference = 0, norm = 0;
    if (safetensors_open(&a, a_path) || safetensors_open(&b, b_path)) return NAN;
    for (int i = 0; i < b.n; i++) {
        const st_tensor *t = safetensors_find(&a, b.tensors[i].name);
        if (!t || t->bytes != b.tensors[i].bytes) return NAN;
        for (uint64_t j = 0; j < t->bytes; j += 4) {
            float x, y;
            memcpy(&x, t->data + j, 4), memcpy(&y, b.tensors[i].data + j, 4);
            difference += ((double)x - (double)y) * ((double)x - (double)y), norm += (double)y * (double)y;
        }
    }
    safetensors_close(&a), safetensors_close(&b);
    return sqrt(difference / norm);
}

static void same_tensors(const char *name, const char *file, double error, const char *what) {
    char a[PATH], b[PATH];
    snprintf(a, sizeof a, "%s/%s%s", dir, name, file);
    snprintf(b, sizeof b, "%s/one%s", dir, file);
    double d = distance(a, b);
    check(d <= error, name, what);
    printf(", %s within %.1e", what, d);
}

static void same_bytes(const char *a, const char *b) {
    char command[3 * PATH];
    snprintf(command, sizeof command, "cmp -s %s/%s/adapter_model.safetensors %s/%s/adapter_model.safetensors", dir, a,
             dir, b);
    check(system(command) == 0, b, "another adapter than the same run before");
}

static void equals_one(int ranks) {
    char name[16], again[16];
    snprintf(name, sizeof name, "ranks%d", ranks), snprintf(again, sizeof again, "again%d", ranks);
    if (!run(name, ranks, "--max_steps=20")) return;
    same_losses(name);
    same_tensors(name, ".gradient", 1e-6, "first gradient");
    same_tensors(name, "/adapter_model.safetensors", 1e-2, "adapter");
    printf("\n");
    if (run(again, ranks, "--max_steps=20")) same_bytes(name, again);
}

/* ---- a killed rank ---- */

static bool has(const char *name, const char *suffix, const char *text) {
    char path[PATH];
    file_map m;
    snprintf(path, sizeof path, "%s/%s%s", dir, name, suffix);
    if (file_open(&m, path)) return fail_clear(), false;
    bool found = m.size && memmem(m.data, m.size, text, strlen(text));
    file_close(&m);
    return found;
}

static void sleep_ms(long ms) { nanosleep(&(struct timespec){ms / 1000, ms % 1000 * 1000000}, NULL); }

static pid_t pid_of(const char *name, int rank) {
    char path[PATH];
    int pid = 0;
    snprintf(path, sizeof path, "%s/%s.pid.%d", dir, name, rank);
    FILE *f = fopen(path, "r");
    if (!f) return 0;
    if (fscanf(f, "%d", &pid) != 1) pid = 0;
    fclose(f);
    return pid;
}

static void killed(int ranks, int victim) {
    char name[16], text[32];
    pid_t pid[RANKS_MAX];
    snprintf(name, sizeof name, "killed%d", victim);
    snprintf(text, sizeof text, "rank %d", victim);
    int n = start_ranks(name, ranks, "--max_steps=1000000", pid), left = n, wait;
    for (wait = 0; wait < 600 && !has(name, "/metrics.jsonl", "\"step\": 3,"); wait++) sleep_ms(100);
    check(wait < 600 && kill(pid_of(name, victim), SIGKILL) == 0, name, "does not get to step 3");
    for (wait = 0; left && wait < 300; wait++, sleep_ms(100)) {
        left = 0;
        for (int i = 0; i < n; i++) {
            if (pid[i] && waitpid(pid[i], NULL, WNOHANG) == pid[i]) pid[i] = 0;
            left += pid[i] != 0;
        }
    }
    check(!left, name, "ranks go on 30 s after one was killed");
    check(has(name, ".log", text), name, "no line names the rank");
    printf("  %s of %d: the others stopped after %.1f s\n", text, ranks, wait * 0.1);
    if (left || !has(name, ".log", text)) show(name);
    for (int i = 0; i < n; i++)
        if (pid[i]) kill(pid[i], SIGKILL), waitpid(pid[i], NULL, 0);
}

int main(int argc, char **argv) {
    char path[PATH], command[PATH];
    if (argc != 2 || (strcmp(argv[1], "mpi") != 0 && strcmp(argv[1], "nccl") != 0))
        return printf("usage: rank_runs mpi | nccl\n"), 2;
    mpi = !strcmp(argv[1], "mpi"), port = 30000 + (int)getpid() % 20000;
    setenv("OMPI_ALLOW_RUN_AS_ROOT", "1", 1), setenv("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1", 1);
    setenv("OMPI_MCA_rmaps_base_oversubscribe", "1", 1); /* more ranks than cores */
    snprintf(dir, sizeof dir, "/tmp/peft-ranks-XXXXXX");
    if (!mkdtemp(dir)) return perror("/tmp"), 1;
    snprintf(path, sizeof path, "%s/run.yaml", dir);
    if (file_save(path, yaml, sizeof yaml - 1)) return fail_report("rank_runs");
    if (run("one", 1, "--max_steps=20")) {
        equals_one(2);
        if (!mpi) equals_one(4);
    }
    killed(2, 1);
    killed(2, 0);
    snprintf(command, sizeof command, "rm -rf %s", dir);
    check(system(command) == 0, dir, "cannot be removed");
    printf("%d passed, %d failed\n", passed, failed);
    return failed != 0;
}
