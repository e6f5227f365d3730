"""Writes tests/data/bnb: matrices quantised by bitsandbytes on the CPU, as raw little-endian arrays.

Run from the repository's root with bitsandbytes 0.50.2, torch and numpy: python scripts/reference/make_bnb.py
"""

import pathlib

import numpy as np
import torch
from bitsandbytes import functional as F

OUT = pathlib.Path("tests/data/bnb")
OUT.mkdir(parents=True, exist_ok=True)


def noise(n):
    """What the test makes too: 24 bits of a linear congruential generator, in -1..1, louder in some blocks."""
    s, out = 1, np.empty(n, np.float32)
    for i in range(n):
        s = (s * 1664525 + 1013904223) & 0xFFFFFFFF
        out[i] = np.float32(s >> 8) / np.float32(1 << 23) - np.float32(1)
    return out * (1 + np.arange(n) // 64 % 7).astype(np.float32)


def midpoints(kind):
    """-1, 1, and what lies midway between two codes."""
    code = F.get_4bit_type(kind, device="cpu").sort().values
    return [-1.0, 1.0, *((code[:-1] + code[1:]) / 2).tolist()]


def save(name, tensor):
    tensor.contiguous().numpy().tofile(OUT / name)


# Odd sizes, so that blocks straddle rows, the last one is short, and the last byte half empty.
matrix = torch.from_numpy(noise(151 * 127).reshape(151, 127))
edge = torch.zeros(5, 67)
flat = edge.view(-1)
flat[0:17] = torch.tensor(midpoints("nf4"))
flat[64:81] = torch.tensor(midpoints("fp4"))
flat[81:90] = -flat[72:81]
# 128..192 is a block of zeros
flat[130] = -0.0
flat[192:256] = torch.linspace(-1, 1, 64) * 1e-39
flat[256:320] = torch.linspace(-1, 1, 64) * 3e38
# the last fifteen: a short block, of zeros
save("edge.f32", edge)

for kind in ["nf4", "fp4"]:
    for name, source in [("matrix", matrix), ("edge", edge)]:
        packed, state = F.quantize_4bit(source.clone(), blocksize=64, quant_type=kind)
        save(f"{kind}_{name}.packed", packed)
        save(f"{kind}_{name}.absmax", state.absmax)
        if name == "edge":
            save(f"{kind}_{name}.decoded", F.dequantize_4bit(packed, state))

packed, state = F.quantize_4bit(matrix, blocksize=64, quant_type="nf4", compress_statistics=True)
save("double.codes", state.absmax)
save("double.absmax", state.state2.absmax)
save("double.offset", state.offset.reshape(1))
# A matrix's worth is too much to keep: its last rows.
save("double.decoded", F.dequantize_4bit(packed, state)[-5:])

int8 = matrix[:7].clone()
int8[2] = 0
int8[4, :9] = torch.tensor([127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, -127.0, 126.5])
save("int8.f32", int8)
values, scales, _ = F.int8_vectorwise_quant(int8)
save("int8.values", values)
save("int8.scales", scales)
save("int8.decoded", torch.ops.bitsandbytes.int8_vectorwise_dequant(values, scales))
