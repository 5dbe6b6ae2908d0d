#!/usr/bin/env python3
"""Makes GGUF files of tiny_llama with gguf-py, laid out as llama.cpp's converter does, for tests/test_source.c.

    python3 tests/golden/make_tiny_gguf.py        (after make_tiny.py; versions: scripts/parity/requirements.txt; CPU)

tiny_llama.gguf              every tensor in F32; rows of q and k interleaved as the converter's permute() leaves them
tiny_llama_mixed.gguf        Q8_0, Q4_0 and F16 matrices
tiny_llama_mixed_logits.bin  transformers' logits with the weights that gguf-py dequantises from the second file, for the
                             input_ids of tiny_llama_logits.json, [tokens, 320] little-endian f32
"""
import json
import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "..", "scripts", "parity"))

import gguf  # noqa: E402
import numpy as np  # noqa: E402
import reference  # noqa: E402
import torch  # noqa: E402
from gguf import GGMLQuantizationType as Q  # noqa: E402
from safetensors.numpy import load_file  # noqa: E402

BASE = os.path.join(HERE, "tiny_llama")
NAMES = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
         "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
         "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
         "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}
MIXED = {"token_embd": Q.Q8_0, "output": Q.F16, "attn_q": Q.Q8_0, "attn_k": Q.Q4_0, "attn_v": Q.F16, "attn_output": Q.Q4_0,
         "ffn_gate": Q.Q4_0, "ffn_up": Q.Q8_0, "ffn_down": Q.Q8_0}


def gguf_name(name):
    stem = name.removesuffix(".weight")
    if stem.startswith("model.layers."):
        layer, rest = stem.removeprefix("model.layers.").split(".", 1)
        return f"blk.{layer}.{NAMES[rest]}.weight"
    return NAMES[stem] + ".weight"


def permute(w, heads):
    return w.reshape(heads, 2, w.shape[0] // heads // 2, w.shape[1]).swapaxes(1, 2).reshape(w.shape)


def unpermute(w, heads):
    return w.reshape(heads, w.shape[0] // heads // 2, 2, w.shape[1]).swapaxes(1, 2).reshape(w.shape)


def heads_of(name, config):
    return config["num_attention_heads"] if "q_proj" in name else config["num_key_value_heads"] if "k_proj" in name else 0


def add_tokenizer(w):
    with open(os.path.join(BASE, "tokenizer.json")) as f:
        t = json.load(f)
    with open(os.path.join(BASE, "chat_template.jinja")) as f:
        template = f.read()
    vocab = sorted(t["model"]["vocab"].items(), key=lambda kv: kv[1])
    added = {a["id"] for a in t["added_tokens"]}
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("smollm")  # single digits, then GPT-2's pattern
    w.add_token_list([k for k, _ in vocab])
    w.add_token_types([gguf.TokenType.CONTROL if i in added else gguf.TokenType.NORMAL for _, i in vocab])
    w.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in t["model"]["merges"]])
    w.add_bos_token_id(1), w.add_eos_token_id(2), w.add_pad_token_id(2), w.add_add_bos_token(False)
    w.add_chat_template(template)


def write(path, tensors, config, types):
    w = gguf.GGUFWriter(path, "llama")
    w.add_name("tiny_llama")
    w.add_block_count(config["num_hidden_layers"]), w.add_context_length(config["max_position_embeddings"])
    w.add_embedding_length(config["hidden_size"]), w.add_feed_forward_length(config["intermediate_size"])
    w.add_head_count(config["num_attention_heads"]), w.add_head_count_kv(config["num_key_value_heads"])
    w.add_layer_norm_rms_eps(config["rms_norm_eps"]), w.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    w.add_rope_dimension_count(config["head_dim"]), w.add_vocab_size(config["vocab_size"])
    w.add_file_type(gguf.LlamaFileType.ALL_F32 if not types else gguf.LlamaFileType.MOSTLY_Q8_0)
    add_tokenizer(w)
    for name, x in tensors.items():
        short = gguf_name(name)
        kind = types.get(short.split(".")[-2], Q.F32)
        x = permute(x, heads_of(name, config)) if heads_of(name, config) else x
        if kind == Q.F32:
            w.add_tensor(short, np.ascontiguousarray(x))
        else:
            w.add_tensor(short, gguf.quants.quantize(np.ascontiguousarray(x), kind), raw_dtype=kind)
    w.write_header_to_file(), w.write_kv_data_to_file(), w.write_tensors_to_file(), w.close()


def mixed_logits(path, config):
    """The file read back by gguf-py alone, into transformers' model."""
    stored = {t.name: gguf.quants.dequantize(t.data, t.tensor_type) for t in gguf.GGUFReader(path).tensors}
    model = reference.load(BASE)
    with torch.no_grad():
        for name, p in model.named_parameters():
            x = stored[gguf_name(name)].reshape(p.shape)
            x = unpermute(x, heads_of(name, config)) if heads_of(name, config) else x
            p.copy_(torch.from_numpy(x.copy()))
    with open(os.path.join(HERE, "tiny_llama_logits.json")) as f:
        seqs = json.load(f)["input_ids"]
    rows = torch.cat([reference.logits(model, s) for s in seqs])
    rows.numpy().astype("<f4").tofile(os.path.join(HERE, "tiny_llama_mixed_logits.bin"))


def main():
    torch.set_num_threads(1)
    tensors = load_file(os.path.join(BASE, "model.safetensors"))
    with open(os.path.join(BASE, "config.json")) as f:
        config = json.load(f)
    write(os.path.join(HERE, "tiny_llama.gguf"), tensors, config, {})
    mixed = os.path.join(HERE, "tiny_llama_mixed.gguf")
    write(mixed, tensors, config, MIXED)
    mixed_logits(mixed, config)


if __name__ == "__main__":
    sys.exit(main())
