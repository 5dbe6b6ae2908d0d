#!/usr/bin/env python3
"""Makes tests/golden/formats_k_quant.bin: rows of real weights, an importance of each column, and the squared errors that
ggml's own quantisers leave on them.

Run with a Python that has gguf, numpy and llama-cpp-python (its libggml-base is called):
    python tests/golden/make_k_quant.py SmolLM2-135M-Instruct.Q4_1.gguf
The file's weights are on the grid of Q4_1; noise of one step gives back numbers that are on no grid.
Records as in make_formats.py; "NAME" holds the sum of squared errors without and with the importance.
"""
import ctypes
import os
import struct
import sys

import gguf
import llama_cpp
import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

HERE = os.path.dirname(os.path.abspath(__file__))
ROWS, COLS = 2, 1536
LIB = ctypes.CDLL(os.path.join(os.path.dirname(llama_cpp.__file__), "lib", "libggml-base.so"))
LIB.ggml_quantize_chunk.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64,
                                    ctypes.c_int64, ctypes.c_void_p]


def ggml(x, kind, importance):
    block, size = GGML_QUANT_SIZES[kind]
    out = np.zeros(x.size // block * size, np.uint8)
    pointer = None if importance is None else importance.ctypes.data
    LIB.ggml_quantize_chunk(int(kind), x.ctypes.data, out.ctypes.data, 0, *x.shape, pointer)
    return gguf.dequantize(out, kind).reshape(x.shape)


def main():
    rng = np.random.default_rng(1)
    tensors = {t.name: t for t in gguf.GGUFReader(sys.argv[1]).tensors}
    t = tensors["blk.11.ffn_down.weight"]
    x = gguf.dequantize(t.data, t.tensor_type).reshape(-1, COLS)[:ROWS]
    blocks = x.reshape(-1, 32)
    step = (blocks.max(1) - blocks.min(1)) / 15
    x = (blocks + (rng.random(blocks.shape) - 0.5) * step[:, None]).astype(np.float32).reshape(ROWS, COLS)
    importance = np.exp(1.5 * rng.standard_normal(COLS)).astype(np.float32)
    records = {"x": x, "importance": importance}
    for name in ("q4_0", "q4_1", "q5_0", "q5_1", "q4_k", "q5_k", "q6_k"):
        kind = GGMLQuantizationType[name.upper()]
        plain = ((ggml(x, kind, None) - x).astype(np.float64) ** 2).sum()
        weighted = (importance * (ggml(x, kind, importance) - x).astype(np.float64) ** 2).sum()
        records[name] = np.array([plain, weighted], np.float32)
    with open(os.path.join(HERE, "formats_k_quant.bin"), "wb") as f:
        for key, value in records.items():
            data = np.ascontiguousarray(value).tobytes()
            f.write(struct.pack("<12sI", key.encode(), len(data)) + data)


if __name__ == "__main__":
    main()
