#!/usr/bin/env python3
"""Makes one tiny model of each family beside llama, and what transformers and peft compute with it, for test_families.c.

    python3 tests/golden/make_families.py        (versions: scripts/parity/requirements.txt; CPU; deterministic)

tiny_FAMILY/               random BF16 weights, no tokenizer; mistral: untied, a window of 8 keys in every layer;
                           qwen2: biases on q, k and v; qwen3: norms of q and k, heads of a size that is not hidden / heads
tiny_FAMILY.gguf           the same numbers as llama.cpp's converter lays them out: matrices BF16, vectors F32
tiny_FAMILY_logits.*       .json: input_ids of a few sequences; .bin: their logits in order, [tokens, 320] little-endian f32
tiny_qwen2_window_logits.bin  of tiny_qwen2 with WINDOW set in config.json: a window in the last layer only
tiny_FAMILY_lora/          a random all-linear adapter as peft saves it, and gradients.safetensors: the gradient of the
                           summed loss of those sequences under the adapter's names
"""
import json
import os
import shutil
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "..", "scripts", "parity"))

import gguf  # noqa: E402
import numpy as np  # noqa: E402
import reference  # noqa: E402
import torch  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from transformers import AutoConfig, AutoModelForCausalLM  # noqa: E402

from make_tiny_gguf import NAMES, permute  # noqa: E402

FAMILIES = {
    "mistral": {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 8,
                "rope_theta": 10000.0, "tie_word_embeddings": False},
    "qwen2": {"num_attention_heads": 4, "num_key_value_heads": 2, "rope_theta": 1e6, "tie_word_embeddings": True},
    "qwen3": {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 24, "rope_theta": 1e6,
              "tie_word_embeddings": True},
}
WINDOW = {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}
SIZES = {"vocab_size": 320, "hidden_size": 64, "intermediate_size": 48, "num_hidden_layers": 2,
         "max_position_embeddings": 512, "rms_norm_eps": 1e-6, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
NAMES = dict(NAMES, **{"self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"})


def model_files(family, seed):
    """Random weights at a scale that makes the logits lively; norms away from 1 and biases away from 0."""
    out = os.path.join(HERE, "tiny_" + family)
    shutil.rmtree(out, ignore_errors=True)
    m = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **SIZES, **FAMILIES[family]), dtype=torch.float32)
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for n, p in m.named_parameters():
            r = torch.randn(p.shape, generator=g)
            p.copy_(1 + 0.2 * r if "norm" in n else r * (0.5 if "embed" in n or "bias" in n else 0.08 if "lm_head" in n else 0.15))
        m.to(torch.bfloat16)
    m.save_pretrained(out)
    for f in os.listdir(out):
        os.chmod(os.path.join(out, f), 0o644)
    return out


def gguf_name(name):
    stem, kind = name.rsplit(".", 1)
    if stem.startswith("model.layers."):
        layer, rest = stem.removeprefix("model.layers.").split(".", 1)
        return f"blk.{layer}.{NAMES[rest]}.{kind}"
    return f"{NAMES[stem]}.{kind}"


def gguf_file(family):
    base = os.path.join(HERE, "tiny_" + family)
    with open(os.path.join(base, "config.json")) as f:
        c = json.load(f)
    heads, kv = c["num_attention_heads"], c["num_key_value_heads"]
    w = gguf.GGUFWriter(base + ".gguf", "llama" if family == "mistral" else family)
    w.add_name("tiny_" + family)
    w.add_block_count(c["num_hidden_layers"]), w.add_context_length(c["max_position_embeddings"])
    w.add_embedding_length(c["hidden_size"]), w.add_feed_forward_length(c["intermediate_size"])
    w.add_head_count(heads), w.add_head_count_kv(kv)
    w.add_layer_norm_rms_eps(c["rms_norm_eps"]), w.add_rope_freq_base(c["rope_parameters"]["rope_theta"])
    if c.get("head_dim"):
        w.add_key_length(c["head_dim"]), w.add_value_length(c["head_dim"])
    if family == "mistral":
        w.add_rope_dimension_count(c["head_dim"]), w.add_sliding_window(c["sliding_window"])
    w.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    for name, x in load_file(os.path.join(base, "model.safetensors")).items():
        if x.dim() == 1:
            w.add_tensor(gguf_name(name), x.float().numpy())
            continue
        x = x.view(torch.int16).numpy().view(np.uint16)
        if family == "mistral" and ("q_proj" in name or "k_proj" in name):
            x = permute(x, heads if "q_proj" in name else kv)
        w.add_tensor(gguf_name(name), np.ascontiguousarray(x).view(np.uint8), raw_dtype=gguf.GGMLQuantizationType.BF16)
    w.write_header_to_file(), w.write_kv_data_to_file(), w.write_tensors_to_file(), w.close()


def logits_file(name, model, seqs):
    rows = torch.cat([reference.logits(model, s) for s in seqs])
    rows.numpy().astype("<f4").tofile(os.path.join(HERE, name + "_logits.bin"))
    return list(rows.shape)


def adapter_files(family, model, seqs, seed):
    name = "tiny_" + family
    out = os.path.join(HERE, name + "_lora")
    reference.random_adapter(model, out, "tests/golden/" + name, r=2, alpha=4, seed=seed, a_scale=0.1, b_scale=0.1)
    model = reference.with_adapter(reference.load(os.path.join(HERE, name)), out, trainable=True)
    loss = 0
    for s in seqs:
        ids = torch.tensor(s)
        if len(s) > 1:
            loss = loss + torch.nn.functional.cross_entropy(model(input_ids=ids[None]).logits[0, :-1], ids[1:], reduction="sum")
    loss.backward()
    grads = {n.replace(".default", ""): p.grad.contiguous() for n, p in model.named_parameters() if p.requires_grad}
    path = os.path.join(out, "gradients.safetensors")
    save_file(grads, path, metadata={"format": "pt"})
    os.chmod(path, 0o644)
    print(f"{family}: loss {loss.item() / sum(len(s) - 1 for s in seqs):.4f}, {len(grads)} gradients")


def main():
    torch.set_num_threads(1)
    for i, family in enumerate(FAMILIES):
        name = "tiny_" + family
        base = model_files(family, seed=21 + i)
        gguf_file(family)
        g = torch.Generator().manual_seed(31 + i)
        seqs = [torch.randint(0, 320, (n,), generator=g).tolist() for n in (1, 9, 24)]
        shape = logits_file(name, reference.load(base), seqs)
        with open(os.path.join(HERE, name + "_logits.json"), "w") as f:
            json.dump({"dtype": "f32", "shape": shape, "input_ids": seqs}, f)
            f.write("\n")
        if family == "qwen2":
            with open(os.path.join(base, "config.json")) as f:
                given = json.load(f)
            given.pop("layer_types", None)
            config = AutoConfig.for_model(**dict(given, **WINDOW))
            logits_file(name + "_window", AutoModelForCausalLM.from_pretrained(
                base, config=config, dtype=torch.float32, attn_implementation="eager").eval(), seqs)
        adapter_files(family, reference.load(base), seqs, seed=41 + i)


if __name__ == "__main__":
    sys.exit(main())
