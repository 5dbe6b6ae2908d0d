/* tokenizer.json (the format of Hugging Face's tokenizers, version 1.0) out of a GGUF file's keys: byte-level BPE,
 * split by the patterns that the file's `tokenizer.ggml.pre` stands for. What tokenizers cuts out as added tokens are
 * the file's control, unknown and user-defined tokens. */
#include "data/tokenizer_write.h"
#include "core/arena.h"
#include "core/error.h"
#include "core/json.h"
#include "data/tokenizer_parts.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void put_text(FILE *f, const char *s, size_t n) {
    json_t *v = json_stringn(s, n);
    CHECK(v, "a token that is not UTF-8 passed the reader");
    json_dumpf(v, f, JSON_ENCODE_ANY | JSON_COMPACT);
    json_decref(v);
}

static void put_token(FILE *f, const tokenizer *t, int id) {
    put_text(f, t->v.row[id].text, (size_t)t->v.row[id].text_n);
}

static const char *flag(const token_row *r, uint32_t bit) { return r->flags & bit ? "true" : "false"; }

static void put_added(FILE *f, const tokenizer *t) {
    const char *between = "";
    for (int i = 0; i < t->v.n; i++) {
        const token_row *r = &t->v.row[i];
        if (!(r->flags & TOKEN_ADDED)) continue;
        fprintf(f, "%s\n    {\"id\": %d, \"content\": ", between, i);
        put_token(f, t, i);
        fprintf(f, ", \"single_word\": false, \"lstrip\": %s, \"rstrip\": %s, \"normalized\": false, \"special\": %s}",
                flag(r, TOKEN_LSTRIP), flag(r, TOKEN_RSTRIP), flag(r, TOKEN_SPECIAL));
        between = ",";
    }
}

static void put_pre_tokenizer(FILE *f, const tokenizer *t) {
    fputs("{\"type\": \"Sequence\", \"pretokenizers\": [", f);
    for (int i = 0; i < t->n_pre; i++) {
        CHECK(t->pre[i].pattern, "stage %d has no pattern", i);
        fputs("\n    {\"type\": \"Split\", \"pattern\": {\"Regex\": ", f);
        put_text(f, t->pre[i].pattern, strlen(t->pre[i].pattern));
        fputs("}, \"behavior\": \"Isolated\", \"invert\": false},", f);
    }
    fputs(
        "\n    {\"type\": \"ByteLevel\", \"add_prefix_space\": false, \"trim_offsets\": true, \"use_regex\": false}]}",
        f);
}

static void put_sequence(FILE *f, const tokenizer *t, const char *sequence, int type) {
    const char *between = "";
    for (int i = 0; i < t->n_prefix; i++, between = ", ") {
        fprintf(f, "%s{\"SpecialToken\": {\"id\": ", between);
        put_token(f, t, t->prefix[i]);
        fprintf(f, ", \"type_id\": %d}}", type);
    }
    fprintf(f, "%s{\"Sequence\": {\"id\": \"%s\", \"type_id\": %d}}", between, sequence, type);
    for (int i = 0; i < t->n_suffix; i++) {
        fputs(", {\"SpecialToken\": {\"id\": ", f);
        put_token(f, t, t->suffix[i]);
        fprintf(f, ", \"type_id\": %d}}", type);
    }
}

static void put_special(FILE *f, const tokenizer *t, int id) {
    put_token(f, t, id);
    fputs(": {\"id\": ", f);
    put_token(f, t, id);
    fprintf(f, ", \"ids\": [%d], \"tokens\": [", id);
    put_token(f, t, id);
    fputs("]}", f);
}

/* What is put around a text: BOS before, EOS after, or nothing. */
static void put_post_processor(FILE *f, const tokenizer *t) {
    if (!t->n_prefix && !t->n_suffix) {
        fputs("null", f);
        return;
    }
    fputs("{\"type\": \"TemplateProcessing\", \"single\": [", f);
    put_sequence(f, t, "A", 0);
    fputs("], \"pair\": [", f);
    put_sequence(f, t, "A", 0);
    fputs(", ", f);
    put_sequence(f, t, "B", 1);
    fputs("], \"special_tokens\": {", f);
    if (t->n_prefix) put_special(f, t, t->prefix[0]);
    if (t->n_suffix && (!t->n_prefix || t->suffix[0] != t->prefix[0])) {
        if (t->n_prefix) fputs(", ", f);
        put_special(f, t, t->suffix[0]);
    }
    fputs("}}", f);
}

static void put_model(FILE *f, const tokenizer *t, const gguf_kv *merges) {
    fprintf(f,
            "{\"type\": \"BPE\", \"dropout\": null, \"unk_token\": null, \"continuing_subword_prefix\": null, "
            "\"end_of_word_suffix\": null, \"fuse_unk\": false, \"byte_fallback\": false, "
            "\"ignore_merges\": %s,\n  \"vocab\": {",
            t->ignore_merges ? "true" : "false");
    for (int i = 0; i < t->v.n; i++) {
        fputs(i ? ",\n    " : "\n    ", f);
        put_token(f, t, i);
        fprintf(f, ": %d", i);
    }
    fputs("},\n  \"merges\": [", f);
    for (uint64_t i = 0; i < merges->n; i++) {
        fputs(i ? ",\n    " : "\n    ", f);
        put_text(f, merges->strings[i].data, merges->strings[i].n);
    }
    fputs("]}", f);
}

static void put_tokenizer(FILE *f, const tokenizer *t, const gguf_kv *merges) {
    fputs("{\n  \"version\": \"1.0\",\n  \"truncation\": null,\n  \"padding\": null,\n  \"added_tokens\": [", f);
    put_added(f, t);
    fputs("],\n  \"normalizer\": null,\n  \"pre_tokenizer\": ", f);
    put_pre_tokenizer(f, t);
    fputs(",\n  \"post_processor\": ", f);
    put_post_processor(f, t);
    fputs(",\n  \"decoder\": {\"type\": \"ByteLevel\", \"add_prefix_space\": true, \"trim_offsets\": true, "
          "\"use_regex\": true},\n"
          "  \"model\": ",
          f);
    put_model(f, t, merges);
    fputs("\n}\n", f);
}

static int write_tokenizer(const tokenizer *t, const gguf *g, file_set *set) {
    char *text = NULL;
    size_t n = 0;
    FILE *f = open_memstream(&text, &n);
    if (!f) return fail(EXIT_MEMORY, "%s: no memory for tokenizer.json", set->dir);
    put_tokenizer(f, t, gguf_find(g, "tokenizer.ggml.merges"));
    int bad = ferror(f);
    bad |= fclose(f);
    bad = bad ? fail(EXIT_MEMORY, "%s: no memory for tokenizer.json", set->dir)
              : file_set_add(set, "tokenizer.json", text, n);
    free(text);
    return bad;
}

static int add_json(file_set *set, const char *name, json_t *o) {
    char *text = json_dumps(o, JSON_INDENT(2) | JSON_SORT_KEYS);
    CHECK(text, "%s", name);
    int bad = file_set_add(set, name, text, strlen(text));
    free(text);
    json_decref(o);
    return bad;
}

static void set_token(json_t *o, const char *key, const tokenizer *t, int id) {
    if (id >= 0) json_object_set_new(o, key, json_string(t->v.row[id].text));
}

static json_t *special_tokens(const tokenizer *t) {
    json_t *o = json_object();
    set_token(o, "bos_token", t, t->bos), set_token(o, "eos_token", t, t->eos);
    set_token(o, "pad_token", t, t->pad), set_token(o, "unk_token", t, t->unk);
    return o;
}

static int write_config(const tokenizer *t, int64_t context, file_set *set) {
    json_t *o = special_tokens(t);
    json_object_set_new(o, "clean_up_tokenization_spaces", json_false());
    json_object_set_new(o, "model_max_length", json_integer(context));
    json_object_set_new(o, "tokenizer_class", json_string("PreTrainedTokenizerFast"));
    if (t->chat_template) json_object_set_new(o, "chat_template", json_string(t->chat_template));
    return add_json(set, "tokenizer_config.json", o);
}

static int write_generation(const tokenizer *t, file_set *set) {
    json_t *o = json_object(), *ends = json_array();
    if (t->eos >= 0) json_array_append_new(ends, json_integer(t->eos));
    for (int i = 0; i < t->v.n; i++)
        if (i != t->eos && t->v.row[i].flags & TOKEN_EOG) json_array_append_new(ends, json_integer(i));
    if (t->bos >= 0) json_object_set_new(o, "bos_token_id", json_integer(t->bos));
    if (t->pad >= 0) json_object_set_new(o, "pad_token_id", json_integer(t->pad));
    if (json_array_size(ends)) json_object_set(o, "eos_token_id", ends);
    json_decref(ends);
    return add_json(set, "generation_config.json", o);
}

int tokenizer_write_gguf(const gguf *g, int64_t context, file_set *set) {
    if (!gguf_find(g, "tokenizer.ggml.model")) return 0;
    tokenizer *t = tokenizer_open_gguf(g);
    if (!t) return -1;
    int bad =
        write_tokenizer(t, g, set) || write_config(t, context, set) || write_generation(t, set) ||
        add_json(set, "special_tokens_map.json", special_tokens(t)) ||
        (t->chat_template && file_set_add(set, "chat_template.jinja", t->chat_template, strlen(t->chat_template)));
    tokenizer_close(t);
    return bad ? -1 : 0;
}
