"""Writes the losses of both YOLO generations, with torch's gradients, to tests/data/detection/{anchor,free}_loss.json.

  PY -m venv --system-site-packages ENV; ENV/bin/pip install --no-deps ultralytics==8.3.0
  ENV/bin/pip install opencv-python-headless==5.0.0.93 pillow==13.0.0 matplotlib==3.11.2 pandas==3.1.1 py-cpuinfo==9.0.0; ENV/bin/pip install --no-deps torchvision==0.29.2
  ENV/bin/python scripts/reference/make_detection_losses.py [--out tests/data/detection]

anchor_loss: written down here from the papers (YOLOv3, arXiv:1804.02767; YOLOv4, arXiv:2004.10934) and from the deltas that darknet's
yolo layer computes, as terms that torch derives. free_loss: what Ultralytics' own v8DetectionLoss says; nothing of it is in this
repository. Truths are [class, centre x, centre y, width, height] in fractions of the picture. Outputs and gradients: one list for each
output, row by row (pictures, lines, columns), columns as the network has them.
"""
import argparse, json, math, pathlib, types
import numpy as np
import torch
import torch.nn.functional as F

ROOT = pathlib.Path(__file__).resolve().parents[2]


def numbers(t, digits=9):
    return [float(f"{v:.{digits}g}") if v else 0 for v in t.detach().double().flatten().tolist()]


# ---------------------------------------------------------------- YOLOv3 and v4


def corners(b):
    return b[0] - b[2] / 2, b[1] - b[3] / 2, b[0] + b[2] / 2, b[1] + b[3] / 2


def overlap(kind, p, t):
    """IoU, GIoU, DIoU or CIoU of two boxes (x, y, w, h)."""
    (pl, pt, pr, pb), (tl, tt, tr, tb) = corners(p), corners(t)
    both = (torch.minimum(pr, tr) - torch.maximum(pl, tl)).clamp(0) * (torch.minimum(pb, tb) - torch.maximum(pt, tt)).clamp(0)
    union = p[2] * p[3] + t[2] * t[3] - both
    iou = both / union
    hull_w, hull_h = torch.maximum(pr, tr) - torch.minimum(pl, tl), torch.maximum(pb, tb) - torch.minimum(pt, tt)
    if kind in ("mse", "iou"):
        return iou
    if kind == "giou":
        return iou - (hull_w * hull_h - union) / (hull_w * hull_h)
    diou = iou - ((p[0] - t[0]) ** 2 + (p[1] - t[1]) ** 2) / (hull_w**2 + hull_h**2)
    if kind == "diou":
        return diou
    v = 4 / math.pi**2 * (torch.atan(t[2] / t[3]) - torch.atan(p[2] / p[3])) ** 2
    return diou - (v / (1 - iou + v)).detach() * v


def shape_iou(a, b):
    both = min(a[0], b[0]) * min(a[1], b[1])
    return both / (a[0] * a[1] + b[0] * b[1] - both)


def anchor_loss(scales, classes, outputs, truths, net):
    """Parts of the loss, summed over pictures. Everything in pixels, but where the formula says cells."""
    box, objectness, cls = (torch.zeros((), dtype=torch.float64) for _ in range(3))
    for image, boxes in enumerate(truths):
        places = {}
        boxes = [(k, torch.tensor([x * net[1], y * net[0], w * net[1], h * net[0]], dtype=torch.float64)) for k, x, y, w, h in boxes]
        for n, (_, b) in enumerate(boxes):
            fits = [(s, a, shape_iou((b[2], b[3]), anchor)) for s, scale in enumerate(scales) for a, anchor in enumerate(scale["anchors"])]
            best = max(fits, key=lambda fit: fit[2])
            for s, a, fit in fits:
                if (s, a) == best[:2] or (scales[s]["iou_thresh"] < 1 and fit > scales[s]["iou_thresh"]):
                    stride = scales[s]["stride"]
                    places.setdefault((s, a, int(b[1] / stride), int(b[0] / stride)), []).append(n)
        for s, scale in enumerate(scales):
            stride, sxy = scale["stride"], scale["scale_x_y"]
            h, w = net[0] // stride, net[1] // stride
            out = outputs[s].view(len(truths), h, w, len(scale["anchors"]), 5 + classes)[image]
            for i in range(h):
                for j in range(w):
                    for a, anchor in enumerate(scale["anchors"]):
                        t = out[i, j, a]
                        p = torch.stack([(j + torch.sigmoid(t[0]) * sxy - (sxy - 1) / 2) * stride, (i + torch.sigmoid(t[1]) * sxy - (sxy - 1) / 2) * stride,
                                         anchor[0] * torch.exp(t[2]), anchor[1] * torch.exp(t[3])])
                        ious = [overlap("iou", p, b).item() for _, b in boxes]
                        most = max(ious, default=0.0)
                        here = places.get((s, a, i, j), [])
                        if scale["truth_thresh"] < 1 and most > scale["truth_thresh"] and ious.index(most) not in here:
                            here = here + [ious.index(most)]
                        bce = lambda z, y: F.binary_cross_entropy_with_logits(z, torch.tensor(float(y), dtype=torch.float64))
                        if here or most <= scale["ignore_thresh"]:
                            objectness = objectness + scale["obj_normalizer"] * bce(t[4], bool(here))
                        if not here:
                            continue
                        known = {boxes[n][0] for n in here}
                        for n in here:
                            b = boxes[n][1]
                            weight = scale["iou_normalizer"] / len(known)
                            if scale["box_loss"] == "mse":
                                y = [(b[k] / stride - at + (sxy - 1) / 2) / sxy for k, at in ((0, j), (1, i))]
                                small = 2 - b[2] * b[3] / net[0] / net[1]
                                squares = sum((t[2 + k] - torch.log(b[2 + k] / anchor[k])) ** 2 / 2 for k in range(2))
                                box = box + weight * small * (sxy * bce(t[0], y[0]) + sxy * bce(t[1], y[1]) + squares)
                            else:
                                box = box + weight * 2 * (w + h) * (1 - overlap(scale["box_loss"], p, b))
                        e = scale["label_smoothing"]
                        for k in range(classes):
                            cls = cls + scale["cls_normalizer"] * bce(t[5 + k], 1 - e / 2 if k in known else e / 2)
    return dict(box=box, objectness=objectness, **{"class": cls})


SCALE = dict(scale_x_y=1.0, ignore_thresh=0.3, truth_thresh=1.0, iou_thresh=1.0, box_loss="mse", iou_normalizer=1.0, cls_normalizer=1.0,
             obj_normalizer=1.0, label_smoothing=0.0)
# Two classes in one place, the same class twice in one place, a box of its own, a large one.
TRUTHS = [[[0, 0.28, 0.3, 0.3, 0.35], [2, 0.27, 0.31, 0.28, 0.36], [1, 0.8, 0.2, 0.12, 0.15], [1, 0.79, 0.21, 0.13, 0.15], [0, 0.5, 0.55, 0.9, 0.8]],
          [[2, 0.6, 0.7, 0.4, 0.2]], []]


def anchor_cases():
    rng = np.random.default_rng(1)
    big, small = [[40, 22], [18, 44], [56, 50]], [[8, 10], [20, 24], [30, 12]]
    v4 = dict(SCALE, scale_x_y=1.05, iou_thresh=0.213, iou_normalizer=0.07, box_loss="ciou", label_smoothing=0.1, cls_normalizer=0.5, obj_normalizer=0.8)
    settings = [("v3", SCALE, (64, 64)), ("v4, not square", v4, (64, 96)),
                ("giou, taught what it overlaps", dict(SCALE, box_loss="giou", truth_thresh=0.45, scale_x_y=1.2), (64, 64))]
    for name, common, net in settings:
        scales = [dict(common, anchors=anchors, stride=stride) for anchors, stride in ((big, 32), (small, 16))]
        outputs = [torch.tensor(np.round(rng.normal(0, 0.6, (len(TRUTHS) * (net[0] // s["stride"]) * (net[1] // s["stride"]), 24)), 2),
                                dtype=torch.float64, requires_grad=True) for s in scales]
        parts = anchor_loss(scales, 3, outputs, TRUTHS, net)
        sum(parts.values()).backward()
        yield dict(name=name, input=net, classes=3, scales=scales, truths=TRUTHS, outputs=[numbers(o) for o in outputs],
                   parts={k: v.item() for k, v in parts.items()}, gradients=[numbers(o.grad, 7) for o in outputs])


# ---------------------------------------------------------------- YOLOv8


def free_case(name, reg_max, net, truths, seed):
    from ultralytics.utils.loss import v8DetectionLoss
    rng = np.random.default_rng(seed)
    classes, strides = 3, [8, 16, 32]
    head = types.SimpleNamespace(stride=torch.tensor(strides).float(), nc=classes, reg_max=reg_max)
    parameters = lambda: iter([torch.zeros(1)])
    model = types.SimpleNamespace(parameters=parameters, args=types.SimpleNamespace(box=7.5, cls=0.5, dfl=1.5), model=[head])
    outputs = []
    for stride in strides:
        h, w = net[0] // stride, net[1] // stride
        values = rng.normal(0, 1, (len(truths), h, w, 4 * reg_max + classes))
        values[..., 4 * reg_max :] -= 1
        # Where a truth lies, the distances lean towards it, or there is nothing to align.
        for image, boxes in enumerate(truths):
            for k, x, y, bw, bh in boxes:
                for i in range(h):
                    for j in range(w):
                        at = (j + 0.5) / w, (i + 0.5) / h
                        reach = [(at[0] - x + bw / 2) * w, (at[1] - y + bh / 2) * h, (x + bw / 2 - at[0]) * w, (y + bh / 2 - at[1]) * h]
                        if min(reach) > 0:
                            for side, r in enumerate(reach):
                                values[image, i, j, side * reg_max + min(int(r + 0.5), reg_max - 1)] += 4
        outputs.append(torch.tensor(np.round(values, 2), dtype=torch.float32, requires_grad=True))
    flat = [(image, *box) for image, boxes in enumerate(truths) for box in boxes]
    batch = dict(batch_idx=torch.tensor([f[0] for f in flat]).float(), cls=torch.tensor([[f[1]] for f in flat]).float(),
                 bboxes=torch.tensor([f[2:] for f in flat]).float())
    total, parts = v8DetectionLoss(model)([o.permute(0, 3, 1, 2) for o in outputs], batch)
    total.sum().backward()
    parts = dict(zip(("box", "class", "dfl"), (parts * len(truths)).tolist()))
    return dict(name=name, input=net, classes=classes, reg_max=reg_max, strides=strides, truths=truths, outputs=[numbers(o, 5) for o in outputs],
                parts=parts, gradients=[numbers(o.grad, 7) for o in outputs])


def free_cases():
    yield free_case("two pictures", 8, (64, 64), [TRUTHS[0], TRUTHS[1]], 2)
    crowded = [[0, 0.5, 0.5, 0.9, 0.9], [1, 0.5, 0.45, 0.7, 0.8], [2, 0.4, 0.5, 0.5, 0.9], [1, 0.6, 0.55, 0.45, 0.5], [0, 0.1, 0.1, 0.02, 0.02]]
    yield free_case("overlapping, not square, one picture empty", 4, (32, 96), [crowded, []], 4)


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--out", default=ROOT / "tests" / "data" / "detection", type=pathlib.Path)
    ap.add_argument("--only", choices=("anchor", "free"))
    args = ap.parse_args()
    torch.set_num_threads(1)
    for kind, cases in (("anchor", anchor_cases), ("free", free_cases)):
        if args.only in (None, kind):
            text = ",\n".join(json.dumps(case, separators=(",", ":")) for case in cases())
            (args.out / f"{kind}_loss.json").write_text(f"[\n{text}\n]\n")


if __name__ == "__main__":
    main()
