"""Writes transformers' log-mel features of a made-up sound, and its mel filters, to tests/data/sound/log_mel.safetensors.

  PY scripts/reference/make_log_mel_cases.py [--out tests/data/sound/log_mel.safetensors]

The sound is made of whole numbers, so that the test makes the very same one: a rising tone, noise, pauses of nothing, and a part that is
128 times as quiet. Of each window only some frames are kept (`*_frames` says which). `filters_*` are the values that are not zero.
"""
import argparse, pathlib
import numpy as np
from safetensors.numpy import save_file
from transformers import WhisperFeatureExtractor

ROOT = pathlib.Path(__file__).resolve().parents[2]


def sound(n):
    """As `synthetic` in crates/media/src/sound/log_mel.rs."""
    out, state, phase = np.zeros(n, np.float32), 1, 0
    for i in range(n):
        state = (state * 1664525 + 1013904223) % 2**32
        phase = (phase + 500 + i % 65536 // 8) % 65536
        tone = abs(phase - 32768) - 16384
        noise = (state >> 16) % 4096 - 2048
        part = i // 8000 % 4
        out[i] = [tone + noise, 0, noise, (tone + noise) // 128][part] / 32768
    return out


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--out", default=ROOT / "tests" / "data" / "sound" / "log_mel.safetensors", type=pathlib.Path)
    args = ap.parse_args()
    short, long = sound(30_000), sound(490_000)
    frames = dict(short=list(range(0, 200, 7)) + [2999], long=[0, 1, 2, 3, 777, 1500, 1501, 2500, 2996, 2997, 2998, 2999])
    out = {}
    for bands in (80, 128):
        extractor = WhisperFeatureExtractor(feature_size=bands)
        filters = extractor.mel_filters.astype(np.float32)  # [201, bands]
        at = np.argwhere(filters != 0)
        out[f"filters_{bands}_at"] = np.ascontiguousarray(at, np.int32)
        out[f"filters_{bands}"] = filters[filters != 0]
        for name, samples in dict(short=short, long=long).items():
            features = extractor(samples, sampling_rate=16_000, return_tensors="np")["input_features"][0]
            assert features.shape == (bands, 3000)
            out[f"{name}_{bands}"] = np.ascontiguousarray(features.T[frames[name]]).astype(np.float32)
    out |= {f"{name}_frames": np.array(at, np.int32) for name, at in frames.items()}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    save_file(out, args.out)


if __name__ == "__main__":
    main()
