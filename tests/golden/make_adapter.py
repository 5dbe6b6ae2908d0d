#!/usr/bin/env python3
"""Makes what test_adapter.c and test_merge.c compare with, from peft and transformers on the tiny models of make_tiny.py.

    python3 tests/golden/make_adapter.py        (versions: scripts/parity/requirements.txt; CPU; deterministic)

adapter_targets.json    which modules of tiny_llama peft chooses for a target_modules, or null where it refuses
adapter_peft/           as peft saves it: bf16 tensors, rsLoRA, a regular expression as target_modules
adapter_tied/           fp32 on tiny_tied, names as target_modules
adapter_merged.json     elements of peft's merge_and_unload: [model, adapter, {tensor: [[index, value], ...]}]
"""
import json
import os
import shutil

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


def merged(cases):
    rows = []
    for model, where, dtype in cases:
        before = base(model, dtype).state_dict()
        m = PeftModel.from_pretrained(base(model, dtype), os.path.join(HERE, where)).merge_and_unload()
        out = {}
        for name, w in m.state_dict().items():
            if torch.equal(w, before[name]):
                continue
            flat = w.float().flatten()
            picks = list(range(0, flat.numel(), flat.numel() // 11))
            out[name] = [[i, flat[i].item()] for i in picks]
        rows.append({"model": model, "adapter": where, "tensors": out})
    with open(os.path.join(HERE, "adapter_merged.json"), "w") as f:
        f.write("[" + ",\n ".join(json.dumps(r) for r in rows) + "]\n")


def main():
    torch.set_num_threads(1)
    torch.manual_seed(0)
    targets()
    adapter("adapter_peft", "tiny_llama", 21, torch.bfloat16, r=3, lora_alpha=5, use_rslora=True, lora_dropout=0.05,
            target_modules=r".*layers\.1\.(self_attn\.(q|v)|mlp\.down)_proj")
    adapter("adapter_tied", "tiny_tied", 22, torch.float32, r=2, lora_alpha=4, target_modules=["k_proj", "o_proj", "up_proj"])
    merged([("tiny_llama", "tiny_train/adapter_init", torch.float32), ("tiny_llama", "adapter_peft", torch.float32),
            ("tiny_tied", "adapter_tied", torch.float32)])


if __name__ == "__main__":
    main()
