#!/usr/bin/env python3
"""Makes adamw8.safetensors: parameters and 8-bit moments after STEPS steps of bitsandbytes.optim.AdamW8bit.

    python3 tests/golden/make_adamw8.py        (versions: scripts/parity/requirements.txt; CPU; deterministic)

bitsandbytes runs this optimiser on a CPU. Its CPU library, however, does not look for the nearest entry of the map: it
snaps each quotient to a grid of 65536 points first. The CUDA kernels, and the portable implementation of the same package,
take the nearest entry. The golden is made with the package's own optimiser and its portable quantiser.

Initial values and gradients come from integers, so that the C test makes the same ones to the bit: word(i) below.
Tensors in the flat vector: SIZES, the second one too small for 8 bits. Per tensor t: p<t> and, where the moments are in 8
bits, their codes state1_<t>, state2_<t> and scales absmax1_<t>, absmax2_<t>.
"""
import os

import bitsandbytes
import numpy as np
import torch
from bitsandbytes.backends.cpu import ops
from safetensors.torch import save_file

HERE = os.path.dirname(os.path.abspath(__file__))
SIZES, STEPS = (4096, 4095, 4396), 6
QUIET = 2  # steps in which elements 256..511 have no gradient, as A has none while B is zero


def word(i):
    """Bits that look random, of an array of indices (uint32 arithmetic wraps)."""
    x = i.astype(np.uint32) * np.uint32(2654435761)
    x ^= x >> np.uint32(15)
    x *= np.uint32(2246822519)
    x ^= x >> np.uint32(13)
    return x


def values(n, at):
    """Multiples of 2^-20 in [-1, 1), each scaled by one of 2^0 .. 2^-15: the decades of the maps."""
    x = word(np.arange(at, at + n, dtype=np.uint64))
    mantissa = (x >> np.uint32(11)).astype(np.float32) / np.float32(2**20) - np.float32(1)
    return np.ldexp(mantissa, -(x & np.uint32(15)).astype(np.int32)).astype(np.float32)


def nearest(a, code, absmax_out, out, blocksize):
    key = torch._C.DispatchKeySet(torch._C.DispatchKey.CompositeExplicitAutograd)
    q, absmax = torch.ops.bitsandbytes.quantize_blockwise.default.redispatch(key, a, code, blocksize)
    out.copy_(q)
    absmax_out.copy_(absmax)


def main():
    torch.set_num_threads(1)
    ops._quant_blockwise_fp32_direct = nearest
    n = sum(SIZES)
    params = [torch.from_numpy(v).requires_grad_() for v in np.split(values(n, 0), np.cumsum(SIZES)[:-1])]
    opt = bitsandbytes.optim.AdamW8bit(params, lr=1e-2, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.1)
    for step in range(STEPS):
        grad = values(n, (step + 1) * n)
        if step < QUIET:
            grad[256:512] = 0
        for p, g in zip(params, np.split(grad, np.cumsum(SIZES)[:-1])):
            p.grad = torch.from_numpy(g.copy())
        opt.step()
    out = {}
    for t, p in enumerate(params):
        out[f"p{t}"] = p.detach()
        if opt.state[p]["state1"].dtype == torch.uint8:
            for key in ("state1", "state2", "absmax1", "absmax2"):
                out[f"{key}_{t}"] = opt.state[p][key]
    path = os.path.join(HERE, "adamw8.safetensors")
    save_file(out, path)
    os.chmod(path, 0o644)


if __name__ == "__main__":
    main()
