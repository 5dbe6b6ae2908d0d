/* The GGUF reader, tensors: sizes, places and names that a file may not have, every prefix and many single-byte changes
 * of a valid one (G numbers: the catalogue of bad inputs in docs/RELIABILITY.md). */
#include "core/gguf.h"
#include "tests/hostile_gguf.h"

static int read_gguf(const char *path) {
    gguf g;
    const int bad = gguf_open(&g, path);
    if (!bad) gguf_close(&g);
    return bad;
}

static void g18_prefixes(void **state) {
    (void)state;
    bytes b = good();
    refuse_prefixes(b.data, b.n, read_gguf);
    drop(&b);
    gguf g;
    assert_int_equal(gguf_open(&g, "tests/golden/readers.gguf"), 0);
    const gguf_tensor *last = &g.tensors[g.n_tensors - 1]; /* what follows it is padding */
    refuse_prefixes(g.file.data, (size_t)(last->data - g.file.data) + last->bytes, read_gguf);
    gguf_close(&g);
}

static void g19_g20_names(void **state) {
    (void)state;
    char name[65];
    memset(name, 'n', 64), name[64] = 0;
    bytes b = begin(1, 0);
    put_tensor(&b, name, 1, (uint64_t[]){8}, 0, 0), put_data(&b, 64);
    REFUSED(b, "offset 0x18 (24): a tensor name: length 64 exceeds 63");
    b = begin(1, 0);
    put_tensor(&b, "", 1, (uint64_t[]){8}, 0, 0), put_data(&b, 64);
    REFUSED(b, "a tensor name is empty");
    b = one(1, (uint64_t[]){8}, 0, 0);
    patch(&b, 24, UINT64_MAX, 8);
    REFUSED(b, "a tensor name: length 18446744073709551615");
    b = begin(1, 0);
    put_tensor(&b, "a\tb", 1, (uint64_t[]){8}, 0, 0), put_data(&b, 64);
    REFUSED(b, "a tensor name 'a\\x09b' is not UTF-8 or has control characters");
    b = begin(3, 0);
    put_tensor(&b, "w", 1, (uint64_t[]){8}, 0, 0), put_tensor(&b, "v", 1, (uint64_t[]){8}, 0, 32);
    put_tensor(&b, "w", 1, (uint64_t[]){8}, 0, 64), put_data(&b, 96);
    REFUSED(b, "two tensors have the name 'w' (numbers 0 and 2)");
}

static void g21_g22_dimensions(void **state) {
    (void)state;
    const uint64_t ne[8] = {1, 1, 1, 1, 1, 1, 1, 1};
    bytes b = one(0, ne, 0, 0);
    REFUSED(b, "tensor 't' has no dimensions");
    b = one(5, ne, 0, 0);
    REFUSED(b, "offset 0x21 (33): tensor 't': dimension count 5 exceeds 4");
    b = one(0xffffffffu, ne, 0, 0);
    REFUSED(b, "dimension count 4294967295 exceeds 4");
    static const uint64_t bad[] = {0, (uint64_t)-1, (uint64_t)1 << 63};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        b = one(2, (uint64_t[]){8, bad[i]}, 0, 0);
        REFUSED(b, "tensor 't': dimension 1 is ", "expected 1 or more");
    }
}

static void g23_g24_sizes(void **state) {
    (void)state;
    static const uint64_t products[][4] = {
        {((uint64_t)1 << 42) + 1, (uint64_t)1 << 42, 1, 1},
        {(uint64_t)1 << 32, (uint64_t)1 << 32, 1, 1},
        {(uint64_t)1 << 16, (uint64_t)1 << 16, (uint64_t)1 << 16, (uint64_t)1 << 16},
        {INT64_MAX, 3, 1, 1},
    };
    for (size_t i = 0; i < sizeof products / sizeof *products; i++) {
        bytes b = one(4, products[i], 0, 0);
        REFUSED(b, "tensor 't': the dimensions multiply to more than 2^63");
    }
    bytes b = one(1, (uint64_t[]){(uint64_t)1 << 62}, 0, 0); /* 2^64 bytes */
    REFUSED(b, "tensor 't': its bytes are more than 2^63");
    b = one(2, (uint64_t[]){(uint64_t)1 << 31, (uint64_t)1 << 31}, 28, 0);
    REFUSED(b, "tensor 't': its bytes are more than 2^63");
}

static void g25_g26_g30_ends(void **state) {
    (void)state;
    bytes b = one(1, (uint64_t[]){8}, 0, UINT64_MAX - 31); /* offset + size wraps */
    REFUSED(b, "tensor 't': 32 bytes at offset 18446744073709551584 of a data section of 64 bytes");
    b = one(1, (uint64_t[]){17}, 0, 0);
    REFUSED(b, "tensor 't': 68 bytes at offset 0 of a data section of 64 bytes");
    b = one(1, (uint64_t[]){16}, 0, 32);
    REFUSED(b, "tensor 't': 64 bytes at offset 32 of a data section of 64 bytes");
    b = one(1, (uint64_t[]){((uint64_t)1 << 61) - 1}, 0, 0); /* below 2^63 bytes, and its padded size wraps int64 */
    REFUSED(b, "9223372036854775804 bytes at offset 0");
    b = begin(1, 0); /* the padding of the header itself runs over the end */
    put_tensor(&b, "t", 1, (uint64_t[]){1}, 24, 0);
    REFUSED(b, "1 bytes at offset 0 of a data section of 0 bytes");
}

static void g27_g28_types(void **state) {
    (void)state;
    static const struct {
        uint32_t type;
        const char *says;
    } rows[] = {
        {4, "type id 4 (Q4_2 (removed))"},
        {5, "type id 5 (Q4_3"},
        {31, "type id 31 (Q4_0_4_4"},
        {36, "type id 36 (IQ4_NL_4_4"},
        {42, "type id 42 (unknown)"},
        {0x7fffffff, "type id 2147483647 (unknown)"},
        {0xffffffffu, "type id 4294967295 (unknown)"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        bytes b = one(1, (uint64_t[]){256}, rows[i].type, 0);
        REFUSED(b, "offset 0x2d (45): tensor 't': ", rows[i].says);
    }
    bytes b = one(2, (uint64_t[]){16, 2}, 8, 0); /* the product is a multiple, the row is not */
    REFUSED(b, "tensor 't': rows of 16 elements are no multiple of Q8_0's block of 32");
    b = one(1, (uint64_t[]){128}, 12, 0);
    REFUSED(b, "no multiple of Q4_K's block of 256");
}

static void g29_unaligned(void **state) {
    (void)state;
    bytes b = one(1, (uint64_t[]){4}, 0, 8);
    REFUSED(b, "tensor 't': offset 8 is no multiple of the alignment 32");
}

static void g31_overlap(void **state) {
    (void)state;
    bytes b = begin(2, 0);
    put_tensor(&b, "a", 1, (uint64_t[]){16}, 0, 0), put_tensor(&b, "b", 1, (uint64_t[]){8}, 0, 32), put_data(&b, 96);
    REFUSED(b, "the data of tensors 'a' and 'b' overlap");
    b = begin(2, 0); /* the same in the other order, and at one place */
    put_tensor(&b, "b", 1, (uint64_t[]){8}, 0, 32), put_tensor(&b, "a", 1, (uint64_t[]){16}, 0, 0), put_data(&b, 96);
    REFUSED(b, "the data of tensors 'a' and 'b' overlap");
    b = begin(2, 0);
    put_tensor(&b, "a", 1, (uint64_t[]){8}, 0, 32), put_tensor(&b, "b", 1, (uint64_t[]){8}, 0, 32), put_data(&b, 96);
    REFUSED(b, "overlap");
}

static void g32_holes(void **state) {
    (void)state;
    static const struct {
        uint64_t second, size;
        bool noted;
    } rows[] = {
        {32, 64, false}, {64, 96, false}, {96, 128, true}, {32, 96, false}, {32, 97, true},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        bytes b = begin(2, 0);
        put_tensor(&b, "a", 1, (uint64_t[]){8}, 0, 0), put_tensor(&b, "b", 1, (uint64_t[]){8}, 0, rows[i].second);
        put_data(&b, rows[i].size);
        gguf g;
        ACCEPTED(g, b);
        assert_int_equal(g.note != NULL, rows[i].noted);
        if (g.note) assert_non_null(strstr(g.note, "belong to no tensor"));
        gguf_close(&g);
    }
}

static void g42_sparse(void **state) {
    (void)state;
    bytes b = good();
    crafted f = crafted_file(b.data, b.n);
    assert_int_equal(ftruncate(f.fd, (off_t)1 << 40), 0);
    double start = seconds();
    gguf g;
    assert_int_equal(gguf_open(&g, f.path), 0);
    assert_true(seconds() - start < 1);
    assert_non_null(strstr(g.note, "belong to no tensor"));
    gguf_close(&g);
    close(f.fd);
    drop(&b);
}

/* Many names that differ in the last byte only: sorting and finding stay fast. */
static void many_tensors(void **state) {
    (void)state;
    bytes b = begin(GGUF_TENSORS_MAX, 0);
    char name[64];
    for (uint64_t i = 0; i < GGUF_TENSORS_MAX; i++) {
        snprintf(name, sizeof name, "a.name.that.is.as.long.as.ggml.allows.for.tensors.%012d", (int)i);
        put_tensor(&b, name, 1, (uint64_t[]){1}, 24, 32 * i);
    }
    put_data(&b, (size_t)32 * GGUF_TENSORS_MAX);
    double start = seconds();
    gguf g;
    ACCEPTED(g, b);
    if (!UNDER_ASAN) assert_true(seconds() - start < 1);
    assert_ptr_equal(gguf_tensor_find(&g, name), &g.tensors[GGUF_TENSORS_MAX - 1]);
    gguf_close(&g);
}

static void flips(void **state) {
    (void)state;
    static const uint8_t masks[] = {0x01, 0x80, 0xff, 0x7f};
    bytes b = good();
    survive_flips(b.data, b.n, masks, sizeof masks, read_gguf);
    drop(&b);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(g18_prefixes),  cmocka_unit_test(g19_g20_names),    cmocka_unit_test(g21_g22_dimensions),
        cmocka_unit_test(g23_g24_sizes), cmocka_unit_test(g25_g26_g30_ends), cmocka_unit_test(g27_g28_types),
        cmocka_unit_test(g29_unaligned), cmocka_unit_test(g31_overlap),      cmocka_unit_test(g32_holes),
        cmocka_unit_test(g42_sparse),    cmocka_unit_test(many_tensors),     cmocka_unit_test(flips),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
