/* Fibers: stacks that a thread switches between by itself. One of them runs at a time on an OS thread; none ever ends.
 */
#ifndef PEFT_KERNELS_EMU_EMU_FIBER_H
#define PEFT_KERNELS_EMU_EMU_FIBER_H

#include <stddef.h>

typedef struct emu_fiber {
    void *sp;    /* where the saved registers lie, while it does not run */
    char *stack; /* lowest address */
    size_t size;
    void *tsan, *asan_fake; /* what the sanitizers call this fiber */
} emu_fiber;

void emu_fiber_adopt(emu_fiber *f);                                  /* the calling OS thread's own stack */
void emu_fiber_make(emu_fiber *f, void (*entry)(void), int stagger); /* entry must not return */
void emu_fiber_switch(emu_fiber *from, emu_fiber *to);

/* Happens-before as ThreadSanitizer sees it: switching gives none, only these do. Nothing without it. */
void emu_order_release(void *object);
void emu_order_acquire(void *object);

#endif
