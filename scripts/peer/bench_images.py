"""Training steps of image networks with PyTorch. Prints one JSON line.

  python bench_images.py vgg16|yolov3-tiny METHOD [--layout contiguous|channels_last] [--size N] [--batch N] [--steps 4] [--warm 1] [--threads 2]

METHOD: forward, full, lora (PEFT, rank 8 on every convolution), head (the last layer; of yolov3-tiny the two convolutions in front of the outputs:
its trunk is frozen, and runs without gradients). Random weights and pictures: speed does not depend on the values.
"""
import argparse, json, resource, statistics, time


def vgg16():
    """torchvision's features, a classifier on the mean of the last pixels."""
    import torch.nn as nn
    layers, channels = [], 3
    for width, times in [(64, 2), (128, 2), (256, 3), (512, 3), (512, 3)]:
        for _ in range(times):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
            channels = width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(nn.Sequential(*layers), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10))


def yolov3_tiny(classes=10):
    import torch, torch.nn as nn

    def conv(a, b, k=3):
        return nn.Sequential(nn.Conv2d(a, b, k, padding=k // 2, bias=False), nn.BatchNorm2d(b), nn.LeakyReLU(0.1, inplace=True))

    class Tiny(nn.Module):
        def __init__(self):
            super().__init__()
            pool = nn.MaxPool2d(2)
            self.low = nn.Sequential(conv(3, 16), pool, conv(16, 32), pool, conv(32, 64), pool, conv(64, 128), pool, conv(128, 256))
            self.high = nn.Sequential(pool, conv(256, 512), nn.ZeroPad2d((0, 1, 0, 1)), nn.MaxPool2d(2, 1), conv(512, 1024), conv(1024, 256, 1))
            self.large, self.small = conv(256, 512), conv(384, 256)
            self.up = nn.Sequential(conv(256, 128, 1), nn.Upsample(scale_factor=2))
            self.head1, self.head2 = nn.Conv2d(512, 3 * (5 + classes), 1), nn.Conv2d(256, 3 * (5 + classes), 1)

        def trunk(self, x):
            low = self.low(x)
            high = self.high(low)
            return self.large(high), self.small(torch.cat([self.up(high), low], 1))

        def forward(self, x):
            large, small = self.trunk(x)
            return self.head1(large), self.head2(small)

    return Tiny()


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("network", choices=["vgg16", "yolov3-tiny"])
    ap.add_argument("method", choices=["forward", "full", "lora", "head"])
    ap.add_argument("--layout", choices=["contiguous", "channels_last"], default="contiguous")
    ap.add_argument("--size", type=int)
    ap.add_argument("--batch", type=int)
    ap.add_argument("--steps", type=int, default=4)
    ap.add_argument("--warm", type=int, default=1)
    ap.add_argument("--threads", type=int, default=2)
    a = ap.parse_args()
    import torch
    torch.set_num_threads(a.threads)
    torch.manual_seed(0)
    is_vgg = a.network == "vgg16"
    size, batch = a.size or (240 if is_vgg else 416), a.batch or (8 if is_vgg else 4)
    model = vgg16() if is_vgg else yolov3_tiny()
    layout = torch.channels_last if a.layout == "channels_last" else torch.contiguous_format
    if not is_vgg:
        # Frozen statistics, as on the other side.
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.eval()
    if a.method == "head":
        heads = [model[-1]] if is_vgg else [model.head1, model.head2]
        model.requires_grad_(False)
        for head in heads:
            head.requires_grad_(True)
    if a.method == "lora":
        import peft
        names = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Conv2d)]
        model = peft.get_peft_model(model, peft.LoraConfig(r=8, lora_alpha=16, target_modules=names))
    model = model.to(memory_format=layout)
    x = torch.randn(batch, 3, size, size).contiguous(memory_format=layout)
    labels = torch.arange(batch) % 10
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True) if a.method != "forward" else None

    def loss():
        y = model(x)
        return torch.nn.functional.cross_entropy(y, labels) if is_vgg else sum((o ** 2).mean() for o in y)

    def step():
        if optimizer is None:
            with torch.no_grad():
                return loss().item()
        optimizer.zero_grad(set_to_none=True)
        value = loss()
        value.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        return value.item()

    seconds = []
    for _ in range(a.warm + a.steps):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    print(json.dumps(dict(engine="torch", bench="images", network=a.network, method=a.method, layout=a.layout, size=size, batch=batch,
                          s_per_step_median=round(statistics.median(seconds[a.warm:]), 4),
                          peak_rss_mib=round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
                          trainable=sum(p.numel() for p in trained), threads=a.threads, torch=torch.__version__)))


if __name__ == "__main__":
    main()
