/* The switch saves what the C calling convention lets a callee keep: System V AMD64 ABI 3.2.1, AAPCS64 6.1.1. ucontext
 * would do it too, at 600 ns instead of 10 (it asks the kernel for the signal mask); it serves where neither ABI is. */
#include "kernels/emu/emu_fiber.h"

#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

extern "C" {
void __tsan_acquire(void *) __attribute__((weak));
void __tsan_release(void *) __attribute__((weak));
void *__tsan_create_fiber(unsigned) __attribute__((weak));
void *__tsan_get_current_fiber(void) __attribute__((weak));
void __tsan_switch_to_fiber(void *, unsigned) __attribute__((weak));
void __sanitizer_start_switch_fiber(void **, const void *, size_t) __attribute__((weak));
void __sanitizer_finish_switch_fiber(void *, const void **, size_t *) __attribute__((weak));
void emu_switch_stack(void **save, void *load);
}

enum { STACK = 256 << 10, NO_SYNC = 1 };

#if defined(__x86_64__)
asm(".text\n.globl emu_switch_stack\n.hidden emu_switch_stack\n.type emu_switch_stack,@function\nemu_switch_stack:\n"
    "push %rbp\npush %rbx\npush %r12\npush %r13\npush %r14\npush %r15\n"
    "mov %rsp, (%rdi)\nmov %rsi, %rsp\n"
    "pop %r15\npop %r14\npop %r13\npop %r12\npop %rbx\npop %rbp\nret\n"
    ".size emu_switch_stack, .-emu_switch_stack\n");
static void *first_frame(char *top, void (*entry)(void)) {
    void **sp = (void **)top - 8; /* six registers, the return address, and a zero that ends backtraces */
    memset(sp, 0, 8 * sizeof *sp);
    sp[6] = (void *)entry;
    return sp;
}
#elif defined(__aarch64__)
asm(".text\n.globl emu_switch_stack\n.hidden emu_switch_stack\n.type emu_switch_stack,%function\nemu_switch_stack:\n"
    "sub sp, sp, #160\nstp x19, x20, [sp]\nstp x21, x22, [sp, #16]\nstp x23, x24, [sp, #32]\nstp x25, x26, [sp, #48]\n"
    "stp x27, x28, [sp, #64]\nstp x29, x30, [sp, #80]\nstp d8, d9, [sp, #96]\nstp d10, d11, [sp, #112]\n"
    "stp d12, d13, [sp, #128]\nstp d14, d15, [sp, #144]\n"
    "mov x9, sp\nstr x9, [x0]\nmov sp, x1\n"
    "ldp x19, x20, [sp]\nldp x21, x22, [sp, #16]\nldp x23, x24, [sp, #32]\nldp x25, x26, [sp, #48]\n"
    "ldp x27, x28, [sp, #64]\nldp x29, x30, [sp, #80]\nldp d8, d9, [sp, #96]\nldp d10, d11, [sp, #112]\n"
    "ldp d12, d13, [sp, #128]\nldp d14, d15, [sp, #144]\nadd sp, sp, #160\nret\n"
    ".size emu_switch_stack, .-emu_switch_stack\n");
static void *first_frame(char *top, void (*entry)(void)) {
    void **sp = (void **)top - 20;
    memset(sp, 0, 20 * sizeof *sp);
    sp[11] = (void *)entry; /* x30 */
    return sp;
}
#else
#include <ucontext.h>
void emu_switch_stack(void **save, void *load) {
    ucontext_t here;
    *save = &here;
    swapcontext(&here, (ucontext_t *)load);
}
static void *first_frame(char *top, void (*entry)(void)) {
    ucontext_t *u = (ucontext_t *)calloc(1, sizeof *u);
    getcontext(u);
    u->uc_stack.ss_sp = top - STACK / 2, u->uc_stack.ss_size = STACK / 2;
    makecontext(u, entry, 0);
    return u;
}
#endif

void emu_fiber_adopt(emu_fiber *f) {
    pthread_attr_t a;
    void *low;
    pthread_getattr_np(pthread_self(), &a);
    pthread_attr_getstack(&a, &low, &f->size);
    pthread_attr_destroy(&a);
    f->stack = (char *)low;
    if (__tsan_get_current_fiber) f->tsan = __tsan_get_current_fiber();
}

/* The first code on a fresh stack ends the switch that led here. */
static void (*fiber_entry)(void);
static void begin(void) {
    if (__sanitizer_finish_switch_fiber) __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
    fiber_entry();
    abort();
}

void emu_fiber_make(emu_fiber *f, void (*entry)(void), int stagger) {
    const size_t page = 65536; /* at least any machine's */
    char *m =
        (char *)mmap(nullptr, STACK + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (m == MAP_FAILED || mprotect(m, page, PROT_NONE)) {
        perror("emu: memory for the stack of a thread");
        abort();
    }
    fiber_entry = entry;
    f->stack = m + page, f->size = STACK;
    /* tops of equal page offset would share the lines of a set of the first-level cache */
    f->sp = first_frame(f->stack + STACK - 192 * (stagger % 32), begin);
    if (__tsan_create_fiber) f->tsan = __tsan_create_fiber(0);
}

void emu_fiber_switch(emu_fiber *from, emu_fiber *to) {
    if (__sanitizer_start_switch_fiber) __sanitizer_start_switch_fiber(&from->asan_fake, to->stack, to->size);
    if (__tsan_switch_to_fiber) __tsan_switch_to_fiber(to->tsan, NO_SYNC);
    emu_switch_stack(&from->sp, to->sp);
    if (__sanitizer_finish_switch_fiber) __sanitizer_finish_switch_fiber(from->asan_fake, nullptr, nullptr);
}

void emu_order_release(void *object) {
    if (__tsan_release) __tsan_release(object);
}
void emu_order_acquire(void *object) {
    if (__tsan_acquire) __tsan_acquire(object);
}
