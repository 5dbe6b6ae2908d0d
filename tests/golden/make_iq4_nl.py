#!/usr/bin/env python3
"""Makes tests/golden/formats_iq4_nl.bin: IQ4_NL as ggml writes it (ggml_quantize_chunk, no importance matrix) and as gguf-py
reads it. gguf-py has no quantiser for this format, so ggml's library is called.

Run with a Python that has gguf and llama-cpp-python: python tests/golden/make_iq4_nl.py
"""
import ctypes
import importlib.util
import os

import gguf
import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

HERE = os.path.dirname(os.path.abspath(__file__))
LIB = os.path.join(os.path.dirname(importlib.util.find_spec("llama_cpp").origin), "lib", "libggml-base.so")


def floats(rng, n):
    """As make_formats.py: normal values at several scales, then blocks that are zero, constant, one-sided or full of ties."""
    x = (rng.standard_normal(n) * rng.choice([1e-3, 0.02, 1.0, 50.0], n // 32).repeat(32)).astype(np.float32)
    x[0:32] = 0
    x[32:64] = 1.5
    x[64:96] = -1.5
    x[96:128] = np.abs(x[96:128])
    x[128:160] = np.arange(32) / 2 - 8
    x[160:192] = np.where(np.arange(32) % 2 == 0, 3, -3)
    x[224:256] = -0.0
    return x


def main():
    kind = GGMLQuantizationType.IQ4_NL
    block, size = GGML_QUANT_SIZES[kind]
    x = floats(np.random.default_rng(int(kind)), 768)
    raw = np.zeros(x.size // block * size, np.uint8)
    ggml = ctypes.CDLL(LIB)
    ggml.ggml_quantize_chunk.restype = ctypes.c_size_t
    ggml.ggml_quantize_init(int(kind))
    wrote = ggml.ggml_quantize_chunk(
        ctypes.c_int(int(kind)), x.ctypes.data_as(ctypes.c_void_p), raw.ctypes.data_as(ctypes.c_void_p),
        ctypes.c_int64(0), ctypes.c_int64(1), ctypes.c_int64(x.size), None)  # fmt: skip
    assert wrote == raw.size
    y = gguf.dequantize(raw, kind).astype(np.float32).reshape(-1)
    shape = np.array([int(kind), block, size], np.int32)
    with open(os.path.join(HERE, "formats_iq4_nl.bin"), "wb") as f:
        for key, value in {"shape": shape, "x": x, "raw": raw, "y": y}.items():
            data = np.ascontiguousarray(value).tobytes()
            f.write(key.encode().ljust(12, b"\0") + len(data).to_bytes(4, "little") + data)


if __name__ == "__main__":
    main()
