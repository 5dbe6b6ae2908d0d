/* ./merge: writes base + adapter as one model, W' = W + scale * B A; or a model as it is in another format. */
#include "core/threads.h"
#include "merge_tool.h"

static const merge_program program = {
    .name = "merge",
    .usage =
        "usage: ./merge --model M [--adapter A] --out PATH [--to FORMAT]\n"
        "\n"
        "  --model M             base model: Hugging Face directory or GGUF file\n"
        "  --adapter A           LoRA adapter: PEFT directory or GGUF file; without one the model is written as it is\n"
        "  --out PATH            where the model goes: a directory, new or empty, or a file FILE.gguf\n"
        "  --to FORMAT           f32, f16, bf16 (Hugging Face directory, or GGUF when PATH ends in .gguf); nf4 (a\n"
        "                        directory for transformers and bitsandbytes); q8_0, q6_k, q5_k_m, q5_1, q5_0, q4_k_m,\n"
        "                        q4_1, q4_0 (GGUF, tensors mixed as llama.cpp does)\n"
        "                        lora: the adapter itself, as a PEFT directory or GGUF (PATH ends in .gguf)\n"
        "                        (the base's own type; bf16 when the base is quantised)\n"
        "  --dtype NAME          f32, bf16 or f16: of floats in a directory, with --to nf4 of what stays one\n"
        "  --imatrix FILE        importance matrix that weighs the error of quantising (llama.cpp's, or ./infer's)\n"
        "  --check FILE          then compare with base and adapter apart, on a text or rows in FILE.jsonl: perplexity,\n"
        "                        KL divergence\n"
        "  --load-in-4bit[=BOOL] merge onto the NF4 weights that training with load_in_4bit saw, dequantised\n"
        "                        (what the adapter's file says it was trained on)\n"
        "  --no-double-quant     with --load-in-4bit or --to nf4: plain fp32 scales\n"
        "  --max-shard-size N    bytes of one weights file of a directory at most, 500MB or 2GiB (5GB)\n"
        "  --tokenizer DIR       take the tokenizer's files from there instead of from the model\n"
        "  --per-tensor          print size, rounding and update of every tensor\n"
        "  --overwrite           PATH may be there: a former merge is replaced\n"
        "  --threads N           0 = one for each core (0)\n"
        "  --backend NAME        auto, ref, avx2, avx512, neon (auto)\n",
    .needs = {"model", "out"},
    .knows = {"model", "adapter", "out", "to", "dtype", "imatrix", "check", "load-in-4bit", "no-double-quant",
              "max-shard-size", "tokenizer", "per-tensor", "overwrite", "threads", "backend", "help"},
};

int main(int argc, char **argv) {
    threads_settle(argv);
    return merge_main(&program, argc, argv);
}
