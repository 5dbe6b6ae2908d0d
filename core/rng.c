#include "core/rng.h"

#include <math.h>
#include <string.h>

rng_block rng_philox(uint64_t key, uint64_t hi, uint64_t lo) {
    uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
    uint32_t c[4] = {(uint32_t)lo, (uint32_t)(lo >> 32), (uint32_t)hi, (uint32_t)(hi >> 32)};
    for (int round = 0; round < 10; round++) {
        uint64_t a = (uint64_t)c[0] * 0xD2511F53u, b = (uint64_t)c[2] * 0xCD9E8D57u;
        uint32_t n0 = (uint32_t)(b >> 32) ^ c[1] ^ k0, n2 = (uint32_t)(a >> 32) ^ c[3] ^ k1;
        c[0] = n0, c[1] = (uint32_t)b, c[2] = n2, c[3] = (uint32_t)a;
        k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
    }
    return (rng_block){{c[0], c[1], c[2], c[3]}};
}

uint32_t rng_u32(uint64_t seed, uint64_t stream, uint64_t n) { return rng_philox(seed, stream, n >> 2).v[n & 3]; }

float rng_uniform(uint64_t seed, uint64_t stream, uint64_t n) {
    return (float)(rng_u32(seed, stream, n) >> 8) * 0x1p-24f;
}

float rng_normal(uint64_t seed, uint64_t stream, uint64_t n) {
    rng_block r = rng_philox(seed, stream, n);
    double u = ((double)r.v[0] + 1) * 0x1p-32, v = (double)r.v[1] * 0x1p-32;
    return (float)(sqrt(-2 * log(u)) * cos(6.283185307179586 * v));
}

uint64_t rng_below(uint64_t seed, uint64_t stream, uint64_t n, uint64_t bound) {
    rng_block r = rng_philox(seed, stream, n);
    unsigned __int128 wide =
        (unsigned __int128)((uint64_t)r.v[1] << 32 | r.v[0]) * bound; /* Lemire; bias below 2^-32 */
    return (uint64_t)(wide >> 64);
}

uint64_t hash_bytes(uint64_t h, const void *data, uint64_t n) {
    const unsigned char *p = data;
    for (uint64_t i = 0; i < n; i++) h = (h ^ p[i]) * 0x100000001b3ull;
    h ^= n;
    h = (h ^ h >> 33) * 0xff51afd7ed558ccdull; /* MurmurHash3's finaliser */
    h = (h ^ h >> 33) * 0xc4ceb9fe1a85ec53ull;
    return h ^ h >> 33;
}
