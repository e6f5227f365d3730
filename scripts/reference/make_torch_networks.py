"""Checkpoints of vision networks as torch.save and Ultralytics write them, tiny.

Ultralytics pickles whole modules: classes of the names `ultralytics.nn.tasks.DetectionModel` and so on, in half precision.
Here classes of these names are made up, so that the files have the same globals without the package.

Usage: make_torch_networks.py OUT   (storages of the old format are named by addresses: its files differ in them each time)
"""

import argparse
import os
import sys
import types
from unittest import mock

import torch
from safetensors.torch import save_file
from torch import nn

out = sys.argv[1]
os.makedirs(out, exist_ok=True)
torch.manual_seed(12)


def named(module, name):
    """Puts a class where its pickles will say that it is from."""

    def put(cls):
        parts = module.split(".")
        for i in range(1, len(parts) + 1):
            sys.modules.setdefault(".".join(parts[:i]), types.ModuleType(".".join(parts[:i])))
        cls.__module__, cls.__qualname__, cls.__name__ = module, name, name
        setattr(sys.modules[module], name, cls)
        return cls

    return put


@named("ultralytics.nn.modules.conv", "Conv")
class Conv(nn.Module):
    def __init__(self, c1, c2, k=1):
        super().__init__()
        self.conv = nn.Conv2d(c1, c2, k, padding=k // 2, bias=False)
        self.bn = nn.BatchNorm2d(c2, eps=1e-3, momentum=0.03)
        self.act = nn.SiLU(inplace=True)


@named("ultralytics.nn.modules.head", "Detect")
class Detect(nn.Module):
    def __init__(self, nc, c):
        super().__init__()
        self.nc, self.reg_max = nc, 16
        self.stride = torch.tensor([8.0, 16.0])
        self.cv2 = nn.ModuleList(nn.Sequential(Conv(c, 3), nn.Conv2d(3, 4, 1)) for _ in range(2))
        # In the modules' buffers but not in their state dict.
        self.register_buffer("anchors", torch.zeros(3), persistent=False)


@named("ultralytics.nn.tasks", "DetectionModel")
class DetectionModel(nn.Module):
    def __init__(self, nc=2):
        super().__init__()
        self.model = nn.Sequential(Conv(3, 4, 3), Conv(4, 4), Detect(nc, 4))
        for i, layer in enumerate(self.model):
            layer.i, layer.f, layer.type = i, -1, type(layer).__name__
        self.yaml = {"nc": nc, "backbone": [[-1, 1, "Conv", [4, 3]], [-1, 1, "Conv", [4]]], "head": [[-1, 1, "Detect", ["nc"]]]}
        self.names = {0: "cat", 1: "dog"}
        self.stride = torch.tensor([8.0, 16.0])
        self.task = "detect"
        self.args = argparse.Namespace(imgsz=640, box=7.5, data=None)
        self.save = [0]


def fill(model):
    """No tensor keeps its usual initial value."""
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.randn_like(tensor))
        else:
            tensor.fill_(7)
    return model


raw, average = fill(DetectionModel()), fill(DetectionModel())
common = {
    "epoch": -1,
    "best_fitness": None,
    "optimizer": None,
    "train_args": {"imgsz": 640, "lr0": 0.01, "name": None},
    "train_metrics": {"fitness": 0.5},
    "date": "2024-01-01T00:00:00",
    "version": "8.2.0",
}
torch.save({**common, "model": average.half(), "ema": None}, f"{out}/ultralytics.pt")
torch.save({**common, "model": raw, "ema": average, "updates": 3}, f"{out}/ultralytics_ema.pt")
save_file(average.state_dict(), f"{out}/ultralytics.safetensors")

net = fill(nn.Sequential(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2), nn.Linear(2, 2)))
state = net.state_dict()
save_file(state, f"{out}/net.safetensors")
legacy = {"_use_new_zipfile_serialization": False}
torch.save(state, f"{out}/legacy.pth", **legacy)
torch.save(state, f"{out}/legacy_protocol4.pth", pickle_protocol=4, **legacy)
torch.save({f"module.{name}": tensor for name, tensor in state.items()}, f"{out}/parallel.pth")
torch.save({"epoch": 3, "arch": "tiny", "state_dict": state, "optimizer": {"state": {}}}, f"{out}/checkpoint.pth", **legacy)
# The old format keeps the source of every class beside it; none is found here, and that is allowed.
with mock.patch("torch.serialization.get_source_lines_and_file", side_effect=OSError):
    torch.save(net, f"{out}/module.pth", **legacy)
torch.save({"t": torch.randn(3, 5).t(), "half": torch.randn(4).half(), "long": torch.arange(3)}, f"{out}/kinds_legacy.pth", **legacy)
save_file({k: v.contiguous() for k, v in torch.load(f"{out}/kinds_legacy.pth").items()}, f"{out}/kinds_legacy.safetensors")
