"""Writes tests/data/vision/yolov8.safetensors and yolov8_outputs.safetensors: a tiny random network of YOLOv8's shape and what it says of two pictures.

The network is written down here from its published description (backbone of C2f blocks with SPPF, neck up and down again, heads of two towers
for each of three scales, boxes as distributions), with the names of Ultralytics' files; none of their code is used. torch 2.15.0.
"""

import pathlib

import torch
from reference import save_file
from torch import nn

OUT = pathlib.Path(__file__).resolve().parents[2] / "tests/data/vision"
# YOLOv8n's widths divided by eight, repeats 1, 2, 2, 1, four classes, four steps of distance.
WIDTHS, REPEATS, CLASSES, REG_MAX = [4, 4, 8, 16, 16], [1, 2, 2, 1], 4, 4


class Conv(nn.Module):
    def __init__(self, c1, c2, k=1, s=1):
        super().__init__()
        self.conv = nn.Conv2d(c1, c2, k, s, k // 2, bias=False)
        self.bn = nn.BatchNorm2d(c2, eps=1e-3)

    def forward(self, x):
        return nn.functional.silu(self.bn(self.conv(x)))


class Bottleneck(nn.Module):
    def __init__(self, c, shortcut):
        super().__init__()
        self.cv1, self.cv2, self.shortcut = Conv(c, c, 3), Conv(c, c, 3), shortcut

    def forward(self, x):
        y = self.cv2(self.cv1(x))
        return x + y if self.shortcut else y


class C2f(nn.Module):
    def __init__(self, c1, c2, n, shortcut):
        super().__init__()
        c = c2 // 2
        self.cv1, self.cv2 = Conv(c1, 2 * c), Conv((2 + n) * c, c2)
        self.m = nn.ModuleList(Bottleneck(c, shortcut) for _ in range(n))

    def forward(self, x):
        parts = list(self.cv1(x).chunk(2, 1))
        for m in self.m:
            parts.append(m(parts[-1]))
        return self.cv2(torch.cat(parts, 1))


class SPPF(nn.Module):
    def __init__(self, c1, c2):
        super().__init__()
        self.cv1, self.cv2 = Conv(c1, c1 // 2), Conv(2 * c1, c2)

    def forward(self, x):
        parts = [self.cv1(x)]
        for _ in range(3):
            parts.append(nn.functional.max_pool2d(parts[-1], 5, 1, 2))
        return self.cv2(torch.cat(parts, 1))


class DFL(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.conv = nn.Conv2d(n, 1, 1, bias=False)
        self.conv.weight.data = torch.arange(n, dtype=torch.float32).view(1, n, 1, 1)


class Detect(nn.Module):
    def __init__(self, widths):
        super().__init__()
        c2, c3 = max(8, widths[0] // 4, REG_MAX * 4), max(widths[0], min(CLASSES, 100))
        tower = lambda c, mid, out: nn.Sequential(Conv(c, mid, 3), Conv(mid, mid, 3), nn.Conv2d(mid, out, 1))
        self.cv2 = nn.ModuleList(tower(c, c2, 4 * REG_MAX) for c in widths)
        self.cv3 = nn.ModuleList(tower(c, c3, CLASSES) for c in widths)
        self.dfl = DFL(REG_MAX)

    def forward(self, xs):
        return [torch.cat([b(x), c(x)], 1) for x, b, c in zip(xs, self.cv2, self.cv3)]


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        a, b, c, d, e = WIDTHS
        n = REPEATS
        up = nn.Upsample(scale_factor=2)
        self.model = nn.ModuleList(
            [Conv(3, a, 3, 2), Conv(a, b, 3, 2), C2f(b, b, n[0], True), Conv(b, c, 3, 2), C2f(c, c, n[1], True)]
            + [Conv(c, d, 3, 2), C2f(d, d, n[2], True), Conv(d, e, 3, 2), C2f(e, e, n[3], True), SPPF(e, e)]
            + [up, nn.Identity(), C2f(d + e, d, 1, False), up, nn.Identity(), C2f(c + d, c, 1, False)]
            + [Conv(c, c, 3, 2), nn.Identity(), C2f(c + d, d, 1, False)]
            + [Conv(d, d, 3, 2), nn.Identity(), C2f(d + e, e, 1, False), Detect([c, d, e])]
        )

    def forward(self, x):
        m = self.model
        for i in range(4):
            x = m[i](x)
        p3 = m[4](x)
        p4 = m[6](m[5](p3))
        p5 = m[9](m[8](m[7](p4)))
        n4 = m[12](torch.cat([m[10](p5), p4], 1))
        n3 = m[15](torch.cat([m[13](n4), p3], 1))
        o4 = m[18](torch.cat([m[16](n3), n4], 1))
        o5 = m[21](torch.cat([m[19](o4), p5], 1))
        return m[22]([n3, o4, o5])


def main():
    torch.manual_seed(8)
    net = Net().eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.8, 1.6)
            nn.init.normal_(module.bias, 0, 0.2)
            nn.init.normal_(module.running_mean, 0, 0.2)
            nn.init.uniform_(module.running_var, 0.2, 0.8)
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        outs = net(x)
    rows = lambda t: t.permute(0, 2, 3, 1).reshape(-1, t.shape[1]).contiguous()
    OUT.mkdir(parents=True, exist_ok=True)
    save_file(dict(net.state_dict()), OUT / "yolov8.safetensors")
    save_file({"pixels": rows(x)} | {f"output.{i}": rows(o) for i, o in enumerate(outs)}, OUT / "yolov8_outputs.safetensors")


if __name__ == "__main__":
    main()
