"""Writes tests/data/vision/vgg.safetensors and vgg_bn.safetensors, tiny random networks with torchvision's names, and *_numbers.safetensors: two
pictures, their logits, and the gradients of the mean cross-entropy (classes 1 and 2).

The layers stand in torchvision's order: convolutions, batch norms, rectifiers and poolings counted in `features`; linear, rectifier, dropout in
`classifier`. Batch norms use their running statistics. torch 2.15.0.
"""

import pathlib

import torch
from reference import save_file
from torch import nn

OUT = pathlib.Path(__file__).resolve().parents[2] / "tests/data/vision"
CFG = [4, "M", 6, 6, "M", 8, "M"]


class Vgg(nn.Module):
    def __init__(self, norm):
        super().__init__()
        layers, channels = [], 3
        for v in CFG:
            if v == "M":
                layers.append(nn.MaxPool2d(2, 2))
                continue
            layers.append(nn.Conv2d(channels, v, 3, padding=1))
            layers += [nn.BatchNorm2d(v)] if norm else []
            layers.append(nn.ReLU())
            channels = v
        self.features = nn.Sequential(*layers)
        # 32 pixels halved three times are 4, which AdaptiveAvgPool2d(2) makes 2.
        dense = [nn.Linear(8 * 4, 10), nn.ReLU(), nn.Dropout(), nn.Linear(10, 9), nn.ReLU(), nn.Dropout(), nn.Linear(9, 3)]
        self.classifier = nn.Sequential(*dense)

    def forward(self, x):
        x = nn.functional.adaptive_avg_pool2d(self.features(x), 2)
        return self.classifier(x.flatten(1))


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    for name, norm in [("vgg", False), ("vgg_bn", True)]:
        torch.manual_seed(5)
        net = Vgg(norm).eval()
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.8, 1.6)
                nn.init.normal_(module.bias, 0, 0.2)
                nn.init.normal_(module.running_mean, 0, 0.2)
                nn.init.uniform_(module.running_var, 0.2, 0.8)
        x = torch.rand(2, 3, 32, 32)
        logits = net(x)
        nn.functional.cross_entropy(logits, torch.tensor([1, 2])).backward()
        numbers = {"pixels": x.permute(0, 2, 3, 1).reshape(-1, 3).contiguous(), "logits": logits.detach()}
        numbers |= {f"gradient.{n}": p.grad for n, p in net.named_parameters()}
        save_file(dict(net.state_dict()), OUT / f"{name}.safetensors")
        save_file(numbers, OUT / f"{name}_numbers.safetensors")


if __name__ == "__main__":
    main()
