/* Row readers. Alpaca's prompts: Taori et al. 2023, Stanford Alpaca, as axolotl writes them (a line feed ends the
 * prompt). */
#include "data/dataset_read.h"
#include "core/arena.h"
#include "core/error.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* fail() with the row's place in front. */
__attribute__((format(printf, 2, 3))) static int fail_row(const row_builder *r, const char *fmt, ...) {
    char text[1024];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    return fail(EXIT_INPUT, "%s:%d: %s", r->path, r->line, text);
}

/* Gives a failure from below, which knows no file, the row's place. */
static int fail_place(const row_builder *r) {
    char text[2048];
    int code = fail_code();
    snprintf(text, sizeof text, "%s", fail_text());
    fail_clear();
    return fail(code, "%s:%d: %s", r->path, r->line, text);
}

static int fail_missing(const row_builder *r, const json_t *o, const char *key, const char *expected) {
    char found[256] = "nothing";
    size_t used = 0;
    const char *k;
    json_t *v;
    json_object_foreach((json_t *)(uintptr_t)o, k, v) if (used < sizeof found) used +=
        (size_t)snprintf(found + used, sizeof found - used, "%s%.40s", used ? ", " : "", k);
    return fail_row(r, "key '%s' is missing, expected %s (found: %s)", key, expected, found);
}

/* The string under key. */
static int get_string(const row_builder *r, const json_t *o, const char *key, const char **text, size_t *n) {
    const json_t *v = json_object_get(o, key);
    if (!v) return fail_missing(r, o, key, "a string");
    if (!json_is_string(v)) return fail_row(r, "key '%s': found %s, expected a string", key, json_kind(v));
    *text = json_string_value(v), *n = json_string_length(v);
    return 0;
}

static void push(row_builder *r, int32_t id, int32_t label) {
    if (r->n == r->cap) {
        r->cap = r->cap ? r->cap * 2 : 4096;
        r->ids = xrealloc(r->ids, (size_t)r->cap, sizeof *r->ids);
        r->labels = xrealloc(r->labels, (size_t)r->cap, sizeof *r->labels);
    }
    r->ids[r->n] = id, r->labels[r->n++] = label;
}

static void push_tokens(row_builder *r, bool train) {
    for (int64_t i = 0; i < r->tokens.n; i++) push(r, r->tokens.id[i], train ? r->tokens.id[i] : -100);
}

static int encode(row_builder *r, const char *text, size_t n, int flags) {
    r->tokens.n = 0;
    return n && tokenizer_encode(r->tok, text, (int64_t)n, flags, &r->tokens) ? fail_place(r) : 0;
}

/* --- text rows --- */

static int read_completion(row_builder *r, const json_t *row) {
    const char *text = "";
    size_t n = 0;
    if (get_string(r, row, r->field, &text, &n) || encode(r, text, n, TOKENIZE_SPECIAL)) return -1;
    bool has_bos = r->tokens.n && r->tokens.id[0] == r->bos;
    bool has_eos = r->tokens.n && r->tokens.id[r->tokens.n - 1] == r->eos;
    if (r->bos >= 0 && !has_bos) push(r, r->bos, -100);
    push_tokens(r, true);
    if (r->bos >= 0 && has_bos) r->labels[0] = -100;
    if (!has_eos) push(r, r->eos, r->eos);
    return 0;
}

static int read_alpaca(row_builder *r, const json_t *row) {
    static const char with_input[] =
        "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
        "response that appropriately completes the request.\n\n### Instruction:\n%s\n\n### Input:\n%s\n\n### Response:\n";
    static const char without_input[] =
        "Below is an instruction that describes a task. Write a response that appropriately completes the "
        "request.\n\n### Instruction:\n%s\n\n### Response:\n";
    const char *instruction = "", *input = "", *output = "";
    size_t n_instruction = 0, n_input = 0, n_output = 0;
    if (get_string(r, row, "instruction", &instruction, &n_instruction)) return -1;
    const json_t *in = json_object_get(row, "input");
    if (in && !json_is_null(in) && get_string(r, row, "input", &input, &n_input)) return -1;
    if (get_string(r, row, "output", &output, &n_output)) return -1;
    char *prompt = n_input ? xprintf(with_input, instruction, input) : xprintf(without_input, instruction);
    int bad = encode(r, prompt, strlen(prompt), 0);
    free(prompt);
    if (bad) return -1;
    if (r->bos >= 0) push(r, r->bos, -100);
    push_tokens(r, r->train_on_inputs);
    if (encode(r, output, n_output, 0)) return -1;
    push_tokens(r, true);
    push(r, r->eos, r->eos);
    return 0;
}

/* --- chat rows --- */

/* The names that data sets give to a role, and the role that templates know. */
static const struct {
    const char *alias, *role;
} roles[] = {
    {"system", "system"}, {"user", "user"},           {"human", "user"},
    {"gpt", "assistant"}, {"assistant", "assistant"}, {"tool", "tool"},
};

static const char *role_of(const char *alias) {
    for (size_t i = 0; i < sizeof roles / sizeof *roles; i++)
        if (!strcmp(roles[i].alias, alias)) return roles[i].role;
    return NULL;
}

/* "train": true|false or "weight": 0|1 of a turn; by default assistant turns are trained. */
static int read_train(const row_builder *r, const json_t *turn, size_t at, bool *out) {
    const json_t *train = json_object_get(turn, "train"), *weight = json_object_get(turn, "weight");
    *out = true;
    if (train && !json_is_boolean(train))
        return fail_row(r, "turn %zu: key 'train': found %s, expected true or false", at + 1, json_kind(train));
    if (train) *out = json_is_true(train);
    if (!weight) return 0;
    double w = json_is_number(weight) ? json_number_value(weight) : -1;
    if (w != 0 && w != 1) return fail_row(r, "turn %zu: key 'weight': expected 0 or 1", at + 1);
    *out = *out && w == 1;
    return 0;
}

static int check_tool_calls(const row_builder *r, const json_t *calls, size_t at) {
    size_t i;
    const json_t *call;
    if (calls && !json_is_null(calls) && !json_is_array(calls))
        return fail_row(r, "turn %zu: key 'tool_calls': found %s, expected an array", at + 1, json_kind(calls));
    json_array_foreach((json_t *)(uintptr_t)calls, i, call) if (!json_is_object(call)) return fail_row(
        r, "turn %zu: key 'tool_calls': element %zu: found %s, expected an object", at + 1, i, json_kind(call));
    return 0;
}

/* role and content, or from and value: whichever the turn has. NULL after fail(). */
static json_t *read_turn(const row_builder *r, const json_t *turn, size_t at, bool *train) {
    if (!json_is_object(turn)) {
        fail_row(r, "turn %zu: found %s, expected an object", at + 1, json_kind(turn));
        return NULL;
    }
    bool from = !json_object_get(turn, "role") && json_object_get(turn, "from");
    const char *keys[2] = {from ? "from" : "role", from ? "value" : "content"}, *name;
    json_t *role = json_object_get(turn, keys[0]), *content = json_object_get(turn, keys[1]);
    bool calls = json_array_size(json_object_get(turn, "tool_calls")) > 0;
    if (!json_is_string(role)) {
        fail_row(r, "turn %zu: key '%s': found %s, expected a role's name", at + 1, keys[0], json_kind(role));
        return NULL;
    }
    if (!json_is_string(content) && !calls) {
        fail_row(r, "turn %zu: key '%s': found %s, expected a string", at + 1, keys[1], json_kind(content));
        return NULL;
    }
    if (check_tool_calls(r, json_object_get(turn, "tool_calls"), at)) return NULL;
    if (!(name = role_of(json_string_value(role)))) {
        fail_row(r, "turn %zu: unknown role '%.64s', expected system, user (human), assistant (gpt) or tool", at + 1,
                 json_string_value(role));
        return NULL;
    }
    if (read_train(r, turn, at, train)) return NULL;
    json_t *made = json_copy((json_t *)(uintptr_t)turn);
    static const char *const ours[] = {"from", "value", "train", "weight"};
    for (size_t i = 0; i < sizeof ours / sizeof *ours; i++) json_object_del(made, ours[i]);
    json_object_set_new(made, "role", json_string(name));
    json_object_set(made, "content", content ? content : json_null());
    return made;
}

/* The row's turns as the template shall see them; NULL after fail(). */
static json_t *read_turns(row_builder *r, const json_t *turns, size_t n) {
    if (n > r->train_cap) r->train = xrealloc(r->train, r->train_cap = n * 2, sizeof *r->train);
    size_t systems = 0, assistants = 0;
    json_t *made = json_array();
    for (size_t i = 0; i < n; i++) {
        json_t *turn = read_turn(r, json_array_get(turns, i), i, &r->train[i]);
        if (!turn) goto bad;
        json_array_append_new(made, turn);
        const char *role = json_string_value(json_object_get(turn, "role"));
        systems += !strcmp(role, "system"), assistants += !strcmp(role, "assistant");
        if (systems > 1) {
            fail_row(r, "turn %zu: a second system turn, expected one at most", i + 1);
            goto bad;
        }
    }
    if (assistants) return made;
    fail_row(r, "no assistant turn among %zu: there is nothing to learn in this row", n);
bad:
    json_decref(made);
    return NULL;
}

/* A token is a target when it holds a byte of a span; spans and tokens both ascend. */
static void push_chat(row_builder *r, const chat_text *t) {
    int s = 0;
    for (int64_t i = 0; i < r->tokens.n; i++) {
        int32_t id = r->tokens.id[i];
        while (s < t->n_spans && t->spans[s].end <= r->tokens.begin[i]) s++;
        bool inside = s < t->n_spans && t->spans[s].begin < r->tokens.end[i];
        bool bos = i == 0 && id == tokenizer_bos(r->tok) && !inside;
        push(r, id, inside || (r->train_on_inputs && !bos) ? id : -100);
    }
}

static int read_chat(row_builder *r, const json_t *row) {
    const json_t *turns = json_object_get(row, r->field);
    if (!turns) return fail_missing(r, row, r->field, "an array of turns");
    if (!json_is_array(turns))
        return fail_row(r, "key '%s': found %s, expected an array of turns", r->field, json_kind(turns));
    size_t n = json_array_size(turns);
    if (!n) return fail_row(r, "key '%s': found an empty array, expected turns", r->field);
    const json_t *tools = json_object_get(row, "tools");
    if (tools && !json_is_array(tools) && !json_is_null(tools))
        return fail_row(r, "key 'tools': found %s, expected an array", json_kind(tools));
    json_t *messages = read_turns(r, turns, n);
    if (!messages) return -1;
    chat_text t;
    const chat_options o = {.tools = json_is_array(tools) ? tools : NULL, .train = r->train};
    r->tokens.n = 0;
    int bad = chat_render(r->chat, messages, &o, &t) || chat_encode(&t, r->tok, &r->tokens) ? fail_place(r) : 0;
    if (!bad) push_chat(r, &t);
    chat_text_free(&t);
    json_decref(messages);
    return bad;
}

/* --- rows of ids --- */

static int get_array(const row_builder *r, const json_t *row, const char *key, const json_t **out) {
    *out = json_object_get(row, key);
    if (!*out) return fail_missing(r, row, key, "an array of integers");
    return json_is_array(*out) ? 0
                               : fail_row(r, "key '%s': found %s, expected an array of integers", key, json_kind(*out));
}

/* Element i, in [0, vocab) or one of the values allowed besides. */
static int get_id(const row_builder *r, const json_t *a, const char *key, size_t i, bool ignore_allowed, int32_t *out) {
    const json_t *v = json_array_get(a, i);
    int64_t id = json_integer_value(v);
    if (!json_is_integer(v))
        return fail_row(r, "key '%s': element %zu: found %s, expected an integer", key, i, json_kind(v));
    if (!(id >= 0 && id < r->vocab) && !(ignore_allowed && id == -100))
        return fail_row(r, "key '%s': element %zu: found %" PRId64 ", expected %s0 to %d", key, i, id,
                        ignore_allowed ? "-100 or " : "", r->vocab - 1);
    *out = (int32_t)id;
    return 0;
}

static int read_tokenized(row_builder *r, const json_t *row) {
    const json_t *ids = NULL, *labels = NULL, *mask = json_object_get(row, "attention_mask");
    if (get_array(r, row, "input_ids", &ids) || get_array(r, row, "labels", &labels)) return -1;
    size_t n = json_array_size(ids);
    if (json_array_size(labels) != n)
        return fail_row(r, "key 'labels': found %zu elements, expected as many as input_ids has: %zu",
                        json_array_size(labels), n);
    for (size_t i = 0; i < n; i++) {
        int32_t id = 0, label = 0;
        if (get_id(r, ids, "input_ids", i, false, &id) || get_id(r, labels, "labels", i, true, &label)) return -1;
        push(r, id, label);
    }
    for (size_t i = 0; i < json_array_size(mask); i++)
        if (json_integer_value(json_array_get(mask, i)) != 1)
            return fail_row(r, "key 'attention_mask': element %zu is not 1: rows must come without padding", i);
    return 0;
}

/* --- table --- */

static const row_type types[] = {
    {"chat_template", "messages", true, true, read_chat}, {"messages", "messages", true, true, read_chat},
    {"sharegpt", "conversations", true, true, read_chat}, {"alpaca", NULL, false, true, read_alpaca},
    {"completion", "text", false, true, read_completion}, {"tokenized", NULL, false, false, read_tokenized},
};

const row_type *row_type_find(const char *name) {
    for (size_t i = 0; name && i < sizeof types / sizeof *types; i++)
        if (!strcmp(types[i].name, name)) return &types[i];
    return NULL;
}

const char *row_type_names(void) { return "chat_template, messages, sharegpt, alpaca, completion, tokenized"; }

/* What the tokenizer puts before a text of its own accord. */
static int probe_bos(row_builder *r) {
    r->tokens.n = 0;
    if (tokenizer_encode(r->tok, "a", 1, TOKENIZE_ADD, &r->tokens)) return -1;
    int bos = tokenizer_bos(r->tok);
    r->bos = r->tokens.n > 1 && r->tokens.id[0] == bos ? bos : -1;
    return 0;
}

int row_builder_open(row_builder *r, const tokenizer *tok, const chat_template *chat, int vocab, bool train_on_inputs) {
    *r = (row_builder){
        .tok = tok, .chat = chat, .vocab = vocab, .train_on_inputs = train_on_inputs, .bos = -1, .eos = -1};
    if (!tok) return 0;
    r->eos = tokenizer_eos(tok);
    return probe_bos(r);
}

void row_builder_close(row_builder *r) {
    free(r->ids), free(r->labels), free(r->train);
    token_list_free(&r->tokens);
    *r = (row_builder){0};
}

int row_build(row_builder *r, const row_type *type, const json_t *row) {
    r->n = 0;
    if (type->read(r, row)) return -1;
    for (int64_t i = 0; i < r->n; i++)
        if (r->ids[i] >= r->vocab)
            return fail_row(
                r, "the tokenizer writes id %d, the model knows ids below %d: it is the tokenizer of another model",
                r->ids[i], r->vocab);
    return 0;
}
