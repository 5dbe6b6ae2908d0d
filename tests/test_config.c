/* The configuration: every message by its whole text, values, the command line, files as axolotl's users have them, and
 * the way back through config_print. `test_config --reference` prints configs/reference.yaml. */
#include "tests/config_cases.h"

/* ---- values ---- */

static void test_defaults(void **state) {
    (void)state;
    config c;
    accepts(&c, BASE, NULL, 0, "");
    assert_string_equal(c.base_model, "m.gguf");
    assert_string_equal(c.adapter, "lora");
    assert_false(c.load_in_4bit);
    assert_true(c.bnb_4bit_use_double_quant && c.lora_target_linear && c.shuffle_merged_datasets);
    assert_int_equal(c.lora_r, 16);
    assert_int_equal(c.max_steps, CONFIG_UNSET);
    assert_int_equal(c.warmup_steps, CONFIG_UNSET);
    assert_true(c.learning_rate == 2e-4 && c.warmup_ratio == 0.03 && isnan(c.eval_steps));
    assert_int_equal(c.datasets.n, 1);
    assert_string_equal(c.datasets.item[0].path, "d.jsonl");
    assert_string_equal(c.datasets.item[0].type, "alpaca");
    assert_null(c.datasets.item[0].field);
    assert_int_equal(c.datasets.item[0].line, 2);
    assert_true(config_is_set(&c, "base_model") && config_is_set(&c, "datasets"));
    assert_false(config_is_set(&c, "lora_r"));
    config_close(&c);
    assert_int_equal(config_open(&c, NULL, NULL, 0), 0);
    assert_null(c.base_model);
    config_close(&c);
}

static void test_values(void **state) {
    (void)state;
    config c;
    accepts(&c,
            BASE
            "learning_rate: 1e-4\nweight_decay: .5\nnum_epochs: 3\nlora_r: '8'\nlora_alpha: 1.6e1\n"
            "sequence_len: 4096.0\nsample_packing: YES\ntrain_on_inputs: On\nshuffle_merged_datasets: no\n"
            "bnb_4bit_use_double_quant: False\ngradient_checkpointing: 'true'\nseed: 9223372036854775807\n"
            "lora_model_dir:\nlora_dropout: ~\nmax_steps: NULL\ntokenizer: ''\noutput_dir: 123\n"
            "optimizer: adamw_torch_fused\nchat_template: tokenizer_default\nlora_target_modules: [q_proj, 'v_proj']\n",
            NULL, 0, "");
    assert_true(c.learning_rate == 1e-4 && c.weight_decay == 0.5 && c.num_epochs == 3 && c.lora_dropout == 0);
    assert_int_equal(c.lora_r, 8);
    assert_int_equal(c.lora_alpha, 16);
    assert_int_equal(c.sequence_len, 4096);
    assert_int_equal(c.seed, INT64_MAX);
    assert_int_equal(c.max_steps, CONFIG_UNSET);
    assert_true(c.sample_packing && c.train_on_inputs && c.gradient_checkpointing);
    assert_false(c.shuffle_merged_datasets || c.bnb_4bit_use_double_quant || c.lora_target_linear);
    assert_string_equal(c.output_dir, "123");
    assert_string_equal(c.optimizer, "adamw_torch");
    assert_null(c.chat_template);
    assert_null(c.tokenizer);
    assert_int_equal(c.lora_target_modules.n, 2);
    assert_false(c.lora_target_modules.scalar);
    assert_string_equal(c.lora_target_modules.item[1], "v_proj");
    assert_false(config_is_set(&c, "lora_dropout") || config_is_set(&c, "chat_template"));
    assert_true(config_is_set(&c, "bnb_4bit_use_double_quant") && config_is_set(&c, "weight_decay"));
    config_close(&c);
    accepts(&c, BASE "target_modules: .*\\.(q|v)_proj$\nr: 4\nuse_rslora: on\nadapter: qlora\n", NULL, 0, "");
    assert_true(c.lora_target_modules.scalar && c.peft_use_rslora && c.load_in_4bit);
    assert_string_equal(c.lora_target_modules.item[0], ".*\\.(q|v)_proj$");
    assert_int_equal(c.lora_r, 4);
    config_close(&c);
}

/* ---- problems ---- */

static void test_one_pass(void **state) {
    (void)state;
    refuses(
        "lerning_rate: 1e-4\n"
        "base_model: m.gguf\n"
        "lora_r: 0\n"
        "lora_dropout: 1\n"
        "learning_rate:   -1\n"
        "sample_packing: maybe\n"
        "micro_batch_size: [1]\n"
        "datasets:\n"
        "  - path: d.jsonl\n"
        "    typo: alpaca\n"
        "  - type: alpacca\n"
        "    learning_rate: 1\n"
        "  - text\n"
        "sequence_len: 1_000\n"
        "optimizer: sgd\n"
        "lora_target_modules: [q_proj, {a: b}]\n"
        "num_epochs: 1e-4x\n"
        "max_steps: 9223372036854775808\n",
        "t.yaml:1:1: unknown key 'lerning_rate'; did you mean 'learning_rate'?\n"
        "t.yaml:3:9: lora_r: found '0', expected an integer in [1, 65536]\n"
        "t.yaml:4:15: lora_dropout: found '1', expected a number in [0, 1)\n"
        "t.yaml:5:18: learning_rate: found '-1', expected a number in (0, 1]\n"
        "t.yaml:6:17: sample_packing: found 'maybe', expected true or false\n"
        "t.yaml:7:19: micro_batch_size: found a list, expected an integer in [1, 65536]\n"
        "t.yaml:9:5: datasets.type is missing in this entry, expected one of chat_template, sharegpt, alpaca, "
        "completion, "
        "tokenized\n"
        "t.yaml:10:5: unknown key 'typo'; did you mean 'type'?\n"
        "t.yaml:11:5: datasets.path is missing in this entry, expected an existing file\n"
        "t.yaml:11:11: datasets.type: found 'alpacca', expected one of chat_template, sharegpt, alpaca, completion, "
        "tokenized; did you mean 'alpaca'?\n"
        "t.yaml:12:5: unknown key 'learning_rate': it is a key of the file itself: write it without indentation\n"
        "t.yaml:13:5: datasets: found text, expected an entry with path and type\n"
        "t.yaml:14:15: sequence_len: found '1_000' (a number with underscores), expected an integer in [2, 1048576]\n"
        "t.yaml:15:12: optimizer: found 'sgd', expected one of adamw_torch, adamw_8bit\n"
        "t.yaml:16:31: lora_target_modules: found a list or map in the list, expected a name\n"
        "t.yaml:17:13: num_epochs: found '1e-4x' (no number), expected a number in (0, 1000000]\n"
        "t.yaml:18:12: max_steps: found '9223372036854775808' (more than 64 bits hold), expected an integer in "
        "[1, 1000000000]\n");
    char many[2048] = BASE;
    for (int i = 0; i < 25; i++) sprintf(many + strlen(many), "zzzzzzzz%02d: 1\n", i * 4);
    config c;
    char *out;
    assert_int_equal(open_bytes(&c, many, strlen(many), NULL, 0, &out), -1);
    int lines = 0;
    for (char *p = out; (p = strchr(p, '\n')); p++) lines++;
    assert_int_equal(lines, PROBLEMS_SHOWN + 1);
    assert_non_null(strstr(out, "t.yaml: and 5 more problems\n"));
    free(out);
    write_text("t.yaml", "lora_r: x\n", 10);
    FILE *null = fopen("/dev/null", "w");
    assert_int_equal(config_open_to(&c, "t.yaml", NULL, 0, null), -1);
    assert_string_equal(fail_text(), "t.yaml: 3 problems in the configuration; nothing was written");
    fail_clear();
    fclose(null);
}

static void test_unknown(void **state) {
    (void)state;
    refuses(
        BASE "path: d.jsonl\nlora:\n  lora_r: 8\nlr: 1e-4\nbf15: auto\nsomething: 1\nhub_model_id: me/x\n"
             "load_in_8bit: true\noptimizer: adamw_torch_4bit\ngradient_checkpointing: offload\n"
             "special_tokens:\n  eos_token: x\n  pad_tokn: y\nR: 3\nlerning_rat: 1\nlrning_rat: 1\n",
        "t.yaml:3:1: unknown key 'path': it belongs into an entry of datasets\n"
        "t.yaml:4:1: unknown key 'lora': keys are not nested here: write lora_r without indentation\n"
        "t.yaml:6:1: unknown key 'lr'; did you mean 'learning_rate'?\n"
        "t.yaml:7:1: unknown key 'bf15'; did you mean axolotl's 'bf16'? It is not supported here\n"
        "t.yaml:8:1: unknown key 'something'; --help lists the keys\n"
        "t.yaml:9:1: 'hub_model_id' is known to axolotl, not supported here: nothing is uploaded\n"
        "t.yaml:10:1: 'load_in_8bit' is known to axolotl, not supported here: use load_in_4bit: true, or an "
        "8-bit GGUF file "
        "as base_model\n"
        "t.yaml:11:12: optimizer: 'adamw_torch_4bit' is known to axolotl, not supported here: use adamw_8bit: "
        "bitsandbytes' moments, in 8 bits\n"
        "t.yaml:12:25: gradient_checkpointing: 'offload' is known to axolotl, not supported here: use true: "
        "layer inputs "
        "stay in memory\n"
        "t.yaml:14:3: 'special_tokens.eos_token' is known to axolotl, not supported here: the tokenizer's own is used\n"
        "t.yaml:15:3: unknown key 'pad_tokn'; did you mean axolotl's 'pad_token'? It is not supported here\n"
        "t.yaml:16:1: unknown key 'R'; did you mean 'r'?\n"
        "t.yaml:17:1: unknown key 'lerning_rat'; did you mean 'learning_rate'?\n"
        "t.yaml:18:1: unknown key 'lrning_rat'; --help lists the keys\n");
}

static void test_duplicates(void **state) {
    (void)state;
    refuses(BASE "lora_r: 8\nr: 9\nseed: 1\nseed: 2\n", "t.yaml:4:1: 'r' is another name of lora_r, given on line 3\n"
                                                        "t.yaml:6:1: key 'seed' is given twice, first on line 5\n");
}

static void test_missing(void **state) {
    (void)state;
    refuses("seed: 1\n", "t.yaml: base_model is missing, expected an existing path\n"
                         "t.yaml: datasets is missing, expected a list of entries with path and type\n");
    refuses("base_model:\ndatasets: []\n",
            "t.yaml:2:11: datasets: found a list (empty), expected a list of entries with path and type\n");
    refuses("base_model:\n" DATA, "t.yaml:1:1: base_model is missing, expected an existing path\n");
    refuses(
        MODEL
        "datasets:\n  - path: nowhere.jsonl\n    type: alpaca\n  - path: .\n    type: alpaca\n  - path:\n    type:\n",
        "t.yaml:3:11: datasets.path: found 'nowhere.jsonl' (No such file or directory), expected an existing "
        "file; nothing is "
        "downloaded\n"
        "t.yaml:5:11: datasets.path: found '.' (a directory), expected an existing file; nothing is downloaded\n"
        "t.yaml:7:10: datasets.path is missing in this entry, expected an existing file\n"
        "t.yaml:8:10: datasets.type is missing in this entry, expected one of chat_template, sharegpt, alpaca, "
        "completion, "
        "tokenized\n");
    refuses("base_model: meta/llama\n" DATA,
            "t.yaml:1:13: base_model: found 'meta/llama' (No such file or directory), expected "
            "an existing path; nothing is downloaded\n");
}

static void test_exclusive(void **state) {
    (void)state;
    refuses(BASE "warmup_ratio: 0.1\nwarmup_steps: 10\nsave_steps: 10\nsaves_per_epoch: 1\nevals_per_epoch: "
                 "2\neval_steps: 0.5\n",
            "t.yaml:4:1: warmup_steps excludes warmup_ratio on line 3; give one of them\n"
            "t.yaml:6:1: saves_per_epoch excludes save_steps on line 5; give one of them\n"
            "t.yaml:8:1: eval_steps excludes evals_per_epoch on line 7; give one of them\n");
    refuses(
        BASE "load_in_4bit: no\nadapter: qlora\n",
        "t.yaml:3:1: load_in_4bit: false contradicts adapter: qlora; use adapter: lora, or leave load_in_4bit out\n");
    refuses(BASE "lora_target_linear: false\n",
            "t.yaml:3:1: lora_target_linear: false without lora_target_modules leaves nothing to train; give one of "
            "them\n");
    refuses(BASE "eval_steps: 2.5\nval_set_size: 1.5\n",
            "t.yaml:3:1: eval_steps: found 2.5, expected a fraction below 1 or a whole number\n"
            "t.yaml:4:1: val_set_size: found 1.5, expected a fraction below 1 or a whole number\n");
    refuses(BASE "sequence_len: 1048576\nmicro_batch_size: 65536\n",
            "t.yaml:4:1: micro_batch_size x sequence_len is 68719476736 tokens, expected at most 2147483647\n");
    config c;
    accepts(&c, BASE "lr_scheduler: constant\nwarmup_steps: 5\n", NULL, 0,
            "t.yaml:4:1: note: warmup_steps has no effect with lr_scheduler: constant; see constant_with_warmup\n");
    assert_int_equal(c.warmup_steps, 5);
    assert_true(isnan(c.warmup_ratio));
    config_close(&c);
}

/* ---- the command line ---- */

static void test_overrides(void **state) {
    (void)state;
    config c;
    static const char *const args[] = {"learning_rate=1e-3",
                                       "warmup_steps=7",
                                       "lora_r=",
                                       "base_model=other.gguf",
                                       "lora_target_modules=[q_proj, k_proj]",
                                       "output_dir=a=b: c # d",
                                       "datasets=[{path: e.jsonl, type: completion, field: body}]"};
    accepts(&c,
            "base_model: nowhere\nlearning_rate: 1e-4\nwarmup_ratio: 0.5\nlora_r: 64\nlora_target_modules: all-linear\n"
            "datasets: [{path: nowhere, type: alpaca}]\n",
            args, 7, "");
    assert_true(c.learning_rate == 1e-3 && isnan(c.warmup_ratio));
    assert_int_equal(c.warmup_steps, 7);
    assert_int_equal(c.lora_r, 16);
    assert_string_equal(c.base_model, "other.gguf");
    assert_string_equal(c.output_dir, "a=b: c # d");
    assert_int_equal(c.lora_target_modules.n, 2);
    assert_string_equal(c.datasets.item[0].field, "body");
    assert_int_equal(c.datasets.item[0].line, 0);
    config_close(&c);
    static const char *const wrong[] = {
        "lora_r=x", "lorar=8",          "seed", "threads=1",      "threads=2",       "lora_target_modules=[a",
        "tf32=yes", "datasets=d.jsonl", "=3",   "warmup_steps=1", "warmup_ratio=0.5"};
    refuses_args(BASE "lora_alpha: x\n", wrong, 11,
                 "t.yaml:3:13: lora_alpha: found 'x' (no number), expected an integer in [1, 1048576]\n"
                 "command line: lora_r: found 'x' (no number), expected an integer in [1, 65536]\n"
                 "command line: unknown key 'lorar'; did you mean 'lora_r'?\n"
                 "command line: found 'seed', expected key=value\n"
                 "command line: threads is given twice\n"
                 "command line: not YAML: did not find expected ',' or ']'\n"
                 "command line: note: 'tf32' has no effect here: arithmetic is IEEE fp32\n"
                 "command line: datasets: found 'd.jsonl', expected a list of entries with path and type\n"
                 "command line: found '=3', expected key=value\n"
                 "command line: warmup_ratio excludes warmup_steps; give one of them\n");
}

/* ---- files as axolotl's users have them ---- */

static void test_axolotl_lora(void **state) {
    (void)state;
    config c;
    accepts(
        &c,
        BASE
        "model_type: LlamaForCausalLM\nload_in_8bit: false\nload_in_4bit: false\ndataset_prepared_path:\n"
        "val_set_size: 0.05\noutput_dir: ./out\nadapter: lora\nlora_model_dir:\nsequence_len: 4096\n"
        "sample_packing: true\neval_sample_packing: false\npad_to_sequence_len: true\nlora_target_linear: true\n"
        "lora_fan_in_fan_out:\nwandb_project:\nwandb_entity:\nwandb_watch:\nwandb_name:\nwandb_log_model:\n"
        "optimizer: adamw_torch_fused\nlr_scheduler: cosine\nlearning_rate: 0.0002\nbf16: auto\nfp16:\ntf32: false\n"
        "gradient_checkpointing: true\nresume_from_checkpoint:\nattn_implementation: flash_attention_2\n"
        "warmup_ratio: 0.1\nevals_per_epoch: 4\nsaves_per_epoch: 1\nweight_decay: 0.0\nspecial_tokens:\n",
        NULL, 0,
        "t.yaml:3:1: note: 'model_type' has no effect here: it is read from the model's own files\n"
        "t.yaml:13:1: note: 'eval_sample_packing' has no effect here: evaluation gives the same loss packed and "
        "unpacked\n"
        "t.yaml:14:1: note: 'pad_to_sequence_len' has no effect here: nothing is ever padded\n"
        "t.yaml:25:1: note: 'bf16' has no effect here: arithmetic is fp32, which is never less exact\n"
        "t.yaml:27:1: note: 'tf32' has no effect here: arithmetic is IEEE fp32\n"
        "t.yaml:30:1: note: 'attn_implementation' has no effect here: attention is exact and never builds the "
        "whole score "
        "matrix\n");
    assert_int_equal(c.evals_per_epoch, 4);
    assert_int_equal(config_eval_every(&c, 10, 30), 3);
    assert_int_equal(config_save_every(&c, 10, 30), 10);
    config_close(&c);
}

static void test_axolotl_chat(void **state) {
    (void)state;
    config c;
    accepts(
        &c,
        MODEL
        "chat_template: chatml\ndatasets:\n  - path: d.jsonl\n    type: chat_template\n    split: train\n"
        "    field_messages: conversations\n    message_property_mappings:\n      role: from\n      content: value\n"
        "bnb_config_kwargs:\n  bnb_4bit_use_double_quant: false\nadapter: qlora\nspecial_tokens:\n"
        "  pad_token: <|endoftext|>\ngradient_checkpointing_kwargs:\n  use_reentrant: false\n",
        NULL, 0,
        "t.yaml:6:5: note: 'datasets.split' has no effect here: give the file that holds the split\n"
        "t.yaml:15:3: note: 'special_tokens.pad_token' has no effect here: sequences are packed without padding\n"
        "t.yaml:16:1: note: 'gradient_checkpointing_kwargs' has no effect here: there is one way of recomputing\n");
    assert_string_equal(c.datasets.item[0].type, "sharegpt");
    assert_string_equal(c.datasets.item[0].field, "conversations");
    assert_string_equal(c.chat_template, "chatml");
    assert_true(c.load_in_4bit && !c.bnb_4bit_use_double_quant);
    config_close(&c);
    refuses(
        MODEL
        "datasets:\n  - path: d.jsonl\n    type: chat_template\n    message_property_mappings: {role: who, "
        "content: text}\n"
        "    train_on_eos: last\nplugins:\n  - axolotl.integrations.liger.LigerPlugin\nliger_rope: false\nrl: dpo\n"
        "deepspeed: ds.json\nauto_resume_from_checkpoints: true\n",
        "t.yaml:5:32: datasets.message_property_mappings: expected {role: role, content: content} or {role: "
        "from, content: "
        "value}\n"
        "t.yaml:6:5: 'datasets.train_on_eos' is known to axolotl, not supported here: the end-of-turn token of "
        "each trained "
        "turn carries loss\n"
        "t.yaml:7:1: 'plugins' is known to axolotl, not supported here: there are no plugins, and fused kernels "
        "are built in\n"
        "t.yaml:9:1: note: 'liger_rope' has no effect here: kernels are always fused\n"
        "t.yaml:10:1: 'rl' is known to axolotl, not supported here: only supervised fine-tuning is offered\n"
        "t.yaml:11:1: 'deepspeed' is known to axolotl, not supported here: training runs in one process\n"
        "t.yaml:12:1: 'auto_resume_from_checkpoints' is known to axolotl, not supported here: use resume_from_checkpoint: auto\n");
}

static void test_intervals(void **state) {
    (void)state;
    static const struct {
        const char *args[2];
        int n;
        int64_t want;
    } cases[] = {{{NULL}, 0, 25},
                 {{"eval_steps=7"}, 1, 7},
                 {{"eval_steps=0.1"}, 1, 8},
                 {{"eval_steps=1e-6"}, 1, 1},
                 {{"evals_per_epoch=4"}, 1, 7},
                 {{"evals_per_epoch=0"}, 1, 0},
                 {{"evals_per_epoch=100"}, 1, 1},
                 {{"eval_steps=1"}, 1, 1}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        config c;
        assert_int_equal(config_open(&c, NULL, cases[i].args, cases[i].n), 0);
        assert_int_equal(config_eval_every(&c, 25, 75), cases[i].want);
        config_close(&c);
    }
}

/* ---- tables ---- */

static void test_tables(void **state) {
    (void)state;
#define ALIAS(name, key) assert_non_null(name_row(key)), assert_non_null(name_row(name));
#define HINT(name, key) assert_non_null(name_row(key)), assert_null(name_row(name)), assert_null(name_axolotl(name));
#define SAME(key, value, name) assert_non_null(name_row(key));
#define REFUSE(key, value, text) assert_non_null(name_row(key));
#define AXOLOTL(word, accept, text) assert_null(name_row(word)), assert_string_equal(name_axolotl(word)->name, word);
#include "core/axolotl_keys.def"
}

static char *printed(const config *c) {
    char *text = NULL;
    size_t n;
    FILE *f = open_memstream(&text, &n);
    config_print(c, f);
    fclose(f);
    return text;
}

static void round_trip(const char *yaml) {
    config c, d;
    accepts(&c, yaml, NULL, 0, "");
    char *first = printed(&c);
    accepts(&d, first, NULL, 0, "");
    char *second = printed(&d);
    assert_string_equal(first, second);
    assert_true(c.learning_rate == d.learning_rate && c.adam_epsilon == d.adam_epsilon &&
                c.warmup_steps == d.warmup_steps);
    assert_int_equal(c.lora_target_modules.n, d.lora_target_modules.n);
    assert_int_equal(c.lora_target_modules.scalar, d.lora_target_modules.scalar);
    for (int i = 0; i < c.lora_target_modules.n; i++)
        assert_string_equal(c.lora_target_modules.item[i], d.lora_target_modules.item[i]);
    assert_string_equal(c.output_dir, d.output_dir);
    assert_int_equal(c.datasets.n, d.datasets.n);
    free(first), free(second);
    config_close(&c), config_close(&d);
}

static void test_round_trip(void **state) {
    (void)state;
    setenv("HOME", "/nowhere", 1);
    round_trip(BASE);
    round_trip(
        BASE
        "learning_rate: 0.1234567890123456789\nadam_epsilon: 1e-9\nwarmup_steps: 3\nadapter: qlora\nmax_steps: 10\n"
        "lora_target_modules: ['it''s', '${HOME}', \"a\\\"b\\\\c\", '# x', 'null', ~x]\noutput_dir: "
        "\"line\\nfeed ${HOME} \\t \\\"q\\\" \\\\\"\n");
    round_trip(MODEL
               "datasets:\n- {path: d.jsonl, type: completion, field: 'yes'}\n- {path: e.jsonl, type: tokenized}\n"
               "lora_target_modules: .*(q|v)_proj\neval_steps: 0.25\nsaves_per_epoch: 2\nlora_dropout: 0.1\n");
    config c;
    accepts(&c, BASE "lora_model_dir: .\nlora_alpha: 8\n", NULL, 0, "");
    char *text = printed(&c);
    assert_non_null(strstr(text, "\nlora_r: # from lora_model_dir\nlora_alpha: 8\n"));
    free(text);
    config_close(&c);
}

static void test_help(void **state) {
    (void)state;
    char *text = NULL;
    size_t n;
    FILE *f = open_memstream(&text, &n);
    config_help(f);
    fclose(f);
    for (const char *p = text; *p; p += strcspn(p, "\n") + 1) assert_true(strcspn(p, "\n") <= 100);
    assert_non_null(strstr(text, "\n  learning_rate                 Highest rate"));
    assert_non_null(strstr(text, "(a number in (0, 1]; default 2e-4)\n"));
    free(text);
}

static char *reference_file; /* read before the tests move into their own directory */

static void test_reference(void **state) {
    (void)state;
    char *text = NULL;
    size_t n;
    FILE *f = open_memstream(&text, &n);
    config_reference(f);
    fclose(f);
    assert_string_equal(text, reference_file);
    for (const char *p = text; *p; p += strcspn(p, "\n") + 1) assert_true(strcspn(p, "\n") <= 100);
    static const char *const args[] = {"base_model=m.gguf", "datasets=[{path: d.jsonl, type: alpaca}]"};
    config c, d;
    accepts(&c, text, args, 2, "");
    accepts(&d, BASE, NULL, 0, "");
    char *a = printed(&c), *b = printed(&d);
    assert_string_equal(a, b); /* the values in the reference are the defaults */
    free(a), free(b), free(text);
    config_close(&c), config_close(&d);
}

int main(int argc, char **argv) {
    if (argc == 2 && !strcmp(argv[1], "--reference")) return config_reference(stdout), 0;
    size_t n;
    char dir[] = "/tmp/peft-test-config-XXXXXX";
    reference_file = read_text("configs/reference.yaml", &n);
    cases_begin(dir);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_defaults),     cmocka_unit_test(test_values),     cmocka_unit_test(test_one_pass),
        cmocka_unit_test(test_unknown),      cmocka_unit_test(test_duplicates), cmocka_unit_test(test_missing),
        cmocka_unit_test(test_exclusive),    cmocka_unit_test(test_overrides),  cmocka_unit_test(test_axolotl_lora),
        cmocka_unit_test(test_axolotl_chat), cmocka_unit_test(test_intervals),  cmocka_unit_test(test_tables),
        cmocka_unit_test(test_round_trip),   cmocka_unit_test(test_help),       cmocka_unit_test(test_reference),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL) + cases_end(dir);
    free(reference_file);
    return failed;
}
