/* XXH64: a fast 64-bit hash of bytes for content keys and checksums, never for security. Y. Collet, xxHash fast digest
 * algorithm, specification 0.1.1 (github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md). About 4 bytes a cycle. */
#ifndef PEFT_CORE_XXH64_H
#define PEFT_CORE_XXH64_H

#include <stddef.h>
#include <stdint.h>

uint64_t xxh64(const void *data, size_t n, uint64_t seed);

#endif
