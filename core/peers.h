/* The ranks of a run that several processes share: how they find each other, small messages, and the news that one
 * died.
 *
 * Every rank keeps a TCP connection to rank 0, a star, and a thread that listens to it. A rank that ends without
 * peers_close, or is silent for PEERS_SILENCE seconds, is dead: rank 0 tells the others, and every process prints one
 * line that names the rank and leaves with EXIT_PEER. Gradients do not travel here (kernels/comm.h). */
#ifndef PEFT_CORE_PEERS_H
#define PEFT_CORE_PEERS_H

#include <stddef.h>

enum {
    PEERS_MAX = 256,
    PEERS_SILENCE = 20,
    PEERS_START = 60
}; /* seconds until a silent rank is dead; until all have met */

typedef struct peers peers;

/* host and port: where rank 0 is; it listens there. NULL after fail(EXIT_PEER), which names who did not come. */
peers *peers_open(int rank, int size, const char *host, int port);
void peers_broadcast(peers *p, void *bytes, size_t n); /* rank 0's to all; every rank calls it, in the same order */
void peers_close(peers *p);                            /* NULL: nothing. After it a rank's end is not a death */

#endif
