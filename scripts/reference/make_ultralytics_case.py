"""Writes tests/data/vision/ultralytics.pt, ultralytics_fused.pt and ultralytics_outputs.safetensors: a narrow YOLOv8 as Ultralytics itself pickles it,
with its batch norms folded too, and what it says of a picture.

  scripts/reference/setup.sh detectors     # its last line is PY
  PY scripts/reference/make_ultralytics_case.py

A checkpoint as `strip_optimizer` leaves it: whole modules, pickled in half precision; the numbers are those of these halves, computed in f32. Of Ultralytics there are the
names of classes and attributes in the files, no code and no weights.
"""
import copy, pathlib, tempfile
import torch
import ultralytics
from reference import save_file
from ultralytics import YOLO
from check_exchange_detectors import awake, said_by

OUT = pathlib.Path(__file__).resolve().parents[2] / "tests/data/vision"
# yolov8.yaml's layers, at most 16 channels wide, with three classes and distances of four steps.
YAML = """nc: 3
reg_max: 4
scales: {n: [0.33, 0.125, 128]}
backbone:
  - [-1, 1, Conv, [64, 3, 2]]
  - [-1, 1, Conv, [128, 3, 2]]
  - [-1, 3, C2f, [128, True]]
  - [-1, 1, Conv, [256, 3, 2]]
  - [-1, 6, C2f, [256, True]]
  - [-1, 1, Conv, [512, 3, 2]]
  - [-1, 6, C2f, [512, True]]
  - [-1, 1, Conv, [1024, 3, 2]]
  - [-1, 3, C2f, [1024, True]]
  - [-1, 1, SPPF, [1024, 5]]
head:
  - [-1, 1, nn.Upsample, [None, 2, nearest]]
  - [[-1, 6], 1, Concat, [1]]
  - [-1, 3, C2f, [512]]
  - [-1, 1, nn.Upsample, [None, 2, nearest]]
  - [[-1, 4], 1, Concat, [1]]
  - [-1, 3, C2f, [256]]
  - [-1, 1, Conv, [256, 3, 2]]
  - [[-1, 12], 1, Concat, [1]]
  - [-1, 3, C2f, [512]]
  - [-1, 1, Conv, [512, 3, 2]]
  - [[-1, 9], 1, Concat, [1]]
  - [-1, 3, C2f, [1024]]
  - [[15, 18, 21], 1, Detect, [nc]]
"""


def main():
    with tempfile.TemporaryDirectory() as folder:
        yaml = pathlib.Path(folder) / "yolov8n.yaml"
        yaml.write_text(YAML)
        torch.manual_seed(8)
        yolo = YOLO(yaml)
    awake(yolo.model)
    yolo.model.yaml["yaml_file"] = "yolov8n.yaml"
    yolo.model.names = {0: "circle", 1: "square", 2: "wedge"}
    yolo.model.args = {"imgsz": 64}
    pictures = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(8))
    numbers = {"pictures": pictures.permute(0, 2, 3, 1).contiguous()}
    for name in ("ultralytics", "ultralytics_fused"):
        if name.endswith("fused"):
            yolo.fuse()
        halves = copy.deepcopy(yolo.model).half().eval()
        left = {"epoch": -1, "best_fitness": None, "ema": None, "updates": None, "optimizer": None, "train_args": {"imgsz": 64}, "version": ultralytics.__version__}
        torch.save({**left, "model": halves}, OUT / f"{name}.pt")
        for i, scale in enumerate(said_by(copy.deepcopy(halves).float(), pictures)):
            numbers[f"{name}.{i}"] = scale.permute(0, 2, 3, 1).contiguous()
    save_file(numbers, OUT / "ultralytics_outputs.safetensors")


if __name__ == "__main__":
    main()
