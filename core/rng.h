/* Counter-based random numbers: a value is a pure function of a key and a counter, so it does not depend on how many
 * were drawn before, on threads or on the order of work. Philox4x32-10 (Salmon et al., SC'11), as in cuRAND and JAX'
 * sibling generators; the known-answer test is tests/test_core.c. */
#ifndef PEFT_CORE_RNG_H
#define PEFT_CORE_RNG_H

#include <stdint.h>

typedef struct {
    uint32_t v[4];
} rng_block;

rng_block rng_philox(uint64_t key, uint64_t counter_hi, uint64_t counter_lo);

/* The n-th value of stream `stream` under `seed`. */
uint32_t rng_u32(uint64_t seed, uint64_t stream, uint64_t n);
float rng_uniform(uint64_t seed, uint64_t stream, uint64_t n);                  /* [0, 1), 24 bits */
float rng_normal(uint64_t seed, uint64_t stream, uint64_t n);                   /* Box-Muller in double */
uint64_t rng_below(uint64_t seed, uint64_t stream, uint64_t n, uint64_t bound); /* [0, bound), bound > 0 */

/* Streams, so that no two uses share numbers. */
enum { STREAM_INIT = 1, STREAM_DROPOUT, STREAM_SHUFFLE, STREAM_SPLIT, STREAM_SAMPLE, STREAM_TEST };

/* 64-bit hash of bytes (FNV-1a folded through a final avalanche): content keys, never security. */
uint64_t hash_bytes(uint64_t h, const void *data, uint64_t n);
#define HASH_SEED 0xcbf29ce484222325ull

#endif
