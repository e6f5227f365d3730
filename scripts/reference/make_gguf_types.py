"""Writes tests/data/gguf_types: blocks of every GGUF type and what the `gguf` package decodes them to; encodings of the types that it can write.

Run from the repository's root with gguf 0.19.0, numpy, and xllamacpp 2026.10.11549 (ggml's own encoders of the k-quants, which the gguf package
lacks): python scripts/reference/make_gguf_types.py
"""

import ctypes
import pathlib

import numpy as np
import xllamacpp
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

# k-quants by ggml's reference: groups of zeros, of one value, of one sign, of one outlier; tiny and large ones.
ggml = ctypes.CDLL(next(pathlib.Path(xllamacpp.__file__).parent.glob("*.so")))
source = (rng.standard_normal((4, 512)) * np.exp(2 * rng.standard_normal((4, 512)))).astype(np.float32)
source[1] = rng.standard_normal(512)
source[2, :256] = 0.0
source[2, 256:288] = 0.25
source[2, 288:304] = -0.25
source[2, 304:336] = 0.0
source[2, 336:400] = np.abs(source[2, 336:400]) + 1
source[2, 400] = 1000.0
source[3, :256] *= 1e-12
source[3, 256:] *= 1e3
source.tofile(OUT / "k_source.f32")
for kind in [T.Q2_K, T.Q3_K, T.Q4_K, T.Q5_K, T.Q6_K]:
    cols, size = GGML_QUANT_SIZES[kind]
    encoded = np.zeros(source.size // cols * size, np.uint8)
    encode = getattr(ggml, f"quantize_row_q{kind.name[1:]}_ref")
    encode(source.ctypes.data_as(ctypes.c_void_p), encoded.ctypes.data_as(ctypes.c_void_p), ctypes.c_int64(source.size))
    encoded.tofile(OUT / f"{kind.name.lower()}.encoded")
