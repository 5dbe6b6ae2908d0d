/* Four lanes take 8 bytes each of a 32-byte stripe; they are folded into one word, the rest of the bytes follow, and
 * the last lines mix every bit into every other. Constants and order are the specification's. */
#include "core/xxh64.h"

#include <string.h>

static const uint64_t P1 = 0x9E3779B185EBCA87u, P2 = 0xC2B2AE3D27D4EB4Fu, P3 = 0x165667B19E3779F9u,
                      P4 = 0x85EBCA77C2B2AE63u, P5 = 0x27D4EB2F165667C5u;

static inline uint64_t rotl(uint64_t x, int r) { return x << r | x >> (64 - r); }

/* Little-endian, as every machine that this program is built for. */
static inline uint64_t read64(const uint8_t *p) {
    uint64_t v;
    memcpy(&v, p, 8);
    return v;
}

static inline uint32_t read32(const uint8_t *p) {
    uint32_t v;
    memcpy(&v, p, 4);
    return v;
}

static inline uint64_t lane_round(uint64_t lane, uint64_t word) { return rotl(lane + word * P2, 31) * P1; }

static inline uint64_t merge(uint64_t h, uint64_t lane) { return (h ^ lane_round(0, lane)) * P1 + P4; }

static uint64_t finish(uint64_t h, const uint8_t *p, size_t n) {
    for (; n >= 8; p += 8, n -= 8) h = rotl(h ^ lane_round(0, read64(p)), 27) * P1 + P4;
    if (n >= 4) h = rotl(h ^ read32(p) * P1, 23) * P2 + P3, p += 4, n -= 4;
    for (; n; p++, n--) h = rotl(h ^ *p * P5, 11) * P1;
    h = (h ^ h >> 33) * P2;
    h = (h ^ h >> 29) * P3;
    return h ^ h >> 32;
}

uint64_t xxh64(const void *data, size_t n, uint64_t seed) {
    const uint8_t *p = data;
    size_t left = n;
    if (n < 32) return finish(seed + P5 + n, p, n);
    uint64_t a = seed + P1 + P2, b = seed + P2, c = seed, d = seed - P1;
    for (; left >= 32; p += 32, left -= 32) {
        a = lane_round(a, read64(p)), b = lane_round(b, read64(p + 8));
        c = lane_round(c, read64(p + 16)), d = lane_round(d, read64(p + 24));
    }
    const uint64_t h = rotl(a, 1) + rotl(b, 7) + rotl(c, 12) + rotl(d, 18);
    return finish(merge(merge(merge(merge(h, a), b), c), d) + n, p, left);
}
