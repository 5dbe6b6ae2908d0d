/* Sampling against plain formulas (tests/golden/make_sampling.py), the draw against the distribution that is left, and
 * speculative decoding against decoding without it. */
#include "core/json.h"
#include "tests/engine_cases.h"

/* ---- the distribution ---- */

typedef struct {
    sampling s;
    float logits[64];
    int32_t tokens[64];
    token_bias bias[8];
    int vocab, n, prompt;
    int32_t kept[64];
    double p[64], logprob[64];
    int n_kept;
} golden_case;

static double real_or(const json_t *o, const char *key, double otherwise) {
    const json_t *v = json_object_get(o, key);
    return v ? json_number_value(v) : otherwise;
}

static void read_sampling(golden_case *c, const json_t *p) {
    size_t i;
    const json_t *pair;
    c->s = SAMPLING_PLAIN;
    c->s.temperature = real_or(p, "temperature", 1), c->s.top_k = (int)real_or(p, "top_k", 0);
    c->s.top_p = real_or(p, "top_p", 1), c->s.min_p = real_or(p, "min_p", 0);
    c->s.repetition = real_or(p, "repetition", 1), c->s.repeat_last_n = (int)real_or(p, "repeat_last_n", 64);
    c->s.presence = real_or(p, "presence", 0), c->s.frequency = real_or(p, "frequency", 0);
    json_array_foreach(json_object_get(p, "bias"), i, pair) {
        const json_t *b = json_array_get(pair, 1);
        c->bias[c->s.biases++] = (token_bias){(int32_t)json_integer_value(json_array_get(pair, 0)),
                                              json_is_string(b) ? -INFINITY : (float)json_number_value(b)};
    }
    c->s.bias = c->bias;
}

static void read_case(golden_case *c, const json_t *o) {
    size_t i;
    const json_t *v;
    memset(c, 0, sizeof *c);
    read_sampling(c, json_object_get(o, "params"));
    json_array_foreach(json_object_get(o, "logits"), i, v) c->logits[c->vocab++] = (float)json_number_value(v);
    json_array_foreach(json_object_get(o, "tokens"), i, v) c->tokens[c->n++] = (int32_t)json_integer_value(v);
    json_array_foreach(json_object_get(o, "kept"), i, v) c->kept[c->n_kept++] = (int32_t)json_integer_value(v);
    json_array_foreach(json_object_get(o, "probability"), i, v) c->p[i] = json_number_value(v);
    json_array_foreach(json_object_get(o, "logprob"), i, v) c->logprob[i] = json_number_value(v);
    c->prompt = (int)json_integer_value(json_object_get(o, "prompt"));
}

/* Of a chi-square variable with so many degrees of freedom, exceeded once in 10^5: Wilson & Hilferty 1931. */
static double chi_square_bound(int degrees) {
    double k = degrees, z = 4.26;
    return k * pow(1 - 2 / (9 * k) + z * sqrt(2 / (9 * k)), 3);
}

/* Counts against probabilities; what is expected less than 5 times is one class. */
static void check_counts(const int *count, const double *p, int n, int draws, const char *what) {
    double sum = 0, rest = 0, seen = 0;
    int classes = 0;
    for (int i = 0; i < n; i++) {
        double expected = p[i] * draws;
        if (expected < 5) {
            rest += expected, seen += count[i];
            continue;
        }
        sum += (count[i] - expected) * (count[i] - expected) / expected;
        classes++;
    }
    if (rest > 0) sum += (seen - rest) * (seen - rest) / rest, classes++;
    if (classes > 1 && !(sum < chi_square_bound(classes - 1)))
        fail_msg("%s: chi-square %g with %d classes, bound %g", what, sum, classes, chi_square_bound(classes - 1));
}

static void check_case(const golden_case *c, int which) {
    enum { DRAWS = 20000 };
    static const double tolerance = 1e-5; /* penalties are rounded to fp32 once or twice */
    sampler w;
    char what[32];
    int count[64] = {0};
    double seen[64] = {0}, sum = 0;
    snprintf(what, sizeof what, "case %d", which);
    sampler_open(&w, c->vocab);
    int n = sampler_filter(&w, c->logits, &c->s, c->tokens, c->prompt, c->n);
    if (n < c->n_kept) fail_msg("%s: %d tokens are left, expected %d", what, n, c->n_kept);
    for (int i = 0; i < n; i++) sum += seen[w.c[i].id] = exp((double)w.c[i].logit / c->s.temperature);
    for (int i = 0; i < c->n_kept; i++) {
        double got = seen[c->kept[i]] / sum;
        if (!(fabs(got - c->p[i]) <= tolerance))
            fail_msg("%s: token %d: %g, expected %g", what, c->kept[i], got, c->p[i]);
        seen[c->kept[i]] = 0;
    }
    for (int i = 0; i < c->vocab; i++)
        if (seen[i] > 0) fail_msg("%s: token %d is left", what, i);
    sampling s = c->s;
    for (int i = 0; i < DRAWS; i++) {
        s.seed = (uint64_t)i / 4; /* seeds and positions: both must move the draw */
        int32_t tokens[72];
        memcpy(tokens, c->tokens, sizeof c->tokens);
        int32_t id = sampler_next(&w, c->logits, &s, tokens, c->prompt, c->n);
        if (i % 4) id = -1;
        for (int k = 0; k < c->n_kept && id >= 0; k++)
            if (c->kept[k] == id) count[k]++, id = -1;
        if (id >= 0) fail_msg("%s: token %d was drawn", what, id);
    }
    check_counts(count, c->p, c->n_kept, DRAWS / 4, what);
    token_logprob top[64];
    sampler_logprobs(&w, c->logits, c->tokens[0], 5, top);
    for (int i = 0; i < 6; i++) assert_true(fabs((double)top[i].logprob - c->logprob[top[i].id]) < 1e-6);
    assert_int_equal(top[0].id, c->tokens[0]);
    for (int i = 2; i < 6; i++) assert_true(top[i - 1].logprob >= top[i].logprob);
    for (int i = 0; i < c->vocab; i++) assert_true(c->logprob[i] <= (double)top[1].logprob + 1e-6);
    sampler_close(&w);
}

static void test_golden(void **state) {
    (void)state;
    size_t i;
    json_t *all = json_read(GOLDEN "sampling.json"), *o;
    static golden_case c;
    if (!all) fail_msg("%s", fail_text());
    assert_true(json_array_size(json_object_get(all, "cases")) > 20);
    json_array_foreach(json_object_get(all, "cases"), i, o) {
        read_case(&c, o);
        check_case(&c, (int)i);
    }
    json_decref(all);
}

/* The draws of one seed at successive positions are as independent as those of many seeds. */
static void test_positions(void **state) {
    (void)state;
    enum { N = 8, DRAWS = 20000 };
    const float logits[N] = {0, 1, 2, -1, 0.5f, -2, 1.5f, -30};
    double p[N], pairs[N * N], sum = 0;
    int count[N] = {0}, pair[N * N] = {0}, before = -1;
    static int32_t tokens[DRAWS];
    sampler w;
    sampling s = SAMPLING_PLAIN;
    s.seed = 42;
    sampler_open(&w, N);
    for (int i = 0; i < N; i++) sum += p[i] = exp((double)logits[i]);
    for (int i = 0; i < N; i++) p[i] /= sum;
    for (int i = 0; i < N * N; i++) pairs[i] = p[i / N] * p[i % N];
    for (int i = 0; i < DRAWS; i++) {
        tokens[i] = sampler_next(&w, logits, &s, tokens, 0, i);
        count[tokens[i]]++;
        if (i % 2) pair[before * N + tokens[i]]++;
        before = tokens[i];
    }
    check_counts(count, p, N, DRAWS, "positions");
    check_counts(pair, pairs, N * N, DRAWS / 2, "pairs of positions");
    sampler_close(&w);
}

static void test_greedy(void **state) {
    (void)state;
    const float logits[] = {1, 3, NAN, 3, -INFINITY, 2};
    const token_bias bias[] = {{1, -INFINITY}, {5, 0.5f}};
    sampler w;
    sampling s = SAMPLING_PLAIN;
    s.temperature = 0;
    sampler_open(&w, 6);
    assert_int_equal(sampler_next(&w, logits, &s, NULL, 0, 0), 1); /* the smaller of equals */
    s.bias = bias, s.biases = 2;
    assert_int_equal(sampler_next(&w, logits, &s, NULL, 0, 0), 3);
    const int32_t tokens[] = {3, 3};
    s.frequency = 0.3;
    assert_int_equal(sampler_next(&w, logits, &s, tokens, 0, 2), 5); /* 3 - 0.6 < 2.5 */
    assert_int_equal(sampler_next(&w, logits, &s, tokens, 2, 2), 3); /* they are the prompt's */
    s.temperature = 1, s.top_k = 1;
    assert_int_equal(sampler_next(&w, logits, &s, tokens, 0, 2), 5);
    sampler_close(&w);
}

static void test_refused(void **state) {
    (void)state;
    const token_bias outside = {9, 0}, nan = {1, NAN};
    const struct {
        sampling s;
        const char *says;
    } rows[] = {{{.temperature = -1, .top_p = 1, .repetition = 1}, "temperature"},
                {{.temperature = NAN, .top_p = 1, .repetition = 1}, "temperature"},
                {{.top_p = 0, .repetition = 1}, "top-p"},
                {{.top_p = 1.5, .repetition = 1}, "top-p"},
                {{.top_p = 1, .min_p = 2, .repetition = 1}, "min-p"},
                {{.top_p = 1, .top_k = -1, .repetition = 1}, "top-k"},
                {{.top_p = 1, .repetition = 0}, "repetition"},
                {{.top_p = 1, .repetition = 1, .repeat_last_n = -2}, "repeat-last-n"},
                {{.top_p = 1, .repetition = 1, .presence = INFINITY}, "presence"},
                {{.top_p = 1, .repetition = 1, .frequency = NAN}, "frequency"},
                {{.top_p = 1, .repetition = 1, .bias = &outside, .biases = 1}, "logit bias: token 9"},
                {{.top_p = 1, .repetition = 1, .bias = &nan, .biases = 1}, "logit bias"}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        fail_clear();
        assert_int_equal(sampling_check(&rows[i].s, 8, "here: "), -1);
        if (!strstr(fail_text(), rows[i].says) || strncmp(fail_text(), "here: ", 6) != 0)
            fail_msg("row %zu: %s", i, fail_text());
    }
    fail_clear();
}

/* ---- speculation ---- */

/* A prompt that repeats itself, so that look-up finds something. */
static request repeating(int which, int32_t *ids) {
    request q = request_of(which, ids);
    for (int i = q.n; i < 20; i++) ids[i] = i;
    for (int i = 20; i < 40; i++) ids[i] = ids[i - 20];
    q.n = 40;
    return q;
}

static void run_requests(outcome *out, engine_options o, bool together) {
    for (int i = 0; i < REQUESTS;) {
        int32_t ids[CONTEXT];
        model_source src;
        engine *e = open_engine(&src, GOLDEN "tiny_llama", o);
        int first = i;
        do {
            request q = repeating(i, ids);
            q.max_tokens = 40;
            if (engine_add(e, &q) < 0) fail_msg("%s", fail_text());
        } while (++i < REQUESTS && together);
        drain(e, out + first);
        engine_close(e);
        model_source_close(&src);
    }
}

/* Whatever is guessed, by look-up, by a model that is always right, or by one that knows nothing, alone and in batches:
 * the tokens and the logits they were drawn from are those without. */
static void test_speculation(void **state) {
    (void)state;
    model_source self, other;
    static outcome plain[REQUESTS], got[REQUESTS];
    assert_int_equal(model_source_open(&self, GOLDEN "tiny_llama"), 0);
    assert_int_equal(model_source_open(&other, GOLDEN "tiny_tied"), 0);
    const struct {
        engine_options o;
        bool together;
        double least, most; /* share of guesses that are right */
    } ways[] = {{{.lookup = true}, false, 0, 1},
                {{.draft = &self}, false, 1, 1},
                {{.draft = &other}, false, 0, 0.3},
                {{.lookup = true, .draft = &self, .sequences = 4}, true, 0.3, 1},
                {{.draft = &self, .sequences = REQUESTS, .kv_pages = 14}, true, 1, 1},
                {{.draft = &other, .sequences = 3, .batch_rows = 7, .kv_type = KV_F32}, true, 0, 0.3}};
    run_requests(plain, (engine_options){0}, false);
    for (size_t w = 0; w < sizeof ways / sizeof *ways; w++) {
        int drafted = 0, accepted = 0;
        memset(got, 0, sizeof got);
        run_requests(got, ways[w].o, ways[w].together);
        for (int i = 0; i < REQUESTS; i++) {
            same(&plain[i], &got[i], "speculation", i);
            drafted += got[i].stats.drafted, accepted += got[i].stats.accepted;
        }
        double share = drafted ? (double)accepted / drafted : -1;
        if (!(share >= ways[w].least && share <= ways[w].most))
            fail_msg("way %zu: %d of %d guesses were right", w, accepted, drafted);
    }
    model_source_close(&self), model_source_close(&other);
}

/* The first two tokens of many seeds, with a draft model in the way, against the model's own probabilities. */
enum { SEEDS = 3000, KEEP = 6 };
typedef struct {
    int32_t first[KEEP], second[KEEP][KEEP];
    double p[KEEP * KEEP];
} two_tokens;

/* What the filter leaves behind n tokens, with their probabilities. */
static void left_behind(engine *e, const request *like, const int32_t *ids, int n, int32_t *id, double *p) {
    request q = *like;
    engine_event ev;
    sampler w;
    double sum = 0;
    q.prompt = ids, q.n = n, q.max_tokens = 1;
    if (engine_add(e, &q) < 0) fail_msg("%s", fail_text());
    while (engine_step(e) && !engine_next(e, &ev)) {}
    sampler_open(&w, VOCAB);
    assert_int_equal(sampler_filter(&w, ev.logits, &q.sampling, ids, n, n), KEEP);
    for (int k = 0; k < KEEP; k++) sum += p[k] = exp((double)w.c[k].logit / q.sampling.temperature);
    for (int k = 0; k < KEEP; k++) id[k] = w.c[k].id, p[k] /= sum;
    sampler_close(&w);
}

static void expect(engine *e, const request *q, const int32_t *ids, two_tokens *want) {
    double first[KEEP], second[KEEP];
    left_behind(e, q, ids, 3, want->first, first);
    for (int i = 0; i < KEEP; i++) {
        const int32_t more[] = {ids[0], ids[1], ids[2], want->first[i]};
        left_behind(e, q, more, 4, want->second[i], second);
        for (int k = 0; k < KEEP; k++) want->p[i * KEEP + k] = first[i] * second[k];
    }
}

static int place_of(const int32_t *ids, int32_t id) {
    int i = 0;
    while (i < KEEP && ids[i] != id) i++;
    assert_true(i < KEEP);
    return i;
}

static void test_distribution(void **state) {
    (void)state;
    static const int32_t ids[] = {5, 9, 120};
    static int32_t token[SEEDS + 1][3];
    static int n[SEEDS + 1], count[KEEP * KEEP];
    static two_tokens want;
    model_source src, other;
    int drafted = 0;
    assert_int_equal(model_source_open(&other, GOLDEN "tiny_tied"), 0);
    engine *e =
        open_engine(&src, GOLDEN "tiny_llama", (engine_options){.sequences = 16, .draft = &other, .lookup = true});
    request q = REQUEST_PLAIN;
    q.prompt = ids, q.n = 3, q.max_tokens = 3, q.ignore_eog = true;
    q.sampling.top_k = KEEP, q.sampling.temperature = 1.3;
    for (int i = 0; i < SEEDS; i++) {
        q.sampling.seed = 1000 + (uint64_t)i;
        assert_int_equal(engine_add(e, &q), i + 1);
    }
    for (engine_event ev; engine_step(e);)
        while (engine_next(e, &ev)) {
            token[ev.id][n[ev.id]++] = ev.token;
            if (ev.finish) drafted += ev.stats.drafted;
        }
    assert_true(drafted > 0);
    expect(e, &q, ids, &want);
    for (int s = 1; s <= SEEDS; s++) {
        int first = place_of(want.first, token[s][0]);
        assert_int_equal(n[s], 3);
        count[first * KEEP + place_of(want.second[first], token[s][1])]++;
    }
    check_counts(count, want.p, KEEP * KEEP, SEEDS, "two tokens");
    engine_close(e);
    model_source_close(&src), model_source_close(&other);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_golden),      cmocka_unit_test(test_positions),
                                       cmocka_unit_test(test_greedy),      cmocka_unit_test(test_refused),
                                       cmocka_unit_test(test_speculation), cmocka_unit_test(test_distribution)};
    return cmocka_run_group_tests_name("sampling", tests, NULL, NULL);
}
