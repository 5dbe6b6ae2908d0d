/* ./quantize: a model in fewer bits, as a checkpoint for bitsandbytes or a GGUF file. ./merge without an adapter, with
 * what was written printed tensor by tensor. */
#include "core/threads.h"
#include "merge_tool.h"

static const merge_program program = {
    .name = "quantize",
    .usage =
        "usage: ./quantize --model M --to FORMAT --out PATH\n"
        "\n"
        "  --model M             Hugging Face directory or GGUF file\n"
        "  --to FORMAT           nf4 (a Hugging Face directory for transformers and bitsandbytes); q8_0, q6_k, q5_k_m, q5_1,\n"
        "                        q5_0, q4_k_m, q4_1, q4_0 (a GGUF file, tensors mixed as llama.cpp does); f32, f16, bf16\n"
        "                        (a directory, or GGUF when PATH ends in .gguf)\n"
        "  --out PATH            a directory, new or empty, or a file FILE.gguf\n"
        "  --dtype NAME          f32, bf16 or f16: with --to nf4 of what stays a float (the model's own)\n"
        "  --imatrix FILE        importance matrix that weighs the error of quantising (llama.cpp's, or ./infer's)\n"
        "  --check FILE          then compare on a text (or rows in FILE.jsonl): perplexity, KL divergence\n"
        "  --no-double-quant     with --to nf4: plain fp32 scales\n"
        "  --max-shard-size N    bytes of one weights file of a directory at most, 500MB or 2GiB (5GB)\n"
        "  --tokenizer DIR       take the tokenizer's files from there instead of from the model\n"
        "  --overwrite           PATH may be there: a former one is replaced\n"
        "  --threads N           0 = one for each core (0)\n"
        "  --backend NAME        auto, ref, avx2, avx512, neon (auto)\n",
    .needs = {"model", "to", "out"},
    .knows = {"model", "to", "out", "dtype", "imatrix", "check", "no-double-quant", "max-shard-size", "tokenizer",
              "overwrite", "threads", "backend", "help"},
    .per_tensor = true,
};

int main(int argc, char **argv) {
    threads_settle(argv);
    return merge_main(&program, argc, argv);
}
