"""Writes a PEFT directory with random numbers: rank 16 on all linear layers of SmolLM2-135M. Speed does not see them.

    python bench/make_adapter.py DIR
"""
import json
import os
import sys

import numpy as np

LAYERS, DIM, KV, FFN, RANK = 30, 576, 192, 1536, 16
MODULES = {
    "self_attn.q_proj": (DIM, DIM), "self_attn.k_proj": (KV, DIM), "self_attn.v_proj": (KV, DIM), "self_attn.o_proj": (DIM, DIM),
    "mlp.gate_proj": (FFN, DIM), "mlp.up_proj": (FFN, DIM), "mlp.down_proj": (DIM, FFN),
}  # fmt: skip


def main(path):
    os.makedirs(path + ".part", exist_ok=True)
    rng = np.random.default_rng(2)
    header, data, at = {"__metadata__": {"format": "pt"}}, [], 0
    for layer in range(LAYERS):
        for module, (rows, cols) in MODULES.items():
            for side, shape in (("A", (RANK, cols)), ("B", (rows, RANK))):
                x = (rng.standard_normal(shape, np.float32) * 0.01).tobytes()
                name = f"base_model.model.model.layers.{layer}.{module}.lora_{side}.weight"
                header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + len(x)]}
                data.append(x)
                at += len(x)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(os.path.join(path + ".part", "adapter_model.safetensors"), "wb") as f:
        f.write(len(text).to_bytes(8, "little") + text + b"".join(data))
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "", "r": RANK, "lora_alpha": 32,
              "lora_dropout": 0.0, "bias": "none", "target_modules": sorted(m.split(".")[1] for m in MODULES),
              "inference_mode": True, "fan_in_fan_out": False}  # fmt: skip
    with open(os.path.join(path + ".part", "adapter_config.json"), "w") as f:
        json.dump(config, f, indent=2)
    os.rename(path + ".part", path)


if __name__ == "__main__":
    main(sys.argv[1])
