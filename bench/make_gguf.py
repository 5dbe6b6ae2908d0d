"""Writes a GGUF file of a Llama with random weights in F16, without a tokenizer: a shape to measure speed on.

    python bench/make_gguf.py tinyllama-1.1b TARGET.gguf
"""
import os
import sys

import gguf
import numpy as np

SHAPES = {  # layers, width, heads, key heads, MLP, words, positions
    "tinyllama-1.1b": (22, 2048, 32, 4, 5632, 32000, 2048),
    "smollm2-135m": (30, 576, 9, 3, 1536, 49152, 8192),
}


def main(name, target):
    layers, dim, heads, kv, ffn, words, context = SHAPES[name]
    w = gguf.GGUFWriter(target + ".part", "llama")
    w.add_name(f"random {name}")
    w.add_block_count(layers), w.add_context_length(context), w.add_embedding_length(dim)
    w.add_feed_forward_length(ffn), w.add_head_count(heads), w.add_head_count_kv(kv)
    w.add_layer_norm_rms_eps(1e-5), w.add_rope_dimension_count(dim // heads), w.add_vocab_size(words)
    w.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    w.add_tokenizer_model("no_vocab")
    rng = np.random.default_rng(1)
    side = dim // heads * kv
    made = {}

    def matrix(name, rows, cols):  # the layers share their numbers: speed does not see them
        if (rows, cols) not in made:
            made[rows, cols] = (rng.standard_normal((rows, cols), np.float32) * (0.6 / cols**0.5)).astype(np.float16)
        w.add_tensor(name + ".weight", made[rows, cols])

    ones = np.ones(dim, np.float32)
    matrix("token_embd", words, dim)
    for i in range(layers):
        for part, rows, cols in (("attn_q", dim, dim), ("attn_k", side, dim), ("attn_v", side, dim), ("attn_output", dim, dim),
                                 ("ffn_gate", ffn, dim), ("ffn_up", ffn, dim), ("ffn_down", dim, ffn)):  # fmt: skip
            matrix(f"blk.{i}.{part}", rows, cols)
        w.add_tensor(f"blk.{i}.attn_norm.weight", ones)
        w.add_tensor(f"blk.{i}.ffn_norm.weight", ones)
    w.add_tensor("output_norm.weight", ones)
    if name != "smollm2-135m":
        matrix("output", words, dim)
    w.write_header_to_file(), w.write_kv_data_to_file(), w.write_tensors_to_file()
    w.close()
    os.rename(target + ".part", target)


if __name__ == "__main__":
    main(*sys.argv[1:3])
