#!/usr/bin/env python3
"""Small good files made by the packages that define the formats: gguf and safetensors (and numpy). Run in this directory.

readers.gguf             one key of every type, tensors in several types
readers_types.txt        id name block bytes: gguf.constants.GGML_QUANT_SIZES
readers.safetensors      one tensor of every dtype we read, an empty one and a scalar
readers_plain.safetensors  two F32 tensors, {"format": "pt"}: what our writer must equal byte for byte
readers_sharded/         two shards and their index
"""
import json
import os

import gguf
import numpy as np
import torch
from gguf.constants import GGML_QUANT_SIZES
from safetensors.torch import save_file


def make_gguf():
    w = gguf.GGUFWriter("readers.gguf", "llama")
    w.add_uint8("t.u8", 200), w.add_int8("t.i8", -100), w.add_uint16("t.u16", 60000), w.add_int16("t.i16", -30000)
    w.add_uint32("t.u32", 4000000000), w.add_int32("t.i32", -2000000000), w.add_float32("t.f32", 0.1)
    w.add_uint64("t.u64", 2**63 + 5), w.add_int64("t.i64", -(2**62)), w.add_float64("t.f64", 0.1)
    w.add_bool("t.yes", True), w.add_bool("t.no", False), w.add_string("t.string", "gr\u00fc\u00df dich")
    w.add_array("t.ints", [1, -2, 3]), w.add_array("t.reals", [0.5, 1.5]), w.add_array("t.strings", ["a", "", "\u00e9"])
    w.add_tensor("f32", np.arange(24, dtype=np.float32).reshape(2, 3, 4))
    w.add_tensor("f16", (np.arange(8) / 4).astype(np.float16))
    x = np.linspace(-1, 1, 4 * 64, dtype=np.float32).reshape(4, 64)
    w.add_tensor("q8_0", gguf.quants.quantize(x, gguf.GGMLQuantizationType.Q8_0), raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    w.add_tensor("q4_0", gguf.quants.quantize(x, gguf.GGMLQuantizationType.Q4_0), raw_dtype=gguf.GGMLQuantizationType.Q4_0)
    w.write_header_to_file(), w.write_kv_data_to_file(), w.write_tensors_to_file(), w.close()
    with open("readers_types.txt", "w") as f:
        for t, (block, size) in GGML_QUANT_SIZES.items():
            f.write(f"{t.value} {t.name} {block} {size}\n")


def make_safetensors():
    kinds = {"f64": torch.float64, "f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16, "i64": torch.int64,
             "i32": torch.int32, "i16": torch.int16, "i8": torch.int8, "u8": torch.uint8, "bool": torch.bool}
    save_file({**{k: torch.arange(6).reshape(2, 3).to(t) for k, t in kinds.items()},
               "empty": torch.zeros(0, 4), "scalar": torch.tensor(7.0)}, "readers.safetensors",
              metadata={"format": "pt", "quote": 'a "b" \\ c\n'})
    save_file({"a.weight": torch.arange(6, dtype=torch.float32).reshape(2, 3), "b.weight": torch.ones(5)},
              "readers_plain.safetensors", metadata={"format": "pt"})
    os.makedirs("readers_sharded", exist_ok=True)
    parts = [{"a": torch.ones(3), "c": torch.zeros(2)}, {"b": torch.full((4,), 2.0)}]
    names = [f"model-{i + 1:05d}-of-00002.safetensors" for i in range(2)]
    for name, part in zip(names, parts):
        save_file(part, f"readers_sharded/{name}", metadata={"format": "pt"})
    with open("readers_sharded/model.safetensors.index.json", "w") as f:
        json.dump({"metadata": {"total_size": 36}, "weight_map": {k: n for n, p in zip(names, parts) for k in p}}, f, indent=2)


make_gguf()
make_safetensors()
