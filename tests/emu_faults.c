/* That the emulation of CUDA finds what it is there to find: each case is a process that must end with the message.
 *
 *   emu_faults FAULTS.so        ends with "N passed, N failed" */
#include <dlfcn.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static const char *const messages[] = {
    NULL, /* nothing is wrong with this one */
    "a thread returned before the block's last barrier",
    "threads wait at different barriers",
    "deadlock: 32 at __shfl_xor_sync",
    "meets lane 0 in __shfl_xor_sync",
    "which the mask 0000ffff leaves out",
    "__trap()",
    "is not memory of the device",
    "block out of range",
    "beyond the end of its allocation",
    NULL,
};

/* what the case printed; its exit status */
static int run(int (*fault)(int), int n, char *text, size_t size) {
    int ends[2], status;
    size_t got = 0;
    if (pipe(ends)) return -1;
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0) {
        dup2(ends[1], 2);
        _exit(fault(n));
    }
    close(ends[1]);
    for (ssize_t k; got < size - 1 && (k = read(ends[0], text + got, size - 1 - got)) > 0;) got += (size_t)k;
    text[got] = 0;
    close(ends[0]);
    waitpid(pid, &status, 0);
    return status;
}

int main(int argc, char **argv) {
    void *so = argc == 2 ? dlopen(argv[1], RTLD_NOW | RTLD_LOCAL) : NULL;
    int (*fault)(int), passed = 0, failed = 0;
    if (!so) return printf("usage: emu_faults FAULTS.so: %s\n", argc == 2 ? dlerror() : ""), 2;
    *(void **)&fault = dlsym(so, "emu_fault_run");
    for (int i = 0; i < (int)(sizeof messages / sizeof *messages); i++) {
        char text[4096];
        int status = run(fault, i, text, sizeof text);
        bool ok = messages[i] ? status != 0 && strstr(text, messages[i]) != NULL : status == 0;
        passed += ok, failed += !ok;
        if (!ok)
            printf("  FAIL  case %d: status %x, expected '%s', found: %s\n", i, status, messages[i] ? messages[i] : "",
                   text);
    }
    printf("%d passed, %d failed\n", passed, failed);
    return failed != 0;
}
