"""Writes what pycocotools says of small sets of detections to tests/data/detection/map.json.

  python -m venv ENV; ENV/bin/pip install pycocotools==2.0.11 numpy==2.4.6
  ENV/bin/python scripts/reference/make_map_cases.py [--out tests/data/detection/map.json]

Apart from the other scripts' environment: it needs none of torch. No file but the one named is written.
Boxes are [class, centre x, centre y, width, height] in fractions of the picture; detections end in their score.
"""
import argparse, contextlib, io, json, pathlib
import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

ROOT = pathlib.Path(__file__).resolve().parents[2]


def pixels(box, size):
    x, y, w, h = (float(np.float32(v)) for v in box)
    return [(x - w / 2) * size[0], (y - h / 2) * size[1], w * size[0], h * size[1]]


def evaluate(classes, scenes):
    data = dict(images=[], annotations=[], categories=[dict(id=k + 1, name=str(k)) for k in range(classes)])
    results = []
    for i, scene in enumerate(scenes, 1):
        data["images"].append(dict(id=i, width=scene["size"][0], height=scene["size"][1]))
        for crowd, key in enumerate(("truths", "crowds")):
            for k, *box in scene[key]:
                p = pixels(box, scene["size"])
                data["annotations"].append(dict(id=len(data["annotations"]) + 1, image_id=i, category_id=k + 1, bbox=p,
                                                area=p[2] * p[3], iscrowd=crowd))
        for k, x, y, w, h, score in scene["detections"]:
            results.append(dict(image_id=i, category_id=k + 1, bbox=pixels((x, y, w, h), scene["size"]), score=float(np.float32(score))))
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = data
        truth.createIndex()
        run = COCOeval(truth, truth.loadRes(results), "bbox")
        run.evaluate(), run.accumulate(), run.summarize()
    precision = run.eval["precision"][:, :, :, 0, 2]
    mean = lambda p: float(np.mean(p)) if (p > -1).all() else None
    known = lambda v: float(v) if v > -1 else None
    names = ("map", "map50", "map75", "small", "medium", "large")
    return dict({n: known(v) for n, v in zip(names, run.stats)}, recall=float(run.stats[8]),
                ap=[mean(precision[:, :, k]) for k in range(classes)], ap50=[mean(precision[0, :, k]) for k in range(classes)])


class Draw:
    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)

    def box(self, sizes):
        w, h = self.rng.choice(sizes, 2) * self.rng.uniform(0.7, 1.3, 2)
        return [float(v) for v in np.round([self.rng.uniform(w / 2, 1 - w / 2), self.rng.uniform(h / 2, 1 - h / 2), w, h], 3)]

    def near(self, box, noise):
        x, y, w, h = box
        a, b, c, d = self.rng.normal(0, noise, 4)
        return [round(float(v), 3) for v in (x + a * w, y + b * h, w * np.exp(c), h * np.exp(d))]

    def scene(self, size, classes, truths, sizes, noise=0.12, strays=3, repeats=1, digits=3, crowds=0, kinds=None):
        draw = lambda n: [[int(self.rng.choice(kinds or classes)), *self.box(sizes)] for _ in range(n)]
        truths, crowds = draw(truths), draw(crowds)
        found = [[k, *self.near(box, noise)] for k, *box in truths + crowds for _ in range(repeats) if self.rng.random() < 0.85]
        found += [[int(self.rng.integers(classes)), *self.box(sizes)] for _ in range(strays)]
        scores = np.round(self.rng.uniform(0.02, 1, len(found)), digits)
        order = self.rng.permutation(len(found))
        return dict(size=list(size), truths=truths, crowds=crowds, detections=[[*found[i], float(scores[i])] for i in order])


def cases():
    d = Draw(3)
    plain = [d.scene((640, 480), 4, 5, [0.1, 0.25, 0.5]) for _ in range(8)]
    yield "plain", 4, plain
    yield "ties", 3, [d.scene((320, 240), 3, 6, [0.2, 0.3], repeats=3, digits=1) for _ in range(6)]
    yield "crowds", 2, [d.scene((500, 500), 2, 4, [0.15, 0.4], crowds=2, repeats=3) for _ in range(5)]
    nothing = dict(size=[100, 80], truths=[], crowds=[], detections=[])
    lonely = dict(nothing, truths=[[3, 0.5, 0.5, 0.2, 0.2]])
    strays = d.scene((200, 200), 5, 0, [0.3], strays=5)
    yield "missing classes, empty pictures", 5, [nothing, lonely, strays] + [d.scene((200, 100), 5, 3, [0.3], kinds=[0, 2]) for _ in range(3)]
    yield "areas, more than 100 detections", 2, [d.scene((800, 600), 2, 12, [0.02, 0.05, 0.12, 0.4], noise=0.08, repeats=2, strays=4) for _ in range(4)] + [
        d.scene((400, 400), 1, 2, [0.2, 0.3], noise=0.25, repeats=70)]
    yield "perfect", 2, [dict(s, detections=[[*t, 0.5] for t in s["truths"]]) for s in [d.scene((64, 64), 2, 3, [0.3]) for _ in range(2)]]


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--out", default=ROOT / "tests" / "data" / "detection" / "map.json", type=pathlib.Path)
    args = ap.parse_args()
    lines = [json.dumps(dict(name=name, classes=k, scenes=scenes, expected=evaluate(k, scenes))) for name, k, scenes in cases()]
    args.out.write_text("[\n" + ",\n".join(lines) + "\n]\n")


if __name__ == "__main__":
    main()
