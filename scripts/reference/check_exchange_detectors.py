"""Exchanges networks over pixels with the programs that they come from, both ways, and compares what they say with Retune's own words (CPU, f32).

  scripts/reference/setup.sh detectors                                      # the environment, see requirements-detectors.txt
  RETUNE_EXCHANGE=/tmp/exchange cargo test -p retune --test laws_images law_
  PY scripts/reference/check_exchange_detectors.py --cases /tmp/exchange    # what every method writes for tiny networks
  PY scripts/reference/check_exchange_detectors.py --program target/release/retune [--only ultralytics,torchvision,opencv,efficientnet]

With --cases: EfficientNet-Lite in the package efficientnet_lite_pytorch, YOLOv8 in Ultralytics' modules, both with PEFT; darknet's .cfg and .weights in OpenCV; VGG
as in check_exchange_images.py. With --program, files as these programs write them at their published sizes (random weights) go into the program, two steps of
training are done, and what comes out goes back. Real weights are used where `retune fetch` put them (`yolov3-tiny`, `efficientnet-lite0`, `darknet-photos`).
Prints one line a case. Exit status: 0 all right, 1 something differs.
"""
import argparse, copy, json, os, pathlib, re, shutil, subprocess, sys, tempfile
from unittest import mock
import cv2, numpy as np, torch
from torch import nn
from safetensors.torch import load_file, save_file
import check_exchange_images as images

os.environ["YOLO_OFFLINE"] = "1"
TOLERANCE, CLASSES = 1e-4, ["circle", "square", "wedge"]


def rows(scales):
    """Scales [n, channels, h, w] as one row for each picture, channels innermost."""
    return torch.cat([scale.permute(0, 2, 3, 1).flatten(1) for scale in scales], 1)


# ---------------------------------------------------------------- the networks of config.json in their own programs


class Yolov8(nn.Module):
    """Of a config.json, any widths: Ultralytics' modules, put together as its yolov8.yaml says."""

    def __init__(self, c):
        super().__init__()
        from ultralytics.nn.modules import C2f, Concat, Conv, Detect, SPPF
        from ultralytics.nn.modules.block import DFL
        from ultralytics.utils.torch_utils import initialize_weights
        (w, n), (nw, nn_) = (c["widths"], c["repeats"]), (c["neck_widths"], c["neck_repeats"])
        up = lambda: nn.Upsample(None, 2, "nearest")
        layers = [(-1, Conv(3, w[0], 3, 2))]
        for i in range(4):
            layers += [(-1, Conv(w[i], w[i + 1], 3, 2)), (-1, C2f(w[i + 1], w[i + 1], n[i], True))]
        pyramid = SPPF(w[4], w[4])
        pyramid.cv1.act = nn.SiLU()             # YOLO26 has none there, and that is what the class makes now
        layers += [(-1, pyramid), (-1, up()), ([-1, 6], Concat()), (-1, C2f(w[4] + w[3], nw[0], nn_[0]))]
        layers += [(-1, up()), ([-1, 4], Concat()), (-1, C2f(nw[0] + w[2], nw[1], nn_[1]))]
        layers += [(-1, Conv(nw[1], nw[1], 3, 2)), ([-1, 12], Concat()), (-1, C2f(nw[1] + nw[0], nw[2], nn_[2]))]
        layers += [(-1, Conv(nw[2], nw[2], 3, 2)), ([-1, 9], Concat()), (-1, C2f(nw[2] + w[4], nw[3], nn_[3]))]
        head = Detect(nc=classes_of(c), ch=nw[1:])
        for name, mid, out in (("cv2", c["towers"][0], 4 * c["reg_max"]), ("cv3", c["towers"][1], classes_of(c))):
            setattr(head, name, nn.ModuleList(nn.Sequential(Conv(x, mid, 3), Conv(mid, mid, 3), nn.Conv2d(mid, out, 1)) for x in nw[1:]))
        head.reg_max, head.dfl = c["reg_max"], DFL(c["reg_max"])
        self.reads = [reads for reads, _ in layers]
        self.model = nn.Sequential(*(layer for _, layer in layers), head)
        initialize_weights(self)

    def forward(self, x):
        seen = []
        for reads, layer in zip(self.reads, self.model):
            x = layer(x) if reads == -1 else layer([x, seen[reads[1]]])
            seen.append(x)
        return rows(towers(self.model[-1], [seen[i] for i in (15, 18, 21)]))


def towers(head, xs):
    return [torch.cat([box(x), cls(x)], 1) for x, box, cls in zip(xs, head.cv2, head.cv3)]


def classes_of(c):
    return len(c["id2label"]) if "id2label" in c else c["num_labels"]


def efficientnet(c):
    """Of a config.json, any widths: the package's own classes."""
    from efficientnet_lite_pytorch import model as package
    from efficientnet_lite_pytorch.utils import BlockArgs, Conv2dDynamicSamePadding, GlobalParams
    rounded = lambda filters, *_: {32: c["stem"], 1280: c["head"]}.get(filters, filters) if isinstance(filters, int) else filters[0]
    width, blocks = [c["stem"]], []
    for s in c["stages"]:
        # Lists pass by the rounding.
        blocks.append(BlockArgs(s["repeats"], s["kernel"], [s["stride"]], s["expand"], width, [s["width"]], None, True))
        width = [s["width"]]
    # Without a size, paddings follow the pictures.
    settings = GlobalParams(image_size=None, dropout_rate=0.2, num_classes=classes_of(c), batch_norm_momentum=0.99, batch_norm_epsilon=c.get("norm_eps", 1e-3),
                            drop_connect_rate=0.2, relu_fn="relu6", fix_head_stem=False, local_pooling=False)
    # It rounds to its published widths.
    with mock.patch.object(package, "round_filters", rounded):
        net = package.EfficientNet(blocks, settings)

    class Same(nn.Conv2d):
        """PEFT makes its factors of the class that it finds, with nn.Conv2d's arguments, which the package's has not."""

        forward = Conv2dDynamicSamePadding.forward

    for m in net.modules():
        if isinstance(m, Conv2dDynamicSamePadding):
            m.__class__ = Same
    return net


def opencv(cfg, pictures):
    """What the last convolutions of darknet's files say in OpenCV, before their [yolo] layers, which would turn them into boxes.

    OpenCV's batch norms add 1e-6 to the variance, darknet's kernels for training, and Retune, 1e-5. That shows in the fourth digit, so the rest is put into the variances here.
    """
    with tempfile.TemporaryDirectory() as folder:
        weights = pathlib.Path(folder) / "moved.weights"
        moved_variances(cfg, weights)
        net = cv2.dnn.readNetFromDarknet(str(cfg), str(weights))
    sections = re.findall(r"^\[(\w+)\]", cfg.read_text(), re.M)[1:]
    names = [f"conv_{i - 1}" for i, section in enumerate(sections) if section == "yolo"]
    # One by one: OpenCV's importer fixes the batch.
    said = []
    for picture in pictures:
        net.setInput(picture[None].numpy())
        said.append([torch.from_numpy(np.array(out)) for out in net.forward(names)])
    return [torch.cat(scale) for scale in zip(*said)]


def moved_variances(cfg, out):
    stored = cfg.with_suffix(".weights").read_bytes()
    # Since version 0.2 the pictures seen are counted in 64 bits.
    major, minor = np.frombuffer(stored, np.int32, 2)
    header = 20 if major * 10 + minor >= 2 else 16
    numbers, at = np.frombuffer(stored, np.float32, offset=header).copy(), 0
    for n, norm, fan in convolutions(cfg.read_text()):
        if norm:
            numbers[at + 3 * n : at + 4 * n] += 9e-6
        at += n * (4 if norm else 1) + n * fan
    if at != len(numbers):
        raise ValueError(f"{cfg}: {at} weights are due, {len(numbers)} are there")
    out.write_bytes(stored[:header] + numbers.tobytes())


def of_a_case(folder, pictures):
    if json.loads((folder / "base/config.json").read_text())["model_type"] != "darknet":
        return images.answer(folder, pictures)
    cfg = folder / "darknet.cfg"
    return ("darknet's files", rows(opencv(cfg, pictures))) if cfg.exists() else ("adapters", None)


# ---------------------------------------------------------------- the program


class Program:
    def __init__(self, path, work):
        self.path, self.work = pathlib.Path(path).resolve(), pathlib.Path(work)
        self.worst, self.wrong, self.right = {}, 0, 0

    def run(self, *words, refused=None):
        done = subprocess.run([self.path, *map(str, words)], capture_output=True, text=True, cwd=self.work)
        if refused is None and done.returncode:
            raise RuntimeError(f"retune {' '.join(map(str, words))}: {done.stderr.strip()}")
        return done

    def logits(self, pictures, *words):
        """What it says of pictures [n, 3, height, width]: a classifier's logits, or a detector's scales."""
        save_file({"pictures": pictures.permute(0, 2, 3, 1).contiguous()}, self.work / "pictures.safetensors")
        self.run("logits", *words, "--pictures", "pictures.safetensors", "--out", "logits.safetensors")
        said = load_file(self.work / "logits.safetensors")
        return said["logits"] if "logits" in said else [said[f"logits.{i}"].permute(0, 3, 1, 2) for i in range(len(said))]

    def same(self, what, ours, theirs):
        pairs = zip(ours, theirs, strict=True) if isinstance(ours, list) else [(ours, theirs)]
        self.tell(what, max(images.off(a, b) if a.shape == b.shape else float("inf") for a, b in pairs))

    def tell(self, what, off, limit=TOLERANCE):
        good = off <= limit
        self.right, self.wrong = self.right + good, self.wrong + (not good)
        print(f"{'ok    ' if good else 'FAILED'} {what}: {off:.1e}", flush=True)

    def refuses(self, what, file, reason):
        done = self.run("predict", "--model", file, "--image", "picture.png", refused=True)
        good = done.returncode != 0 and reason in done.stderr
        self.right, self.wrong = self.right + good, self.wrong + (not good)
        print(f"{'ok    ' if good else 'FAILED'} {what} is refused: {done.stderr.strip().splitlines()[-1:]}", flush=True)

    def trained(self, model, data, size, bases=None):
        """Two steps of each method: (name, what `--model` and `--adapter` are, and the folder or None that is whole already)."""
        for method in ("head", "lora", "full"):
            out = self.work / f"{pathlib.Path(model).stem}-{method}"
            shutil.rmtree(out, ignore_errors=True)
            self.run("train", "--model", model, "--data", data, "--method", method, "--steps", 2, "--batch", 2, "--image-size", size, "--lr", 1e-2, "--out", out)
            if method == "full":
                yield method, ["--model", out], out
            else:
                yield method, ["--model", model, "--adapter", out], None


def boxes_data(work):
    """Coloured boxes on noise, three classes, in Ultralytics' layout; a picture of 512 x 384 besides."""
    r, data = np.random.default_rng(1), work / "boxes"
    for split, n in (("train", 6), ("val", 4)):
        for part in ("images", "labels"):
            (data / part / split).mkdir(parents=True, exist_ok=True)
        for i in range(n):
            canvas, lines = r.integers(60, 120, (96, 96, 3), dtype=np.uint8), []
            for _ in range(2):
                c, (w, h) = int(r.integers(3)), r.integers(20, 40, 2)
                x, y = r.integers(0, 96 - w), r.integers(0, 96 - h)
                canvas[y : y + h, x : x + w] = np.eye(3, dtype=np.uint8)[c] * 250
                lines.append(f"{c} {(x + w / 2) / 96:.5f} {(y + h / 2) / 96:.5f} {w / 96:.5f} {h / 96:.5f}\n")
            cv2.imwrite(str(data / "images" / split / f"{i}.png"), canvas)
            (data / "labels" / split / f"{i}.txt").write_text("".join(lines))
    names = "".join(f"  {i}: {name}\n" for i, name in enumerate(CLASSES))
    (data / "data.yaml").write_text(f"path: {data}\ntrain: images/train\nval: images/val\nnames:\n{names}")
    for name, (w, h) in (("picture", (512, 384)), ("square", (416, 416))):
        noise = r.integers(0, 255, (h // 8, w // 8, 3), dtype=np.uint8)
        cv2.imwrite(str(work / f"{name}.png"), cv2.resize(noise, (w, h), interpolation=cv2.INTER_CUBIC))
    return data


def classes_data(work):
    r, data = np.random.default_rng(2), work / "classes"
    for i, name in enumerate(CLASSES):
        (data / name).mkdir(parents=True, exist_ok=True)
        for k in range(4):
            cv2.imwrite(str(data / name / f"{k}.png"), r.integers(0, 100, (40, 40, 3), dtype=np.uint8) + np.eye(3, dtype=np.uint8)[i] * 150)
    return data


# ---------------------------------------------------------------- Ultralytics


def settled(net, side):
    """Random batch norms that have seen pictures."""
    torch.manual_seed(0)
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    for m in norms:
        m.momentum = 0.5
        nn.init.uniform_(m.weight, 0.8, 1.4), nn.init.normal_(m.bias, 0, 0.2)
    with torch.no_grad():
        net.train()
        for _ in range(4):
            net(torch.rand(2, 3, side, side))
    for m in norms:
        m.momentum = 0.03
    return net.eval()


def awake(net):
    """A detector whose classes are neither sure nor silent."""
    settled(net, 160)
    with torch.no_grad():
        for tower in net.model[-1].cv3:
            tower[-1].bias.normal_(-2.6, 0.3), tower[-1].weight.normal_(0, 0.12)
    return net


def said_by(net, pictures):
    """The scales of a DetectionModel."""
    seen = {}
    hook = net.model[-1].register_forward_pre_hook(lambda _, args: seen.update(xs=list(args[0])))
    with torch.no_grad():
        net(pictures)
        hook.remove()
        return towers(net.model[-1], seen["xs"])


def into_ultralytics(folder, file):
    """A folder of Retune's in Ultralytics, on the file that training began from, as docs/vision.md tells it."""
    from ultralytics import YOLO
    names = json.loads((folder / "config.json").read_text())["id2label"]
    yolo = YOLO(file)
    net = yolo.model.float()
    head = net.model[-1]
    for tower in head.cv3:
        tower[-1] = nn.Conv2d(tower[-1].in_channels, len(names), 1)
    head.nc, head.no, net.names = len(names), len(names) + 4 * head.reg_max, {int(i): name for i, name in names.items()}
    net.load_state_dict(load_file(folder / "model.safetensors"), strict=True)
    net.eval()
    return yolo


def checkpoints(work, data):
    """Files as users of Ultralytics have them: (file, the network that it holds in f32, its yaml, its classes)."""
    from ultralytics import YOLO
    from ultralytics.nn.tasks import DetectionModel

    def yolo(yaml, nc, names=None):
        model = YOLO(yaml)
        torch.manual_seed(8)
        model.model = awake(DetectionModel(yaml, nc=nc, verbose=False))
        model.model.names = names or {i: f"class {i}" for i in range(nc)}
        return model

    def saved(model, name):
        model.save(work / name)
        return work / name, copy.deepcopy(model.model).half().float().eval()

    names = dict(enumerate(CLASSES))
    for yaml, nc in (("yolov8n.yaml", 80), ("yolov8s.yaml", 3)):
        yield *saved(yolo(yaml, nc), yaml.replace("yaml", "pt")), yaml, nc
    three = yolo("yolov8n.yaml", 3, names)
    whole = copy.deepcopy(three.model)
    for name, what, options in (
        ("module.pt", whole, {}),
        ("state.pt", whole.state_dict(), {}),
        ("legacy.pt", whole.state_dict(), {"_use_new_zipfile_serialization": False}),
        ("wrapped.pt", {"epoch": 3, "state_dict": {f"module.{k}": v for k, v in whole.state_dict().items()}, "optimizer": {"state": {}}}, {}),
    ):
        torch.save(what, work / name, **options)
        yield work / name, whole, "yolov8n.yaml", 3
    save_file(whole.state_dict(), work / "state.safetensors")
    yield work / "state.safetensors", whole, "yolov8n.yaml", 3
    # The head that version 8.3.0 and some behind it gave every new network.
    from ultralytics.nn.modules import Detect
    separable = copy.deepcopy(three)
    head = separable.model.model[-1]
    head.cv3 = Detect(nc=3, ch=[tower[0].conv.in_channels for tower in head.cv3]).cv3
    for m in head.cv3.modules():
        m.eps = 1e-3
    awake(separable.model)
    yield *saved(separable, "separable.pt"), "yolov8n.yaml", 3
    fused = copy.deepcopy(three)
    fused.fuse()
    yield *saved(fused, "fused.pt"), "yolov8n.yaml", 3
    # Ultralytics' own training, with the checkpoint that it goes on from and the one that it strips at the end.
    three.save(work / "three.pt")
    start = YOLO(work / "three.pt")
    start.train(data=str(data / "data.yaml"), epochs=2, imgsz=96, batch=2, device="cpu", workers=0, save_period=1, plots=False, val=False, verbose=False,
                project=str(work / "runs"), name="run", exist_ok=True)
    for file in sorted((work / "runs/run/weights").glob("*.pt")):
        held = torch.load(file, weights_only=False)
        yield file, (held.get("ema") or held["model"]).float().eval(), "yolov8n.yaml", 3


def found_by_ultralytics(file, picture, size, confidence, overlap):
    from ultralytics import YOLO
    boxes = YOLO(file).predict(str(picture), imgsz=size, conf=confidence, iou=overlap, rect=False, verbose=False, device="cpu", half=False)[0].boxes
    all_ = torch.cat([boxes.xyxy, boxes.conf[:, None], boxes.cls[:, None]], 1)
    # It tells of what lies in the letterbox's bars, too, as boxes without an area.
    return all_[(all_[:, 2:4] > all_[:, :2]).all(1)]


def between(scores):
    """A score that about a hundred boxes reach, far from that of any."""
    scores = scores.sort(descending=True).values[60:200]
    at = int((scores[:-1] - scores[1:]).argmax())
    return float(scores[at] + scores[at + 1]) / 2


def found(program, confidence, overlap, *words):
    line = json.loads(program.run("predict", *words, "--confidence", confidence, "--overlap", overlap, "--json").stdout.splitlines()[0])
    return line["objects"]


def same_boxes(program, what, ours, theirs, labels, suppressed=True):
    """Boxes in pixels of the picture. Behind suppression one in fifty may be another: which of two goes may hang on scores that are equal but for rounding."""
    ours, left = [o["box"] + [o["score"], labels.index(o["label"])] for o in ours], theirs.tolist()
    worst, limit, alone = 0.0, 3e-3, 0
    for o in ours:
        gap = lambda t: max(abs(a - b) for a, b in zip(o[:4], t[:4])) / 100 + abs(o[4] - t[4]) + (o[5] != t[5])
        nearest = min(left, key=gap, default=None)
        if nearest is None or gap(nearest) > limit:
            alone += 1
            continue
        left.remove(nearest)
        worst = max(worst, gap(nearest))
    most = 1 + len(ours) // 50 if suppressed else 0
    good = ours and alone <= most and len(left) <= most
    program.tell(f"{what}: {len(ours)} boxes, {max(alone, len(left))} others (scores, and pixels / 100)", worst if good else float("inf"), limit)


def ultralytics(program):
    import ultralytics as package
    from ultralytics import YOLO
    from ultralytics.nn.tasks import DetectionModel
    work, data = program.work, boxes_data(program.work)
    print(f"Ultralytics {package.__version__}, torch {torch.__version__}")
    pictures = torch.rand(2, 3, 96, 128, generator=torch.Generator().manual_seed(3))
    trained = {"yolov8n.pt", "yolov8s.pt", "separable.pt", "fused.pt", "last.pt"}
    for file, net, yaml, nc in checkpoints(work, data):
        program.same(f"{file.name} read", program.logits(pictures, "--model", file), said_by(net, pictures))
        if file.name in ("yolov8n.pt", "yolov8s.pt", "fused.pt", "last.pt"):
            size, labels = 96 if file.name == "last.pt" else 640, list(net.names.values())
            for picture in ("picture.png", "square.png"):
                least = between(found_by_ultralytics(file, work / picture, size, 0.001, 1.0)[:, 4])
                # All that score enough; then without those that overlap.
                for overlap in (1.0, 0.45):
                    ours = found(program, least, overlap, "--model", file, "--image", picture)
                    theirs = found_by_ultralytics(file, work / picture, size, least, overlap)
                    same_boxes(program, f"{file.name}, {picture}, overlaps up to {overlap}", ours, theirs, labels, overlap < 1)
        for method, words, whole in program.trained(file, data, 96) if file.name in trained else ():
            ours = program.logits(pictures, *words)
            if whole is None:
                whole = work / f"{file.stem}-{method}-merged"
                program.run("merge", *words, "--out", whole)
            what = f"{file.name}, {method}, back by load_state_dict"
            yolo = into_ultralytics(whole, file)
            program.same(what, ours, said_by(yolo.model, pictures))
            program.same(f"{file.name}, {method}, read again", program.logits(pictures, "--model", whole), said_by(yolo.model, pictures))
            program.run("eval", *words, "--data", data, "--json")
            if file.name in ("yolov8s.pt", "last.pt"):
                # As wide for three classes as for the file's.
                new = DetectionModel(yaml, nc=len(CLASSES), verbose=False)
                new.load_state_dict(load_file(whole / "model.safetensors"), strict=True)
                program.same(f"{file.name}, {method}, in a new DetectionModel", ours, said_by(new.eval(), pictures))
            if (file.name, method) == ("yolov8n.pt", "lora"):
                peft_in_ultralytics(program, words[-1], yaml, nc, pictures, ours)
                yolo.save(work / "back.pt")
                halves = copy.deepcopy(yolo.model).half().float()
                program.same("and saved by Ultralytics, read", program.logits(pictures, "--model", work / "back.pt"), said_by(halves, pictures))
                least = between(found_by_ultralytics(work / "back.pt", work / "square.png", 640, 0.001, 1.0)[:, 4])
                boxes = [found(program, least, 1.0, "--model", work / "back.pt", "--image", "square.png"),
                         found_by_ultralytics(work / "back.pt", work / "square.png", 640, least, 1.0)]
                same_boxes(program, "and its boxes", *boxes, CLASSES, suppressed=False)
    for yaml, reason in (
        ("yolov5n", "layer 2 is C3, not C2f"), ("yolov6n", "ReLU"), ("yolov9t", "ELAN1"), ("yolov10n", "SCDown"), ("yolo11n", "C3k2"), ("yolo12n", "C3k2"),
        ("yolov8n-seg", '"segment"'), ("yolov8n-pose", '"pose"'), ("yolov8n-obb", '"obb"'), ("yolov8n-cls", '"classify"'), ("yolov8n-p2", "layer 16"),
        ("yolov8n-p6", "layer 9"), ("yolov8n-ghost", "GhostConv"), ("yolov8-world", "layer 12"),
    ):
        file = work / f"{yaml}.pt"
        model = YOLO(f"{yaml}.yaml")
        model.save(file)
        program.refuses(yaml, file, reason)
        torch.save(model.model.state_dict(), file)
        program.refuses(f"{yaml}, names alone", file, "no YOLOv8 detector")
        file.unlink()


def peft_in_ultralytics(program, adapter, yaml, nc, pictures, ours):
    """A LoRA on the file that it was made for, with PEFT; its new head lies in it."""
    import peft
    from ultralytics.nn.tasks import DetectionModel
    net = DetectionModel(yaml, nc=nc, verbose=False)
    net.load_state_dict(torch.load(program.work / "yolov8n.pt", weights_only=False)["model"].float().state_dict())
    for tower in net.model[-1].cv3:
        tower[2] = nn.Conv2d(tower[2].in_channels, len(CLASSES), 1)
    net = peft.PeftModel.from_pretrained(Bare(net), adapter).eval()
    program.same("its adapter in PEFT on Ultralytics' network", rows(ours), net(pictures).detach())


class Bare(nn.Module):
    """A DetectionModel that says its raw scales: PEFT's wrappers stand where its own code does not look."""

    def __init__(self, net):
        super().__init__()
        self.model, self.save = net.model, net.save

    def forward(self, x):
        seen = []
        for m in self.model[:-1]:
            x = seen[m.f] if m.f != -1 and isinstance(m.f, int) else [x if j == -1 else seen[j] for j in m.f] if m.f != -1 else x
            x = m(x)
            seen.append(x)
        return rows(towers(self.model[-1], [seen[j] for j in self.model[-1].f]))


# ---------------------------------------------------------------- torchvision, EfficientNet-Lite, darknet


def torchvision(program):
    import torchvision as package
    from torchvision.models import vgg11, vgg16_bn
    work, data = program.work, classes_data(program.work)
    print(f"torchvision {package.__version__}")
    pictures = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(3))
    old = {"_use_new_zipfile_serialization": False}
    for make in (vgg11, vgg16_bn):
        torch.manual_seed(5)
        net, name = make(num_classes=10).eval(), make.__name__
        for m in net.modules():
            if isinstance(m, nn.BatchNorm2d):
                nn.init.uniform_(m.running_mean, -0.2, 0.2), nn.init.uniform_(m.running_var, 0.5, 1.5), nn.init.uniform_(m.weight, 0.7, 1.3), nn.init.normal_(m.bias, 0, 0.1)
        state = net.state_dict()
        parallel = nn.DataParallel(net).state_dict()
        with torch.no_grad():
            theirs = net(pictures)
        file = work / f"{name}.pth"
        for what, held, options in (
            ("state dict", state, {}), ("state dict of old", state, old), ("checkpoint", {"epoch": 9, "state_dict": state, "best": 0.5}, {}),
            ("checkpoint of DataParallel of old", {"state_dict": parallel, "arch": name}, old), ("DataParallel", parallel, {}), ("whole module", net, {}),
        ):
            torch.save(held, file, **options)
            program.same(f"{name}, {what}", program.logits(pictures, "--model", file), theirs)
        torch.save(state, file)
        for method, words, whole in program.trained(file, data, 224):
            ours = program.logits(pictures, *words)
            if whole is None:
                whole = work / f"{name}-{method}-merged"
                program.run("merge", *words, "--out", whole)
            again = make(num_classes=len(CLASSES)).eval()
            again.load_state_dict(load_file(whole / "model.safetensors"), strict=True)
            with torch.no_grad():
                program.same(f"{name}, {method}, back by load_state_dict", ours, again(pictures))
            for folder in {whole, work / f"{name}-{method}"}:
                shutil.rmtree(folder)
        file.unlink()


def efficientnet_lite(program):
    from efficientnet_lite_pytorch import EfficientNet
    work, data = program.work, classes_data(program.work)
    pictures = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(3))
    fetched = fetched_folder("efficientnet-lite0")
    torch.manual_seed(5)
    file, net = work / "lite0.pth", EfficientNet.from_name("efficientnet-lite0").eval()
    if fetched:
        file = fetched / "efficientnet-lite0.pth"
        net.load_state_dict(torch.load(file))
    else:
        print("SKIPPED the real weights: `retune fetch efficientnet-lite0` gets them")
        torch.save(net.state_dict(), file, _use_new_zipfile_serialization=False)
    with torch.no_grad():
        program.same("efficientnet-lite0 read", program.logits(pictures, "--model", file), net(pictures))
    for method, words, whole in program.trained(file, data, 224):
        ours = program.logits(pictures, *words)
        if whole is None:
            whole = work / f"lite0-{method}-merged"
            program.run("merge", *words, "--out", whole)
        again = EfficientNet.from_name("efficientnet-lite0", num_classes=len(CLASSES)).eval()
        again.load_state_dict(load_file(whole / "model.safetensors"), strict=True)
        with torch.no_grad():
            program.same(f"efficientnet-lite0, {method}, back by load_state_dict", ours, again(pictures))
    # The larger ones differ in widths, depths and the pictures' size.
    for n in (1, 4):
        net, side = EfficientNet.from_name(f"efficientnet-lite{n}"), EfficientNet.get_image_size(f"efficientnet-lite{n}")
        net._global_params = net._global_params._replace(local_pooling=False)
        settled(net, side)
        torch.save(net.state_dict(), work / "lite.pth")
        x = torch.randn(1, 3, side, side)
        with torch.no_grad():
            program.same(f"efficientnet-lite{n} read", program.logits(x, "--model", "lite.pth"), net(x))


def fetched_folder(name):
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache")) / "retune"
    return next(iter(sorted(cache.glob(f"{name}-*"))), None)


def convolutions(text):
    """Of each convolution of a .cfg: its filters, whether a norm follows, and the inputs of a filter. In the order of darknet's .weights."""
    channels, found = [], []
    sections = [(kind, dict(re.findall(r"^\s*(\w+)\s*=\s*(.*?)\s*$", body, re.M))) for kind, body in re.findall(r"^\[(\w+)\]([^\[]*)", text, re.M)][1:]
    for i, (kind, o) in enumerate(sections):
        before = channels[-1] if channels else 3
        if kind == "convolutional":
            n, size = int(o["filters"]), int(o.get("size", 1))
            found.append((n, o.get("batch_normalize", "0") == "1", before // int(o.get("groups", 1)) * size * size))
            channels.append(n)
        elif kind == "route":
            reads = [int(j) for j in o["layers"].split(",")]
            channels.append(sum(channels[j if j >= 0 else i + j] for j in reads) // int(o.get("groups", 1)))
        else:
            channels.append(before)
    return found


def random_weights(text, cfg):
    """Writes a .cfg whose pictures have at most 224 pixels a side, with random weights beside it."""
    for side in ("width", "height"):
        text = re.sub(rf"^{side}\s*=\s*(\d+)", lambda m: f"{side}={min(int(m[1]), 224)}", text, flags=re.M)
    cfg.write_text(text)
    r, numbers = np.random.default_rng(7), [np.array([0, 2, 5, 0, 0], np.int32).view(np.float32)]
    for n, norm, fan in convolutions(text):
        numbers.append(r.normal(0, 0.1, n))
        if norm:
            numbers += [r.uniform(0.8, 1.2, n), r.normal(0, 0.1, n), r.uniform(0.5, 1.5, n)]
        numbers.append(r.normal(0, (2 / fan) ** 0.5 * (1 if norm else 0.3), n * fan))
    np.concatenate([np.asarray(n, np.float32) for n in numbers]).tofile(cfg.with_suffix(".weights"))
    return cfg


def yolov4_tiny():
    """Its .cfg: halves of channels that go their own way."""
    conv = lambda filters, size, stride=1, activation="leaky", norm=1: "[convolutional]\n" + "batch_normalize=1\n" * norm + (
        f"filters={filters}\nsize={size}\nstride={stride}\npad=1\nactivation={activation}\n")
    route = lambda layers, more="": f"[route]\nlayers={layers}\n{more}"
    yolo = lambda mask: conv(255, 1, 1, "linear", 0) + (
        f"[yolo]\nmask={mask}\nanchors=10,14, 23,27, 37,58, 81,82, 135,169, 344,319\nclasses=80\nnum=6\nscale_x_y=1.05\nignore_thresh=.7\n")
    text = "[net]\nwidth=416\nheight=416\nchannels=3\n" + conv(32, 3, 2) + conv(64, 3, 2)
    for width in (64, 128, 256):
        text += conv(width, 3) + route("-1", "groups=2\ngroup_id=1\n") + conv(width // 2, 3) + conv(width // 2, 3) + route("-1,-2") + conv(width, 1) + route("-6,-1")
        text += "[maxpool]\nsize=2\nstride=2\n"
    text += conv(512, 3) + conv(256, 1) + conv(512, 3) + yolo("3,4,5") + route("-4") + conv(128, 1) + "[upsample]\nstride=2\n" + route("-1,23") + conv(256, 3)
    return text + yolo("1,2,3")


def darknet(program):
    print(f"OpenCV {cv2.__version__}")
    work, data = program.work, boxes_data(program.work)
    files, fetched, photos = [], fetched_folder("yolov3-tiny"), fetched_folder("darknet-photos")
    if fetched:
        files.append(fetched / "yolov3-tiny.cfg")
    files.append(random_weights(yolov4_tiny(), work / "yolov4-tiny.cfg"))
    for name in ("yolov3", "yolov3-spp", "yolov3-voc") if photos else ():
        files.append(random_weights((photos / f"cfg/{name}.cfg").read_text(), work / f"{name}.cfg"))
    if not (fetched and photos):
        print("SKIPPED what `retune fetch yolov3-tiny` and `retune fetch darknet-photos` get")
    generator = torch.Generator().manual_seed(3)
    for file in files:
        text = file.read_text()
        h, w = (int(re.search(rf"^{side}\s*=\s*(\d+)", text, re.M)[1]) for side in ("height", "width"))
        pictures = torch.rand(2, 3, h, w, generator=generator)
        program.same(f"{file.name} ({'real' if file.parent == fetched else 'random'} weights)", program.logits(pictures, "--model", file), opencv(file, pictures))
        if file.parent == fetched:
            region_boxes(program, file)
        if file.parent != fetched and file.stem != "yolov4-tiny":
            continue
        small = torch.rand(2, 3, 96, 96, generator=generator)
        for method, words, whole in program.trained(file, data, 96):
            ours = program.logits(small, *words)
            out = work / f"{file.stem}-{method}-back.cfg"
            program.run(*(["export", "--model", whole] if whole else ["merge", *words]), "--out", out)
            program.same(f"{file.name}, {method}, back in OpenCV", ours, opencv(out, small))
            program.same(f"{file.name}, {method}, read again", program.logits(small, "--model", out), opencv(out, small))


def region_boxes(program, cfg):
    """Boxes after suppression, of a picture that needs no resizing."""
    net = cv2.dnn.readNetFromDarknet(str(cfg), str(cfg.with_suffix(".weights")))
    model = cv2.dnn.DetectionModel(net)
    model.setInputParams(size=(416, 416), scale=1 / 255, swapRB=True)
    photo = fetched_folder("darknet-photos") / "dog.jpg"
    picture = cv2.resize(cv2.imread(str(photo)), (416, 416))
    cv2.imwrite(str(program.work / "dog.png"), picture)
    net.setInput(cv2.dnn.blobFromImage(picture, 1 / 255, (416, 416), swapRB=True))
    labels = cfg.with_name("coco.names").read_text().splitlines()
    out = np.concatenate(net.forward(net.getUnconnectedOutLayersNames()))
    boxes, scores, classes = [], [], []
    for row in out:
        # OpenCV's scores are class times objectness.
        for c in np.flatnonzero(row[5:] > 0.25):
            x, y, w, h = row[:4] * 416
            boxes.append([x - w / 2, y - h / 2, w, h]), scores.append(float(row[5 + c])), classes.append(int(c))
    keep = cv2.dnn.NMSBoxesBatched(boxes, scores, classes, 0.25, 0.45)
    theirs = [[max(boxes[i][0], 0), max(boxes[i][1], 0), min(boxes[i][0] + boxes[i][2], 416), min(boxes[i][1] + boxes[i][3], 416), scores[i], classes[i]] for i in keep]
    same_boxes(program, "yolov3-tiny", found(program, 0.25, 0.45, "--model", cfg, "--image", "dog.png"), torch.tensor(theirs), labels)


SECTIONS = {"ultralytics": ultralytics, "torchvision": torchvision, "opencv": darknet, "efficientnet": efficientnet_lite}


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--cases", help="the folder that the tests of the laws wrote")
    ap.add_argument("--program", help="retune")
    ap.add_argument("--only", default=",".join(SECTIONS), help="of --program: some of " + ", ".join(SECTIONS))
    ap.add_argument("--work", help="a folder for files; else one that goes away")
    args = ap.parse_args()
    torch.set_num_threads(2)
    right = wrong = 0
    if args.cases:
        images.NETWORKS.update(yolov8=Yolov8, efficientnet_lite=efficientnet, darknet=None)
        right, wrong = images.check(args.cases, of_a_case)
    if args.program:
        with tempfile.TemporaryDirectory() as passing:
            program = Program(args.program, args.work or passing)
            program.work.mkdir(parents=True, exist_ok=True)
            for name in args.only.split(","):
                try:
                    SECTIONS[name](program)
                except Exception as why:
                    program.wrong += 1
                    print(f"FAILED {name}: {type(why).__name__}: {why}")
        right, wrong = right + program.right, wrong + program.wrong
    print(f"{right} right, {wrong} wrong" if right else "there was nothing to check")
    return 1 if wrong or not right else 0


if __name__ == "__main__":
    sys.exit(main())
