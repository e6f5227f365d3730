#!/usr/bin/env python3
"""Scenes for a detector, composed of Fashion-MNIST's ten kinds of clothes: a few of them, two to five times enlarged, on a noisy ground.

  scripts/compose_scenes.py --out scenes                       # 300 scenes to learn from, 100 held out, 416 x 416, YOLO's layout
  retune train --model $(retune fetch yolov3-tiny)/yolov3-tiny.cfg --data scenes --out clothes

Reads what `retune fetch fashion-mnist` fetched; the held-out scenes are made of its test pictures. Nothing but Python's own library.
"""
import argparse, gzip, pathlib, random, struct, subprocess, zlib


def parse():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--out", type=pathlib.Path, required=True)
    ap.add_argument("--train", type=int, default=300)
    ap.add_argument("--val", type=int, default=100)
    ap.add_argument("--side", type=int, default=416)
    ap.add_argument("--data", type=pathlib.Path, help="Fashion-MNIST's folder (default: `retune fetch fashion-mnist --print-path`)")
    ap.add_argument("--seed", type=int, default=1)
    return ap.parse_args()


def idx(path, header):
    return gzip.open(path).read()[header:]


def png(path, side, rows):
    raw = b"".join(b"\0" + bytes(row) for row in rows)
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    head = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(raw, 6)) + chunk(b"IEND", b""))


def scene(random, images, labels, side):
    """Rows of grey values, and a line for each box: class, centre, size, as fractions."""
    rows = [bytearray(random.choices(range(30, 70), k=side)) for _ in range(side)]
    taken, lines = [], []
    for _ in range(random.randint(2, 6)):
        scale, n = random.randint(2, 5), random.randrange(len(labels))
        size = 28 * scale
        x, y = random.randrange(side - size), random.randrange(side - size)
        if any(x < b + size and a < x + size and y < d + size and c < y + size for a, b, c, d in taken):
            continue
        taken.append((x, x + size, y, y + size))
        item = images[784 * n:784 * (n + 1)]
        inked = [i for i in range(784) if item[i] > 40]
        if not inked:
            continue
        for i in inked:
            row, column = divmod(i, 28)
            for dy in range(scale):
                at = x + column * scale
                rows[y + row * scale + dy][at:at + scale] = bytes([max(item[i], 80)]) * scale
        top, bottom = min(i // 28 for i in inked), max(i // 28 for i in inked) + 1
        left, right = min(i % 28 for i in inked), max(i % 28 for i in inked) + 1
        cx, cy = x + scale * (left + right) / 2, y + scale * (top + bottom) / 2
        w, h = scale * (right - left), scale * (bottom - top)
        lines.append(f"{labels[n]} {cx / side:.6f} {cy / side:.6f} {w / side:.6f} {h / side:.6f}")
    return rows, lines


def main():
    a = parse()
    data = a.data or pathlib.Path(subprocess.run(["retune", "fetch", "fashion-mnist", "--print-path"], check=True, capture_output=True, text=True).stdout.strip())
    for part, prefix, count in [("train", "train", a.train), ("val", "t10k", a.val)]:
        images, labels = idx(data / f"{prefix}-images-idx3-ubyte.gz", 16), idx(data / f"{prefix}-labels-idx1-ubyte.gz", 8)
        generator = random.Random(f"{a.seed} {part}")
        for folder in ("images", "labels"):
            (a.out / part / folder).mkdir(parents=True, exist_ok=True)
        (a.out / part / "classes.txt").write_text((data / "classes.txt").read_text())
        for i in range(count):
            rows, lines = scene(generator, images, labels, a.side)
            png(a.out / part / "images" / f"{i:04}.png", a.side, rows)
            (a.out / part / "labels" / f"{i:04}.txt").write_text("".join(line + "\n" for line in lines))
    print(f"{a.out}: {a.train} scenes to learn from, {a.val} held out")


if __name__ == "__main__":
    main()
