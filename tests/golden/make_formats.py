#!/usr/bin/env python3
"""Makes tests/golden/formats_*.bin: what gguf-py and bitsandbytes (on a CPU) make of fixed inputs.

Run with the Python of the parity environment: python tests/golden/make_formats.py
A file is a row of records: name (12 bytes, padded with zeros), length (uint32, little endian), data.
"""
import os
import struct

import bitsandbytes.functional as bnb
import gguf
import numpy as np
import torch
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

HERE = os.path.dirname(os.path.abspath(__file__))
QUANTISED = {"f16", "bf16", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0"}
READ_ONLY = {"q4_k", "q5_k", "q6_k"}


def save(name, **records):
    with open(os.path.join(HERE, f"formats_{name}.bin"), "wb") as f:
        for key, value in records.items():
            data = np.ascontiguousarray(value).tobytes()
            f.write(struct.pack("<12sI", key.encode(), len(data)) + data)


def floats(rng, n):
    """Normal values at several scales, and blocks that are zero, constant, one-sided or full of ties."""
    x = (rng.standard_normal(n) * rng.choice([1e-3, 0.02, 1.0, 50.0], n // 32).repeat(32)).astype(np.float32)
    x[0:32] = 0
    x[32:64] = 1.5
    x[64:96] = -1.5
    x[96:128] = np.abs(x[96:128])
    x[128:160] = np.arange(32) / 2 - 8
    x[160:192] = np.where(np.arange(32) % 2 == 0, 3, -3)
    x[192:224] = np.float32(1e-8) * x[192:224]
    x[224:256] = -0.0
    return x


def blocks(rng, name, n):
    """Random bytes with finite scales of the size real files have."""
    block, size = GGML_QUANT_SIZES[GGMLQuantizationType[name.upper()]]
    raw = rng.integers(0, 256, (n // block, size), dtype=np.uint8)
    at = {"q4_k": [0, 2], "q5_k": [0, 2], "q6_k": [208]}[name]
    for offset in at:
        scale = (rng.standard_normal(n // block) * 0.01).astype(np.float16)
        raw[:, offset : offset + 2] = scale.view(np.uint8).reshape(-1, 2)
    return raw.reshape(-1)


def ggml_formats():
    for name in sorted(QUANTISED | READ_ONLY):
        kind = GGMLQuantizationType[name.upper()]
        rng = np.random.default_rng(int(kind))
        shape = np.array([int(kind), *GGML_QUANT_SIZES[kind]], np.int32)
        if name in QUANTISED:
            x = floats(rng, 384)
            raw = gguf.quantize(x, kind).view(np.uint8)
        else:
            x = np.zeros(0, np.float32)
            raw = blocks(rng, name, 768)
        save(name, shape=shape, x=x, raw=raw, y=gguf.dequantize(raw, kind).astype(np.float32).reshape(-1))


def nf4_edge():
    """The thresholds and their neighbours, then the 1 that makes them so."""
    codes = bnb.get_4bit_type("nf4", device="cpu")
    ties = ((codes[1:] + codes[:-1]) / 2).numpy()
    edge = np.zeros(64, np.float32)
    edge[:45] = np.concatenate([ties, np.nextafter(ties, np.float32(2)), np.nextafter(ties, np.float32(-2))])
    edge[63] = 1
    return edge


def nf4_input():
    edge = nf4_edge()
    rng = np.random.default_rng(4)
    x = rng.standard_normal(64 * 17 + 37).astype(np.float32)
    x[64:128] = 0
    x[128:192] = edge
    x[192:256] = -edge
    x[256:320] = edge * np.float32(2.0**-40)
    x[320:384] *= np.float32(1e-39)
    x[384:448] *= np.float32(1e38)
    x[448:512] *= np.float32(0.02)
    return x


def nf4():
    x = nf4_input()
    t = torch.from_numpy(x)
    records = {"x": x}
    raw, state = bnb.quantize_4bit(t, blocksize=64, quant_type="nf4")
    records |= {"raw": raw.numpy(), "absmax": state.absmax.numpy(), "y": bnb.dequantize_4bit(raw, state).numpy()}
    raw, state = bnb.quantize_4bit(t[: 64 * 8 + 5], blocksize=128, quant_type="nf4")
    records |= {"raw128": raw.numpy(), "absmax128": state.absmax.numpy(), "y128": bnb.dequantize_4bit(raw, state).numpy()}
    part = t[64 * 7 :]
    raw, state = bnb.quantize_4bit(part, blocksize=64, quant_type="nf4", compress_statistics=True)
    records |= {"raw2": raw.numpy(), "code2": state.absmax.numpy(), "nested2": state.state2.absmax.numpy()}
    records |= {"offset2": state.offset.numpy(), "y2": bnb.dequantize_4bit(raw, state).numpy()}
    save("nf4", **records)


def nf4_cases():
    """Inputs that take the rare ways: values that are no numbers, short blocks of zeros, of ties, of one element."""
    rng = np.random.default_rng(6)
    odd = rng.standard_normal(64 * 5 + 9).astype(np.float32)
    odd[[3, 70, 140, 200, 322]] = [np.nan, np.inf, -np.inf, 3e38, np.inf]
    inexact = np.concatenate([nf4_edge() * np.float32(1 + k / 7) for k in range(4)])  # x / s is not x * (1 / s)
    tails = [nf4_edge()[1:] * np.float32(1 + k / 7) for k in range(4)]
    cases = [odd, np.zeros(5), np.zeros(64 * 2 + 1), [1e-40, -1e-39, 2e-38], [-0.3], [1e-45], inexact, *tails]
    records = {}
    for i, x in enumerate(cases):
        x = np.asarray(x, np.float32)
        raw, state = bnb.quantize_4bit(torch.from_numpy(x), blocksize=64, quant_type="nf4")
        records |= {f"x{i}": x, f"raw{i}": raw.numpy(), f"absmax{i}": state.absmax.numpy()}
    save("nf4_cases", **records)


def scales():
    """Double quantisation by itself: three blocks of scales, the last one cut short; deviations of all magnitudes."""
    rng = np.random.default_rng(13)
    sign = rng.choice([-1, 1], 600)
    absmax = (0.04 + sign * 0.03 * 10.0 ** rng.uniform(-5, 0, 600)).astype(np.float32)
    t = torch.from_numpy(absmax)
    offset = t.mean()
    # the order of torch's sum follows the machine: keep to inputs where it is the rounded true mean
    assert offset.numpy() == np.float32(absmax.astype(np.float64).mean())
    code, state = bnb.quantize_blockwise(t - offset, blocksize=256)
    back = bnb.dequantize_blockwise(code, state) + offset
    save("scales", absmax=absmax, offset=offset.numpy(), code=code.numpy(), nested=state.absmax.numpy(),
         map=state.code.numpy(), back=back.numpy())  # fmt: skip


if __name__ == "__main__":
    ggml_formats()
    nf4()
    nf4_cases()
    scales()
