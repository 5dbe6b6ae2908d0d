/* The text files of a merged model's directory: those of a Hugging Face source as they are, except what the weights'
 * new type changes in config.json; those of a GGUF file made from its keys (transformers' configuration
 * classes). */
#include "core/error.h"
#include "core/json.h"
#include "data/tokenizer_write.h"
#include "model/export.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const char *const export_names[] = {"config.json",
                                    "generation_config.json",
                                    "model.safetensors",
                                    "model.safetensors.index.json",
                                    "tokenizer.json",
                                    "tokenizer_config.json",
                                    "special_tokens_map.json",
                                    "added_tokens.json",
                                    "vocab.json",
                                    "merges.txt",
                                    "tokenizer.model",
                                    "chat_template.jinja",
                                    "chat_template.json",
                                    NULL};

static bool is_tokenizer_file(const char *name) {
    return strcmp(name, "config.json") && strcmp(name, "generation_config.json") && strncmp(name, "model.", 6);
}

static int copy_file(const char *dir, const char *name, file_set *set) {
    char *path = path_join(dir, name);
    file_map m;
    int bad = 0;
    if (path_exists(path) && !(bad = file_open(&m, path))) {
        bad = file_set_add(set, name, m.data, m.size);
        file_close(&m);
    }
    free(path);
    return bad;
}

static int copy_tokenizer(const char *dir, file_set *set) {
    for (int i = 0; export_names[i]; i++)
        if (is_tokenizer_file(export_names[i]) && copy_file(dir, export_names[i], set)) return -1;
    return 0;
}

static int add_config(json_t *o, file_set *set) {
    char *text = json_dumps(o, JSON_INDENT(2) | JSON_SORT_KEYS);
    CHECK(text, "config.json");
    int bad = file_set_add(set, "config.json", text, strlen(text));
    free(text);
    return bad;
}

static const char *torch_name(st_dtype t) { return t == ST_F32 ? "float32" : t == ST_F16 ? "float16" : "bfloat16"; }

/* "dtype" is the key of transformers 5, which reads "torch_dtype" too; transformers 4 reads only that. */
static void set_dtype(json_t *o, st_dtype dtype) {
    bool new_key = json_object_get(o, "dtype"), old_key = json_object_get(o, "torch_dtype");
    if (new_key) json_object_set_new(o, "dtype", json_string(torch_name(dtype)));
    if (old_key || !new_key) json_object_set_new(o, "torch_dtype", json_string(torch_name(dtype)));
}

/* What transformers' BitsAndBytesConfig reads back. */
static void set_quantization(json_t *o, const export_options *how) {
    json_object_del(o, "quantization_config");
    if (how->to->fmt != FMT_NF4) return;
    json_t *q = json_pack("{s:s,s:b,s:b,s:s,s:b,s:s,s:s,s:b,s:b,s:n,s:f}", "quant_method", "bitsandbytes",
                          "load_in_4bit", 1, "load_in_8bit", 0, "bnb_4bit_quant_type", "nf4",
                          "bnb_4bit_use_double_quant", how->double_quant, "bnb_4bit_compute_dtype",
                          torch_name(how->dtype), "bnb_4bit_quant_storage", "uint8", "llm_int8_enable_fp32_cpu_offload",
                          0, "llm_int8_has_fp16_weight", 0, "llm_int8_skip_modules", "llm_int8_threshold", 6.0);
    CHECK(q, "json_pack of quantization_config");
    json_object_set_new(o, "quantization_config", q);
}

static int config_of_dir(const model_source *s, const export_options *how, file_set *set) {
    char *path = path_join(s->path, "config.json");
    json_t *o = json_read(path);
    free(path);
    if (!o) return -1;
    set_quantization(o, how);
    set_dtype(o, how->dtype);
    int bad = add_config(o, set);
    json_decref(o);
    return bad;
}

/* The shortest decimal that is this float: GGUF keeps 1e-5 as a float, and config.json should say 1e-05 again. */
static json_t *float_number(double x) {
    char buf[32];
    for (int digits = 1; digits < 10; digits++) {
        snprintf(buf, sizeof buf, "%.*g", digits, x);
        if (strtof(buf, NULL) == (float)x) break;
    }
    return json_real(strtod(buf, NULL));
}

static int set_id(json_t *o, const char *key, const gguf *g, const char *gguf_key, int64_t vocab) {
    int64_t id;
    if (gguf_get_int_or(g, gguf_key, 0, vocab - 1, -1, &id)) return -1;
    if (id >= 0) json_object_set_new(o, key, json_integer(id));
    return 0;
}

static int config_of_gguf(const model_source *s, const export_options *how, file_set *set) {
    const hparams *hp = &s->hp;
    json_t *o = json_pack("{s:[s],s:b,s:f,s:I,s:s,s:I,s:f,s:I,s:I,s:b,s:s,s:I,s:I,s:I,s:o,s:o,s:b,s:b,s:I}",
                          "architectures", s->fam->class_name, "attention_bias", 0, "attention_dropout", 0.0,
                          "head_dim", (json_int_t)hp->head_dim, "hidden_act", "silu", "hidden_size",
                          (json_int_t)hp->dim, "initializer_range", 0.02, "intermediate_size", (json_int_t)hp->ffn,
                          "max_position_embeddings", (json_int_t)hp->context, "mlp_bias", 0, "model_type", s->fam->name,
                          "num_attention_heads", (json_int_t)hp->heads, "num_hidden_layers", (json_int_t)hp->layers,
                          "num_key_value_heads", (json_int_t)hp->kv_heads, "rms_norm_eps", float_number(hp->norm_eps),
                          "rope_theta", float_number(hp->rope_theta), "tie_word_embeddings", hp->tied, "use_cache", 1,
                          "vocab_size", (json_int_t)hp->vocab);
    CHECK(o, "json_pack of config.json");
    if (s->fam->window == WINDOW_ALL)
        json_object_set_new(o, "sliding_window", hp->window ? json_integer(hp->window) : json_null());
    if (s->fam->has & HAS_QKV_BIAS) json_object_del(o, "attention_bias"); /* its class always has them on q, k, v */
    set_quantization(o, how);
    set_dtype(o, how->dtype);
    int bad = set_id(o, "bos_token_id", &s->g, "tokenizer.ggml.bos_token_id", hp->vocab) ||
              set_id(o, "eos_token_id", &s->g, "tokenizer.ggml.eos_token_id", hp->vocab) ||
              set_id(o, "pad_token_id", &s->g, "tokenizer.ggml.padding_token_id", hp->vocab) || add_config(o, set);
    json_decref(o);
    return bad ? -1 : 0;
}

int export_texts(const model_source *s, const char *tokenizer, const export_options *o, file_set *set) {
    if (s->is_gguf ? config_of_gguf(s, o, set) : config_of_dir(s, o, set)) return -1;
    if (tokenizer && copy_tokenizer(tokenizer, set)) return -1;
    if (s->is_gguf) return tokenizer ? 0 : tokenizer_write_gguf(&s->g, s->hp.context, set);
    return copy_file(s->path, "generation_config.json", set) || (!tokenizer && copy_tokenizer(s->path, set)) ? -1 : 0;
}
