/* How OpenMP's threads wait for each other. */
#ifndef PEFT_CORE_THREADS_H
#define PEFT_CORE_THREADS_H

/* Call first in main. libgomp spins up to 300,000 pauses at a barrier (many milliseconds) before it sleeps: on a
 * machine that also does something else, the spinning thread keeps the one it waits for off its core (measured on two
 * busy cores: 4 to 10 times slower), while sleeping at once costs 0.1 ms a region on an idle one. The bound in between
 * can only be given by the environment before the library starts, so the program sets GOMP_SPINCOUNT and executes
 * itself once more; nothing happens when the user has set it, or OMP_WAIT_POLICY. */
void threads_settle(char **argv);

#endif
