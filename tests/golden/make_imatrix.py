#!/usr/bin/env python3
"""Makes tests/golden/imatrix_tiny.json: sums of squares of what the linear layers of tiny_llama are given, over the
input_ids of tiny_llama_logits.json, by hooks on transformers' modules in fp32.

    python tests/golden/make_imatrix.py        (scripts/parity/requirements.txt)
"""
import json
import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "..", "scripts", "parity"))

import reference  # noqa: E402
import torch  # noqa: E402

NAMES = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
         "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}


def main():
    torch.set_num_threads(1)
    model, sums = reference.load(os.path.join(HERE, "tiny_llama")), {}
    for path, module in model.named_modules():
        if not path.endswith("_proj"):
            continue
        layer, rest = path.removeprefix("model.layers.").split(".", 1)
        name = f"blk.{layer}.{NAMES[rest]}.weight"

        def hook(_, args, name=name):
            sums[name] = sums.get(name, 0) + (args[0].double() ** 2).sum(dim=(0, 1))
        module.register_forward_pre_hook(hook)
    with open(os.path.join(HERE, "tiny_llama_logits.json")) as f:
        rows = json.load(f)["input_ids"]
    for ids in rows:
        reference.logits(model, ids)
    out = {"rows": sum(map(len, rows)), "sums": {n: [float(f"{x:.7g}") for x in s[::8].tolist()] for n, s in sums.items()}}
    with open(os.path.join(HERE, "imatrix_tiny.json"), "w") as f:
        json.dump(out, f, sort_keys=True)
        f.write("\n")


if __name__ == "__main__":
    main()
