/* Data sets: rows of each type against Hugging Face's tokenizers (golden/dataset_rows.json, made by
 * golden/make_dataset.py), packing against first fit by the book, the split, and every bad row with its line. */
#include "core/arena.h"
#include "core/json.h"
#include "core/rng.h"
#include "tests/dataset_files.h"

/* A file of `rows` rows of input_ids, each of its own length and content. */
static void write_rows(const char *path, int rows, int longest, uint64_t seed, bool backwards) {
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    for (int k = 0; k < rows; k++) {
        int r = backwards ? rows - 1 - k : k,
            n = 2 + (int)rng_below(seed, STREAM_TEST, (uint64_t)r, (uint64_t)longest - 1);
        for (int side = 0; side < 2; side++) {
            fputs(side ? "], \"labels\": [" : "{\"input_ids\": [", f);
            for (int i = 0; i < n; i++) fprintf(f, "%s%d", i ? "," : "", (r * 31 + i * 7 + r / 300) % 300);
        }
        fputs("]}\n", f);
    }
    assert_int_equal(fclose(f), 0);
}

/* --- rows of each type --- */

static void compare_ids(const json_t *want, const int32_t *got, int n) {
    assert_int_equal(json_array_size(want), n);
    for (int i = 0; i < n; i++) assert_int_equal(json_integer_value(json_array_get(want, (size_t)i)), got[i]);
}

static void compare_case(const json_t *made) {
    const json_t *rows = json_object_get(made, "rows"), *expect = json_object_get(made, "expect");
    const char *type = json_string_value(json_object_get(made, "type"));
    FILE *f = fopen(file, "w");
    assert_non_null(f);
    for (size_t i = 0; i < json_array_size(rows); i++) {
        json_dumpf(json_array_get(rows, i), f, JSON_ENSURE_ASCII);
        fputc('\n', f);
    }
    assert_int_equal(fclose(f), 0);
    tokenizer *tok = open_tokenizer(json_string_value(json_object_get(made, "tokenizer")));
    dataset_entry e;
    config c = config_of(&e, 1, type);
    c.sequence_len = 1024;
    c.train_on_inputs = json_is_true(json_object_get(made, "train_on_inputs"));
    chat_template *chat = chat_open_named("smollm2", "t", tok);
    if (!chat) fail_msg("%s", fail_text());
    dataset ds = open_or_fail(&c, tok, chat);
    assert_int_equal(ds.n_train, json_array_size(expect));
    assert_int_equal(ds.dropped + ds.truncated, 0);
    for (int i = 0; i < ds.n_train; i++) {
        const json_t *want = json_array_get(expect, (size_t)i);
        compare_ids(json_object_get(want, "ids"), ds.train[i].ids, ds.train[i].n);
        compare_ids(json_object_get(want, "labels"), ds.train[i].labels, ds.train[i].n);
        int targets = 0;
        for (int k = 1; k < ds.train[i].n; k++) targets += ds.train[i].labels[k] >= 0;
        assert_int_equal(ds.train[i].targets, targets);
    }
    dataset_close(&ds);
    chat_close(chat);
    tokenizer_close(tok);
}

static void test_types(void **state) {
    (void)state;
    json_t *root = json_read("tests/golden/dataset_rows.json"), *made;
    size_t i;
    if (!root) fail_msg("%s", fail_text());
    json_array_foreach(json_object_get(root, "cases"), i, made) compare_case(made);
    assert_int_equal(i, 16);
    json_decref(root);
}

/* What a user types never makes a special token, in any type but completion. */
static void test_injection(void **state) {
    (void)state;
    tokenizer *tok = open_tokenizer("chat_tokenizer");
    dataset_entry e;
    config c = config_of(&e, 1, "messages");
    c.sequence_len = 1024;
    write_text(file, "{\"messages\": [{\"role\": \"system\", \"content\": \"s\"}, {\"role\": \"user\", \"content\": "
                     "\"<|im_start|>x<|im_end|>\"}, {\"role\": \"assistant\", \"content\": \"<|im_end|>\"}]}\n");
    chat_template *chat = chat_open_named("chatml", "t", tok);
    dataset ds = open_or_fail(&c, tok, chat);
    int specials = 0;
    for (int i = 0; i < ds.train[0].n; i++) specials += ds.train[0].ids[i] < 3;
    assert_int_equal(specials, 6);
    assert_int_equal(ds.train[0].labels[ds.train[0].n - 2], 2);    /* the end-of-turn token carries loss */
    assert_int_equal(ds.train[0].labels[ds.train[0].n - 1], -100); /* the line feed after it does not */
    dataset_close(&ds);
    chat_close(chat);
    tokenizer_close(tok);
}

static void test_tokenized(void **state) {
    (void)state;
    dataset_entry e;
    config c = config_of(&e, 1, "tokenized");
    write_text(file, "{\"input_ids\": [5, 6, 319], \"labels\": [5, -100, 0]}\n\n  \r\n"
                     "{\"labels\": [1, 1], \"input_ids\": [1, 2], \"attention_mask\": [1, 1]}");
    dataset ds = open_or_fail(&c, NULL, NULL);
    assert_int_equal(ds.n_train, 2);
    assert_memory_equal(ds.train[0].ids, ((int32_t[]){5, 6, 319}), 12);
    assert_memory_equal(ds.train[0].labels, ((int32_t[]){5, -100, 0}), 12);
    assert_int_equal(ds.train[0].targets, 1);
    assert_int_not_equal(ds.train[0].id, ds.train[1].id);
    assert_int_equal(dataset_begin_epoch(&ds, 3), 1);
    batch b;
    batch_open(&b, dataset_rows_max(&ds), dataset_seqs_max(&ds));
    dataset_batch(&ds, 0, &b);
    assert_int_equal(b.rows, 5);
    assert_int_equal(b.seqs, 2);
    assert_int_equal(b.epoch, 3);
    assert_memory_equal(b.token, ((int32_t[]){5, 6, 319, 1, 2}), 20);
    assert_memory_equal(b.target, ((int32_t[]){-1, 0, -1, 1, -1}), 20);
    assert_memory_equal(b.pos, ((int32_t[]){0, 1, 2, 0, 1}), 20); /* positions start anew */
    assert_memory_equal(b.start, ((int32_t[]){0, 3, 5}), 12);
    assert_true(b.sample[0] == ds.train[0].id && b.sample[1] == ds.train[1].id);
    batch_close(&b);
    dataset_close(&ds);
}

/* --- length --- */

static void test_truncation(void **state) {
    (void)state;
    dataset_entry e;
    config c = config_of(&e, 1, "tokenized");
    c.sequence_len = 3;
    write_text(file, "{\"input_ids\": [1, 2, 3, 4], \"labels\": [1, 2, 3, 4]}\n"          /* cut */
                     "{\"input_ids\": [1, 2, 3, 4], \"labels\": [-100, -100, -100, 4]}\n" /* cut, no target left */
                     "{\"input_ids\": [1, 2, 3], \"labels\": [1, -100, -100]}\n" /* nothing predicts the first */
                     "{\"input_ids\": [9], \"labels\": [9]}\n"                   /* too short */
                     "{\"input_ids\": [], \"labels\": []}\n");
    dataset ds = open_or_fail(&c, NULL, NULL);
    assert_int_equal(ds.n_train, 1);
    assert_int_equal(ds.train[0].n, 3);
    assert_int_equal(ds.train[0].targets, 2);
    assert_int_equal(ds.truncated, 2);
    assert_int_equal(ds.dropped, 4);
    assert_int_equal(ds.dropped_short, 2);
    char text[512] = {0};
    FILE *f = fmemopen(text, sizeof text - 1, "w");
    dataset_summary(&ds, f);
    fclose(f);
    assert_string_equal(text, "data: 1 rows, 3 tokens (66.7 % are targets), 0 held-out rows, 0 tokens\n"
                              "data: 2 rows truncated to sequence_len 3; 4 dropped: 2 without a target left, 2 shorter "
                              "than two tokens\n");
    dataset_close(&ds);
}

/* --- packing --- */

/* First fit by the book, quadratic. */
static int first_fit(const int *length, int n, int capacity, int *bin) {
    int *room = xcalloc((size_t)n, sizeof *room), bins = 0;
    for (int i = 0; i < n; i++) {
        int b = 0;
        while (b < bins && room[b] < length[i]) b++;
        if (b == bins) room[bins++] = capacity;
        room[b] -= length[i];
        bin[i] = b;
    }
    free(room);
    return bins;
}

static void pack_once(int n, int capacity, int longest, uint64_t seed) {
    int *length = xcalloc((size_t)n, sizeof *length), *bin = xcalloc((size_t)n, sizeof *bin);
    int64_t total = 0;
    for (int i = 0; i < n; i++) {
        length[i] = 1 + (int)rng_below(seed, STREAM_TEST, (uint64_t)i, (uint64_t)longest);
        total += length[i];
    }
    int bins = first_fit(length, n, capacity, bin);
    bin_list b;
    bins_open(&b, n, total, capacity);
    for (int round = 0; round < 2; round++) { /* twice: begin must forget */
        bins_begin(&b);
        for (int i = 0; i < n; i++) bins_add(&b, i, length[i]);
        bins_end(&b);
        assert_int_equal(b.n_bins, bins);
        assert_int_equal(b.start[0], 0);
        assert_int_equal(b.start[bins], n);
        for (int k = 0; k < bins; k++)
            for (int i = b.start[k]; i < b.start[k + 1]; i++) {
                assert_int_equal(bin[b.item[i]], k);
                assert_true(i == b.start[k] || b.item[i - 1] < b.item[i]);
            }
    }
    bins_close(&b);
    free(length), free(bin);
}

static void test_first_fit(void **state) {
    (void)state;
    for (uint64_t seed = 0; seed < 40; seed++)
        pack_once(1 + (int)seed * 13, 64, seed % 4 == 0 ? 64 : seed % 4 == 1 ? 33 : seed % 4 == 2 ? 7 : 1, seed);
    pack_once(3000, 2048, 2048, 99);
    pack_once(1, 1, 1, 0);
    pack_once(17, 1, 1, 0);
}

/* Every sample of the epoch once, no batch over the announced worst, bins within sequence_len. */
static void check_epoch(dataset *ds, int epoch, batch *b, uint64_t *hash) {
    int n = dataset_begin_epoch(ds, epoch), seqs = 0;
    int64_t targets = 0, want = 0;
    uint64_t sum = 0, all = 0;
    *hash = HASH_SEED;
    for (int i = 0; i < n; i++) {
        dataset_batch(ds, i, b);
        assert_true(b->rows > 0 && b->rows <= ds->rows_max && b->seqs <= ds->seqs_max);
        seqs += b->seqs, targets += b->targets;
        for (int s = 0; s < b->seqs; s++) sum += b->sample[s] * 2654435761u;
        *hash = hash_bytes(*hash, b->sample, (uint64_t)b->seqs * sizeof *b->sample);
    }
    for (int i = 0; i < ds->n_train; i++) all += ds->train[i].id * 2654435761u, want += ds->train[i].targets;
    assert_int_equal(seqs, ds->n_train);
    assert_true(sum == all);
    assert_int_equal(targets, want);
    for (int k = 0; ds->packing && k < ds->train_bins.n_bins; k++) {
        int rows = 0;
        for (int i = ds->train_bins.start[k]; i < ds->train_bins.start[k + 1]; i++)
            rows += ds->train[ds->train_bins.item[i]].n;
        assert_in_range(rows, 2, ds->sequence_len);
    }
}

static void test_epochs(void **state) {
    (void)state;
    dataset_entry e;
    write_rows(file, 301, 40, 1, false);
    for (int packing = 0; packing < 2; packing++) {
        config c = config_of(&e, 1, "tokenized");
        c.sample_packing = packing, c.micro_batch_size = 3, c.shuffle_merged_datasets = true, c.val_set_size = 0.1;
        dataset ds = open_or_fail(&c, NULL, NULL), again = open_or_fail(&c, NULL, NULL);
        batch b;
        batch_open(&b, dataset_rows_max(&ds), dataset_seqs_max(&ds));
        uint64_t h0, h1, h0_again;
        check_epoch(&ds, 0, &b, &h0);
        check_epoch(&ds, 1, &b, &h1);
        check_epoch(&again, 1, &b, &h0_again); /* an epoch does not depend on those before it */
        assert_true(h1 == h0_again);
        check_epoch(&ds, 0, &b, &h0_again);
        assert_true(h0 != h1 && h0 == h0_again);
        int seqs = 0;
        for (int i = 0; i < dataset_eval_batches(&ds); i++) {
            dataset_eval_batch(&ds, i, &b);
            seqs += b.seqs;
            assert_int_equal(b.epoch, 0);
        }
        assert_int_equal(seqs, ds.n_eval);
        batch_close(&b);
        dataset_close(&ds), dataset_close(&again);
        c.seed = 43, ds = open_or_fail(&c, NULL, NULL);
        batch_open(&b, dataset_rows_max(&ds), dataset_seqs_max(&ds));
        check_epoch(&ds, 0, &b, &h1);
        assert_true(h0 != h1);
        batch_close(&b);
        dataset_close(&ds);
    }
}

static void test_file_order(void **state) {
    (void)state;
    dataset_entry e[2];
    write_rows(file, 20, 9, 1, false);
    write_rows(file2, 5, 9, 2, false);
    config c = config_of(e, 2, "tokenized");
    dataset ds = open_or_fail(&c, NULL, NULL);
    assert_int_equal(ds.n_train, 25);
    assert_int_equal(dataset_begin_epoch(&ds, 5), 13);
    for (int i = 0; i < 25; i++) assert_int_equal(ds.order[i], i);
    for (int i = 0; i < 20; i++) assert_int_equal(ds.train[i].ids[0], i * 31 % 300);
    dataset_close(&ds);
}

/* The longest samples meet in the worst unpacked batch; a packed one is never above its bins. */
static void test_worst(void **state) {
    (void)state;
    dataset_entry e;
    write_text(file,
               "{\"input_ids\": [1,2], \"labels\": [1,2]}\n{\"input_ids\": [1,2,3,4,5], \"labels\": [1,2,3,4,5]}\n"
               "{\"input_ids\": [1,2,3], \"labels\": [1,2,3]}\n{\"input_ids\": [1,3], \"labels\": [1,2]}\n");
    config c = config_of(&e, 1, "tokenized");
    dataset ds = open_or_fail(&c, NULL, NULL);
    assert_int_equal(dataset_rows_max(&ds), 8);
    assert_int_equal(dataset_seqs_max(&ds), 2);
    dataset_close(&ds);
    c.sample_packing = true, c.sequence_len = 5, c.micro_batch_size = 1;
    ds = open_or_fail(&c, NULL, NULL);
    assert_int_equal(dataset_rows_max(&ds), 5);
    assert_int_equal(dataset_seqs_max(&ds), 2);
    assert_int_equal(dataset_begin_epoch(&ds, 0), 3);
    dataset_close(&ds);
    c.micro_batch_size = 1000;
    ds = open_or_fail(&c, NULL, NULL);
    assert_int_equal(dataset_rows_max(&ds), 12); /* all there is */
    dataset_close(&ds);
}

/* --- split --- */

static int by_id(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

static uint64_t hash_of_eval(const dataset *ds) {
    uint64_t *id = xcalloc((size_t)ds->n_eval, sizeof *id), h;
    for (int i = 0; i < ds->n_eval; i++) id[i] = ds->eval[i].id;
    qsort(id, (size_t)ds->n_eval, sizeof *id, by_id);
    h = hash_bytes(HASH_SEED, id, (uint64_t)ds->n_eval * sizeof *id);
    free(id);
    return h;
}

static void test_split(void **state) {
    (void)state;
    dataset_entry e;
    config c = config_of(&e, 1, "tokenized");
    struct {
        double val;
        int rows;
    } cases[] = {{0.1, 20}, {0.003, 1}, {7, 7}, {1, 1}, {199, 199}, {0, 0}, {0.999, 0}};
    write_rows(file, 200, 20, 3, false);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        c.val_set_size = cases[i].val;
        if (c.val_set_size == 0.999) continue;
        dataset ds = open_or_fail(&c, NULL, NULL);
        assert_int_equal(ds.n_eval, cases[i].rows);
        assert_int_equal(ds.n_train, 200 - cases[i].rows);
        dataset_close(&ds);
    }
    c.val_set_size = 0.2;
    dataset ds = open_or_fail(&c, NULL, NULL);
    uint64_t forwards = hash_of_eval(&ds);
    for (int i = 0; i < ds.n_eval; i++)
        for (int k = 0; k < ds.n_train; k++) assert_true(ds.eval[i].id != ds.train[k].id);
    dataset_close(&ds);
    write_rows(file, 200, 20, 3, true);
    ds = open_or_fail(&c, NULL, NULL);
    assert_true(hash_of_eval(&ds) == forwards);
    dataset_close(&ds);
    c.seed = 7;
    ds = open_or_fail(&c, NULL, NULL);
    assert_true(hash_of_eval(&ds) != forwards);
    dataset_close(&ds);
}

/* Copies of a row are all trained on or all held out. */
static void test_split_copies(void **state) {
    (void)state;
    dataset_entry e[2];
    write_rows(file, 50, 20, 3, false);
    write_rows(file2, 50, 20, 3, true);
    config c = config_of(e, 2, "tokenized");
    c.val_set_size = 9;
    dataset ds = open_or_fail(&c, NULL, NULL);
    assert_int_equal(ds.n_eval, 10); /* nine, and the copy of the ninth */
    for (int i = 0; i < ds.n_eval; i++)
        for (int k = 0; k < ds.n_train; k++) assert_true(ds.eval[i].id != ds.train[k].id);
    dataset_close(&ds);

    static const char two[] = "{\"input_ids\": [1,2], \"labels\": [1,2]}\n{\"input_ids\": [1,2], \"labels\": [1,2]}\n";
    write_text(file, two);
    struct {
        double val;
        const char *words;
    } bad[] = {
        {1, "val_set_size: all 2 rows are the same"},
        {2, "val_set_size: 2 would hold out 2 of 2 rows"},
        {0.9, "val_set_size: 0.9 would hold out 2 of 2 rows"},
        {1.5, "val_set_size: found 1.5"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        c = config_of(e, 1, "tokenized"), c.val_set_size = bad[i].val;
        assert_int_equal(dataset_open(&ds, &c, NULL, NULL, VOCAB), -1);
        assert_int_equal(fail_code(), EXIT_USAGE);
        if (!strstr(fail_text(), bad[i].words)) fail_msg("%s", fail_text());
        fail_clear();
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(test_types),  TEST(test_injection),  TEST(test_tokenized), TEST(test_truncation), TEST(test_first_fit),
        TEST(test_epochs), TEST(test_file_order), TEST(test_worst),     TEST(test_split),      TEST(test_split_copies),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
