"""Writes tests/data/gguf_types: blocks of every GGUF type and what the `gguf` package decodes them to; encodings of the types that it can write.

Run from the repository's root with gguf 0.19.0 and numpy: python scripts/reference/make_gguf_types.py
"""

import pathlib

import numpy as np
from gguf import GGMLQuantizationType as T
from gguf.constants import GGML_QUANT_SIZES
from gguf.quants import dequantize, quantize

OUT = pathlib.Path("tests/data/gguf_types")
ROWS = 2
# Offsets of the half-precision numbers in a block: these stay ordinary numbers of either sign.
HALVES = {
    T.Q4_0: [0], T.Q4_1: [0, 2], T.Q5_0: [0], T.Q5_1: [0, 2], T.Q8_0: [0],
    T.Q2_K: [80, 82], T.Q3_K: [108], T.Q4_K: [0, 2], T.Q5_K: [0, 2], T.Q6_K: [208],
}

rng = np.random.default_rng(7)
source = (rng.standard_normal((ROWS, 256)) * np.exp(rng.standard_normal((ROWS, 256)))).astype(np.float32)
source[0, 32:64] = 0.0  # a block without any scale
source.tofile(OUT / "source.f32")

for kind, halves in HALVES.items():
    cols, size = GGML_QUANT_SIZES[kind]
    blocks = rng.integers(0, 256, (ROWS * 512 // cols, size), dtype=np.uint8)
    for at in halves:
        value = rng.standard_normal(len(blocks)).astype(np.float16)
        value[0] = np.float16(3e-7)  # a subnormal half
        blocks[:, at : at + 2] = value.view(np.uint8).reshape(-1, 2)
    blocks = blocks.reshape(ROWS, -1)
    blocks.tofile(OUT / f"{kind.name.lower()}.bin")
    dequantize(blocks, kind).astype(np.float32).tofile(OUT / f"{kind.name.lower()}.f32")

for kind in [T.F16, T.BF16, T.Q4_0, T.Q4_1, T.Q5_0, T.Q5_1, T.Q8_0]:
    quantize(source, kind).tofile(OUT / f"{kind.name.lower()}.encoded")
