"""Writes tests/data/pictures/cases.json: pictures resized, cropped, letterboxed and recoloured by the tools that models are trained with.

Needs an environment of its own: pillow 12.3.0, torch 2.15.0, torchvision 0.29.2, opencv-python-headless 5.0.0.93, numpy 2.4.6
(what ran is written into the file). Pillow 13 sometimes does the columns first, so single values differ by 1 there.
darknet's resizing and letterbox are its C code (image.c: resize_image, letterbox_image), and Ultralytics' letterbox its
Python code (data/augment.py: LetterBox), written down again here in float32.
"""

import argparse
import json
import pathlib

import cv2
import numpy as np
import PIL
import torch
import torchvision
from PIL import Image, ImageEnhance
from torchvision.transforms import functional as F

f32 = np.float32


def made(width, height):
    """The picture of crates/media/src/pictures/testing.rs."""
    out = np.zeros((height, width, 3), np.uint8)
    for y in range(height):
        for x in range(width):
            square = width < x * 3 < 2 * width and height < y * 3 < 2 * height
            for c in range(3):
                v = 37 * x * x + 11 * y * y + 23 * x * y + 91 * c + 5 * x * c
                out[y, x, c] = 255 - v % 32 if square else v % 256
    return out


def darknet_resize(im, w, h):
    ih, iw, _ = im.shape
    im = im.astype(f32)
    part = np.zeros((ih, w, 3), f32)
    out = np.zeros((h, w, 3), f32)
    w_scale = f32(iw - 1) / f32(w - 1) if w > 1 else f32(0)
    h_scale = f32(ih - 1) / f32(h - 1) if h > 1 else f32(0)
    for c in range(w):
        if c == w - 1 or iw == 1:
            part[:, c] = im[:, iw - 1]
        else:
            sx = f32(c) * w_scale
            ix = int(sx)
            dx = sx - f32(ix)
            part[:, c] = (f32(1) - dx) * im[:, ix] + dx * im[:, min(ix + 1, iw - 1)]
    for r in range(h):
        if r == h - 1 or ih == 1:
            out[r] = part[ih - 1]
            continue
        sy = f32(r) * h_scale
        iy = int(sy)
        dy = sy - f32(iy)
        out[r] = (f32(1) - dy) * part[iy] + dy * part[min(iy + 1, ih - 1)]
    return np.floor(out + f32(0.5)).clip(0, 255).astype(np.uint8)


def darknet_letterbox(iw, ih, w, h):
    if w / iw < h / ih:
        nw, nh = w, ih * w // iw
    else:
        nw, nh = iw * h // ih, h
    return [nw, nh], [(w - nw) // 2, (h - nh) // 2]


def ultralytics_letterbox(iw, ih, w, h):
    r = min(h / ih, w / iw)
    nw, nh = int(round(iw * r)), int(round(ih * r))
    dw, dh = (w - nw) / 2, (h - nh) / 2
    return [nw, nh], [int(round(dw - 0.1)), int(round(dh - 0.1))]


def resize_cases():
    sizes = [((9, 7), (5, 4)), ((16, 12), (31, 7)), ((33, 20), (8, 8)), ((5, 6), (13, 17)), ((40, 3), (11, 9)), ((12, 10), (12, 5)), ((7, 31), (20, 31))]
    for (w, h), (ow, oh) in sizes:
        im = made(w, h)
        pil = Image.fromarray(im)
        for name, out in [
            ("bilinear", np.asarray(pil.resize((ow, oh), Image.BILINEAR))),
            ("bicubic", np.asarray(pil.resize((ow, oh), Image.BICUBIC))),
            ("plain", cv2.resize(im, (ow, oh), interpolation=cv2.INTER_LINEAR)),
            ("darknet", darknet_resize(im, ow, oh)),
        ]:
            yield {"from": [w, h], "to": [ow, oh], "resample": name, "rgb": out.tobytes().hex()}


def torchvision_cases():
    for (w, h), shorter, size in [((21, 13), 10, 8), ((13, 22), 11, 8), ((6, 6), 9, 8), ((20, 9), 6, 8)]:
        pil = Image.fromarray(made(w, h))
        x = F.to_tensor(F.center_crop(F.resize(pil, shorter), size))
        x = F.normalize(x, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
        rows = [round(v, 6) for v in x.permute(1, 2, 0).reshape(-1).tolist()]
        yield {"from": [w, h], "shorter": shorter, "size": size, "rows": rows}


def letterbox_cases():
    sizes = [((640, 480), (416, 416)), ((480, 640), (416, 416)), ((333, 500), (320, 256)), ((101, 77), (640, 640)), ((77, 101), (96, 160)), ((1000, 3), (416, 416)), ((415, 416), (416, 416))]
    for (w, h), (ow, oh) in sizes:
        for style, place in [("darknet", darknet_letterbox), ("ultralytics", ultralytics_letterbox)]:
            size, at = place(w, h, ow, oh)
            yield {"from": [w, h], "to": [ow, oh], "style": style, "size": size, "at": at}


def colour_cases():
    pil = Image.fromarray(made(12, 9))
    enhance = {"brightness": ImageEnhance.Brightness, "contrast": ImageEnhance.Contrast, "saturation": ImageEnhance.Color}
    for kind, tool in enhance.items():
        for factor in [0.0, 0.4, 0.85, 1.3, 2.2]:
            yield {"kind": kind, "by": factor, "rgb": np.asarray(tool(pil).enhance(factor)).tobytes().hex()}
    x = F.to_tensor(pil)
    for shift in [-0.4, -0.05, 0.1, 0.5]:
        out = (F.adjust_hue(x, shift) * 255).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()
        yield {"kind": "hue", "by": shift, "rgb": out.tobytes().hex()}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(__file__).parents[2] / "tests/data/pictures")
    out = parser.parse_args().out
    versions = {"pillow": PIL.__version__, "opencv": cv2.__version__, "torch": torch.__version__.split("+")[0], "torchvision": torchvision.__version__.split("+")[0], "numpy": np.__version__}
    cases = {"versions": versions, "resize": list(resize_cases()), "torchvision": list(torchvision_cases()), "letterbox": list(letterbox_cases()), "colour": list(colour_cases())}
    out.mkdir(parents=True, exist_ok=True)
    lines = [f'"{key}": {json.dumps(value)}' if key == "versions" else f'"{key}": [\n' + ",\n".join(map(json.dumps, value)) + "\n]" for key, value in cases.items()]
    (out / "cases.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
