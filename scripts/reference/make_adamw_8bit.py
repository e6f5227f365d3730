"""Writes some steps of bitsandbytes' AdamW with 8-bit moments to tests/data/adamw_8bit.safetensors.

  PY scripts/reference/make_adamw_8bit.py [--out tests/data/adamw_8bit.safetensors]

The update is bitsandbytes' own function for it in plain PyTorch (backends/triton/kernels_optim.py), run without a compiler; its CPU
library looks codes up in a coarse table, so that small moments come out several codes too large there. Three steps on a [60, 70] weight
(16 whole blocks and a part of one), with and without gradients: `start`, `gradients` [3, 60, 70], `weight`, and the state:
`m`, `v` (codes) and `m.absmax`, `v.absmax`. Its map of a block of zeros is 127 (m) or 0 (v) with absmax 1.
"""
import argparse, importlib.metadata, os, pathlib

os.environ["TORCHDYNAMO_DISABLE"] = "1"
import bitsandbytes.functional as F
import torch
from bitsandbytes.backends.triton.kernels_optim import optimizer_update_8bit_blockwise_pytorch as update
from safetensors.torch import save_file

ROOT = pathlib.Path(__file__).resolve().parents[2]
VERSION = "0.50.2"
SHAPE, BLOCK, STEPS = (60, 70), 256, 3
SETTINGS = dict(beta1=0.9, beta2=0.999, beta3=0.0, alpha=0.0, eps=1e-8, lr=1e-2, weight_decay=0.01)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "tests/data/adamw_8bit.safetensors")
    out = parser.parse_args().out
    found = importlib.metadata.version("bitsandbytes")
    assert found == VERSION, f"bitsandbytes {found} is installed, these numbers are those of {VERSION}"

    torch.manual_seed(5)
    n = SHAPE[0] * SHAPE[1]
    start = torch.randn(n)
    # No square so small beside its block's largest that it is rounded to 0: there Retune differs on purpose.
    gradients = torch.randn(STEPS, n).sign() * torch.exp(torch.randn(STEPS, n)) * 1e-3
    gradients[:, 3 * BLOCK : 4 * BLOCK] = 0
    gradients[1:, 5 * BLOCK : 6 * BLOCK] = 0
    weight, m, v = start.clone(), torch.zeros(n, dtype=torch.uint8), torch.zeros(n, dtype=torch.uint8)
    blocks = -(n // -BLOCK)
    m_absmax, v_absmax = torch.zeros(blocks), torch.zeros(blocks)
    signed, unsigned = F.create_dynamic_map(signed=True), F.create_dynamic_map(signed=False)
    for step in range(STEPS):
        update(weight, gradients[step].clone(), m, v, step=step + 1, qmap1=signed, qmap2=unsigned, absmax1=m_absmax,
               absmax2=v_absmax, gnorm_scale=1.0, skip_zeros=False, optimizer_name="adam", **SETTINGS)
    assert ((v == 0) == (gradients == 0).all(0)).all()
    shaped = lambda t: t.reshape(SHAPE).contiguous()
    save_file({
        "start": shaped(start), "gradients": gradients.reshape(STEPS, *SHAPE).contiguous(), "weight": shaped(weight),
        "m": shaped(m), "v": shaped(v), "m.absmax": m_absmax, "v.absmax": v_absmax,
    }, out)
    print(f"{out}: {out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
