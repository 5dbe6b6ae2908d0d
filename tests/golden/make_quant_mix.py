#!/usr/bin/env python3
"""Makes tests/golden/quant_mix.json: the type that llama.cpp's quantiser gives each tensor of a model of 16 layers, for
rows of 256 (feed-forward 288, a multiple of 32 only), with the head apart and tied.

    python tests/golden/make_quant_mix.py          a Python with gguf, numpy and llama-cpp-python
"""
import json
import os
import tempfile

import gguf
import llama_cpp
import numpy as np

HERE = os.path.dirname(os.path.abspath(__file__))
DIM, FFN, HEADS, LAYERS, VOCAB = 256, 288, 4, 16, 96
TYPES = {"q4_0": 2, "q4_1": 3, "q8_0": 7, "q5_0": 8, "q5_1": 9, "q4_k_m": 15, "q5_k_m": 17, "q6_k": 18, "f16": 1}


def model(path, tied):
    w = gguf.GGUFWriter(path, "llama")
    w.add_block_count(LAYERS), w.add_context_length(64), w.add_embedding_length(DIM), w.add_feed_forward_length(FFN)
    w.add_head_count(HEADS), w.add_head_count_kv(HEADS), w.add_layer_norm_rms_eps(1e-5), w.add_vocab_size(VOCAB)
    w.add_rope_dimension_count(DIM // HEADS), w.add_file_type(gguf.LlamaFileType.ALL_F32)
    w.add_tokenizer_model("gpt2"), w.add_tokenizer_pre("gpt-2"), w.add_token_merges(["a b"])
    w.add_token_list([f"t{i}" for i in range(VOCAB - 3)] + ["a", "b", "ab"]), w.add_token_types([1] * VOCAB)
    w.add_bos_token_id(0), w.add_eos_token_id(1)
    rng = np.random.default_rng(0)

    def add(name, *shape):
        w.add_tensor(name, rng.standard_normal(shape).astype(np.float32))

    add("token_embd.weight", VOCAB, DIM), add("output_norm.weight", DIM)
    if not tied:
        add("output.weight", VOCAB, DIM)
    for i in range(LAYERS):
        b = f"blk.{i}."
        add(b + "attn_norm.weight", DIM), add(b + "ffn_norm.weight", DIM)
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            add(b + name + ".weight", DIM, DIM)
        add(b + "ffn_gate.weight", FFN, DIM), add(b + "ffn_up.weight", FFN, DIM), add(b + "ffn_down.weight", DIM, FFN)
    w.write_header_to_file(), w.write_kv_data_to_file(), w.write_tensors_to_file(), w.close()


def main():
    out = {}
    with tempfile.TemporaryDirectory() as d:
        for tied in (False, True):
            source, made = os.path.join(d, "f32.gguf"), os.path.join(d, "out.gguf")
            model(source, tied)
            for name, ftype in TYPES.items():
                p = llama_cpp.llama_model_quantize_default_params()
                p.ftype, p.nthread = ftype, 1
                assert llama_cpp.llama_model_quantize(source.encode(), made.encode(), p) == 0
                tensors = {t.name: t.tensor_type.name.lower() for t in gguf.GGUFReader(made).tensors}
                common = max(set(tensors.values()) - {"f32"}, key=list(tensors.values()).count)
                others = {k: v for k, v in sorted(tensors.items()) if v != common and not k.endswith("_norm.weight")}
                assert all(v == "f32" for k, v in tensors.items() if k.endswith("_norm.weight"))
                out[name + ("_tied" if tied else "")] = {"common": common, "others": others}
    with open(os.path.join(HERE, "quant_mix.json"), "w") as f:
        json.dump(out, f, indent=1, sort_keys=True)
        f.write("\n")


if __name__ == "__main__":
    main()
