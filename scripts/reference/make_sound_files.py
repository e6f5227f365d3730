"""Writes small files of sound to tests/data/sound/: two beeps, at 0.5 and 11.5 s of 12 s, as flac, mp3, ogg/vorbis and ogg/opus.

  python -m venv ENV; ENV/bin/pip install soundfile==0.14.0 numpy==2.4.6
  ENV/bin/python scripts/reference/make_sound_files.py [--out tests/data/sound]

Apart from the other scripts' environment: it needs none of torch. Stereo, 22050 Hz (Opus 24000 Hz).
"""
import argparse, pathlib
import numpy as np
import soundfile

ROOT = pathlib.Path(__file__).resolve().parents[2]


def beeps(rate):
    out = np.zeros(12 * rate, np.float32)
    t = np.arange(rate // 20) / rate
    beep = 0.5 * np.sin(2 * np.pi * (600 + 8000 * t) * t) * np.hanning(len(t))
    for at in (0.5, 11.5):
        start = int(at * rate)
        out[start : start + len(t)] = beep
    return np.stack([out, out * 0.5], axis=1)


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--out", default=ROOT / "tests" / "data" / "sound", type=pathlib.Path)
    args = ap.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    kinds = [("beeps.flac", 22_050, "FLAC", "PCM_16"), ("beeps.mp3", 22_050, "MP3", "MPEG_LAYER_III"),
             ("beeps.ogg", 22_050, "OGG", "VORBIS"), ("beeps.opus.ogg", 24_000, "OGG", "OPUS")]
    for name, rate, kind, subtype in kinds:
        soundfile.write(args.out / name, beeps(rate), rate, format=kind, subtype=subtype)


if __name__ == "__main__":
    main()
