#!/usr/bin/env python3
"""Makes what test_adapter.c and test_merge.c compare with, from peft and transformers on the tiny models of make_tiny.py.

    python3 tests/golden/make_adapter.py        (versions: scripts/parity/requirements.txt; CPU; deterministic)

adapter_targets.json    which modules of tiny_llama peft chooses for a target_modules, or null where it refuses
adapter_peft/           as peft saves it: bf16 tensors, rsLoRA, a regular expression as target_modules
adapter_tied/           fp32 on tiny_tied, names as target_modules
adapter_tied.gguf       tiny_tied as llama.cpp's converter lays it out (q and k rows interleaved), matrices in Q8_0
adapter_merged.json     elements of peft's merge_and_unload: [{model, adapter, base, tensors: {name: [[index, value], ...]}}];
                        base nf4: on the weights that bitsandbytes quantises and dequantises; q8_0: on those of the GGUF file
"""
import json
import os
import shutil

import bitsandbytes.functional as bnb
import gguf
import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

HERE = os.path.dirname(os.path.abspath(__file__))

TARGETS = [
    ["q_proj"], ["q_proj", "v_proj"], ["self_attn.q_proj"], ["model.layers.1.mlp.down_proj"], ["proj"], ["_proj"],
    ["layers.1.self_attn.o_proj", "up_proj"], ["q_proj", "no_such_proj"], ["elf_attn.q_proj"], ["odel.layers.1.mlp.down_proj"],
    "all-linear", "q_proj", r".*\.q_proj", r".*\.(q|k)_proj", r"model\.layers\.[01]\.mlp\.(gate|up)_proj", r".*layers\.1.*proj",
    r"layers\.1\.mlp\.up_proj", r"model\.layers\.0", r".*\.1\.(self_attn|mlp)\.\w+_proj", r"(?:.*\.)?o_proj", r".*_pro", r"(?i).*\.Q_PROJ",
]


def base(name, dtype=torch.float32):
    return AutoModelForCausalLM.from_pretrained(os.path.join(HERE, name), dtype=dtype)


def targets():
    rows = []
    for t in TARGETS:
        try:
            m = get_peft_model(base("tiny_llama"), LoraConfig(r=2, target_modules=t, task_type="CAUSAL_LM"))
            chosen = sorted(m.base_model.targeted_module_names)
        except ValueError:
            chosen = None
        rows.append({"target_modules": t, "modules": chosen})
    with open(os.path.join(HERE, "adapter_targets.json"), "w") as f:
        f.write("[" + ",\n ".join(json.dumps(r) for r in rows) + "]\n")


def adapter(out, model, seed, dtype, **kw):
    out = os.path.join(HERE, out)
    shutil.rmtree(out, ignore_errors=True)
    m = get_peft_model(base(model), LoraConfig(task_type="CAUSAL_LM", **kw))
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for n, p in m.named_parameters():
            if "lora_" in n:
                p.copy_(torch.randn(p.shape, generator=g) * 0.1)
    m.save_pretrained(out)
    for f in os.listdir(out):
        if f == "README.md":
            os.remove(os.path.join(out, f))
    path = os.path.join(out, "adapter_model.safetensors")
    save_file({k: v.to(dtype).contiguous() for k, v in load_file(path).items()}, path, metadata={"format": "pt"})
    config = os.path.join(out, "adapter_config.json")
    with open(config) as f:
        c = json.load(f)
    c["base_model_name_or_path"] = "tests/golden/" + model
    if isinstance(c["target_modules"], list):
        c["target_modules"].sort()
    with open(config, "w") as f:
        json.dump(c, f, indent=2, sort_keys=True)
    for f in os.listdir(out):
        os.chmod(os.path.join(out, f), 0o644)


def nf4(w):
    codes, state = bnb.quantize_4bit(w.contiguous(), blocksize=64, quant_type="nf4", compress_statistics=False)
    return bnb.dequantize_4bit(codes, state)


def q8_0(w):
    q = gguf.quants.quantize(w.float().numpy(), gguf.GGMLQuantizationType.Q8_0)
    return torch.from_numpy(gguf.quants.dequantize(q, gguf.GGMLQuantizationType.Q8_0).copy())


def gguf_file(out, name):
    """llama.cpp's converter: its names, its permutation of q and k, its tokenizer keys."""
    m = base(name)
    c, path = m.config, os.path.join(HERE, name)
    with open(os.path.join(path, "tokenizer.json")) as f:
        tok = json.load(f)
    w = gguf.GGUFWriter(os.path.join(HERE, out), "llama")
    w.add_block_count(c.num_hidden_layers)
    w.add_context_length(c.max_position_embeddings)
    w.add_embedding_length(c.hidden_size)
    w.add_feed_forward_length(c.intermediate_size)
    w.add_head_count(c.num_attention_heads)
    w.add_head_count_kv(c.num_key_value_heads)
    w.add_rope_freq_base(c.rope_parameters["rope_theta"])
    w.add_layer_norm_rms_eps(c.rms_norm_eps)
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("smollm")
    vocab = sorted(tok["model"]["vocab"], key=tok["model"]["vocab"].get)
    special = {a["content"] for a in tok["added_tokens"]}
    w.add_token_list(vocab)
    w.add_token_types([gguf.TokenType.CONTROL if v in special else gguf.TokenType.NORMAL for v in vocab])
    w.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in tok["model"]["merges"]])
    w.add_bos_token_id(1)
    w.add_eos_token_id(2)
    w.add_pad_token_id(2)
    w.add_add_bos_token(False)
    with open(os.path.join(path, "chat_template.jinja")) as f:
        w.add_chat_template(f.read())
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, c.num_hidden_layers)
    for n, t in m.state_dict().items():
        if n == "lm_head.weight":
            continue
        a = t.float().numpy()
        if "q_proj" in n or "k_proj" in n:
            heads = c.num_attention_heads if "q_proj" in n else c.num_key_value_heads
            a = a.reshape(heads, 2, a.shape[0] // heads // 2, a.shape[1]).swapaxes(1, 2).reshape(a.shape)
        to = names.get_name(n, try_suffixes=(".weight",))
        if a.ndim == 1:
            w.add_tensor(to, a)
        else:
            w.add_tensor(to, gguf.quants.quantize(np.ascontiguousarray(a), gguf.GGMLQuantizationType.Q8_0),
                         raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def merged(cases):
    rows = []
    for model, where, kind, change in cases:
        m = base(model)
        with torch.no_grad():
            for n, p in m.named_parameters():
                if p.ndim == 2 and (kind == "q8_0" or (kind == "nf4" and "_proj" in n)):
                    p.copy_(change(p.data))
        m = PeftModel.from_pretrained(m, os.path.join(HERE, where)).merge_and_unload()
        out = {}
        for name, w in m.state_dict().items():
            if name == "lm_head.weight" and model == "tiny_tied":
                continue
            flat = w.float().flatten()
            step = max(1, flat.numel() // 11)
            out[name] = [[i, flat[i].item()] for i in range(step // 2, flat.numel(), step)]
        rows.append({"model": "adapter_tied.gguf" if kind == "q8_0" else model, "adapter": where, "base": kind, "tensors": out})
    with open(os.path.join(HERE, "adapter_merged.json"), "w") as f:
        f.write("[" + ",\n ".join(json.dumps(r) for r in rows) + "]\n")


def main():
    torch.set_num_threads(1)
    torch.manual_seed(0)
    targets()
    adapter("adapter_peft", "tiny_llama", 21, torch.bfloat16, r=3, lora_alpha=5, use_rslora=True, lora_dropout=0.05,
            target_modules=r".*layers\.1\.(self_attn\.(q|v)|mlp\.down)_proj")
    adapter("adapter_tied", "tiny_tied", 22, torch.float32, r=2, lora_alpha=4, target_modules=["k_proj", "o_proj", "up_proj"])
    gguf_file("adapter_tied.gguf", "tiny_tied")
    merged([("tiny_llama", "tiny_train/adapter_init", "none", None), ("tiny_llama", "adapter_peft", "none", None),
            ("tiny_llama", "adapter_peft", "nf4", nf4), ("tiny_tied", "adapter_tied", "none", None),
            ("tiny_tied", "adapter_tied", "q8_0", q8_0)])


if __name__ == "__main__":
    main()
