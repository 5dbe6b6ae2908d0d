/* An adapter on disk, whichever container holds it: a PEFT directory or a GGUF LoRA file (llama.cpp's
 * convert_lora_to_gguf.py and src/llama-adapter.cpp). Either is one lora_config and one set of tensors under PEFT's
 * names in Hugging Face order.
 *
 * A GGUF file has no list of targets (its tensors are the list), one alpha for all, and a scale of alpha / r for each
 * pair by its own r (1 where alpha is 0): pairs of a smaller rank come out padded with zeros to the largest. B's rows
 * of llama's q and k are interleaved as the base's rows are. */
#ifndef PEFT_MODEL_LORA_FILE_H
#define PEFT_MODEL_LORA_FILE_H

#include "model/model.h"

typedef struct lora_file {
    char *path;
    bool is_gguf;
    lora_config cfg; /* adapter_attach may take it over */
    safetensors st;  /* GGUF: made by lora_file_open; a directory's is opened by lora_file_check */
    gguf g;
    float **made; /* tensors that had to be made anew */
    int n_made;
} lora_file;

/* The configuration, and a GGUF file's tensors with their names, pairs, types and shapes checked against the base. */
int lora_file_open(lora_file *f, const model_source *s, const char *path);
/* Every tensor is one of the attached adapter's and the other way round, or an error names it. Afterwards
 * adapter_file_read reads one from f->st. */
int lora_file_check(lora_file *f, const adapter *ad);
int lora_file_load(lora_file *f, adapter *ad); /* checks, and copies all of them into the adapter */
void lora_file_close(lora_file *f);

/* Writes an adapter whose values are loaded. PEFT: a directory's two files, targets by their last names where these
 * choose the same modules. GGUF: scale folded into B where it is not alpha / r (rsLoRA). */
int lora_file_write_peft(const adapter *ad, const model *m, const char *dir);
int lora_file_write_gguf(const adapter *ad, const model_source *s, const char *path);

#endif
