"""Loads what Retune wrote for a VGG into PEFT and torch, and compares logits with Retune's own (CPU, f32).

  RETUNE_EXCHANGE=/tmp/exchange cargo test -p retune --test laws_images law_
  python scripts/reference/check_exchange_images.py /tmp/exchange

Every case has its base beside it; the network is torchvision's VGG, written out here. PEFT's folders (LoRA, DoRA, IA3, SHiRA) are loaded with `peft`, whole and
merged folders by name, Retune's deltas by putting their values into the base. Prints one line a case. Exit status: 0 all right, 1 something differs.
"""
import json, pathlib, sys, warnings
import torch
from torch import nn
from safetensors.torch import load_file

TOLERANCE = 1e-5


class VGG(nn.Module):
    def __init__(self, c):
        super().__init__()
        features, width = [], 3
        for step in c["cfg"]:
            if step == "M":
                features.append(nn.MaxPool2d(2, 2))
                continue
            features.append(nn.Conv2d(width, step, 3, padding=1))
            features += ([nn.BatchNorm2d(step, eps=c.get("norm_eps", 1e-5))] if c["batch_norm"] else []) + [nn.ReLU()]
            width = step
        self.features = nn.Sequential(*features)
        self.avgpool = nn.AdaptiveAvgPool2d(c["grid"])
        dense, width = [], width * c["grid"] ** 2
        for out in c["dense"]:
            dense += [nn.Linear(width, out), nn.ReLU(), nn.Dropout()]
            width = out
        labels = len(c["id2label"]) if "id2label" in c else c["num_labels"]
        self.classifier = nn.Sequential(*dense, nn.Linear(width, labels))

    def forward(self, x):
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))


def network(folder):
    model = VGG(json.loads((folder / "config.json").read_text()))
    stored = load_file(folder / "model.safetensors")
    counts = {k: v for k, v in model.state_dict().items() if k.endswith("num_batches_tracked")}
    model.load_state_dict(stored | {k: stored.get(k, v) for k, v in counts.items()}, strict=True)
    return model.eval()


def with_peft(folder):
    import peft
    with warnings.catch_warnings():
        warnings.simplefilter("error")          # PEFT only warns of tensors that are missing
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", category=FutureWarning)
        return peft.PeftModel.from_pretrained(network(folder / "base"), folder).eval()


def with_delta(folder):
    """Each named parameter takes its new values, or the differences of some entries."""
    model = network(folder / "base")
    config, stored = json.loads((folder / "delta.json").read_text()), load_file(folder / "delta.safetensors")
    state = dict(model.named_parameters())
    with torch.no_grad():
        for name, what in config["tensors"].items():
            if what["kind"] == "sparse":
                flat = state[name].data.view(-1)
                flat[stored[f"{name}.indices"].long()] += stored[f"{name}.values"]
            else:
                state[name].data.copy_(stored[name].view_as(state[name]))
    return model


def load(folder):
    config = folder / "adapter_config.json"
    if config.exists():
        if "peft_type" not in json.loads(config.read_text()):
            return "adapters", None             # AdapterHub has no networks of convolutions
        return "peft", with_peft(folder)
    if (folder / "delta.json").exists():
        return "delta", with_delta(folder)
    return "model", network(folder)


def main():
    failed = checked = 0
    for folder in sorted(p.parent for p in pathlib.Path(sys.argv[1]).glob("*/case.json")):
        expected = load_file(folder / "expected.safetensors")
        try:
            kind, model = load(folder)
            if model is None:
                print(f"SKIPPED {folder.name}: no other tool has bottlenecks here")
                continue
            with torch.no_grad():
                logits = model(expected["pictures"].permute(0, 3, 1, 2).contiguous())
        except Exception as why:
            print(f"FAILED {folder.name}: {type(why).__name__}: {why}")
            failed, checked = failed + 1, checked + 1
            continue
        worst = float((logits - expected["logits"]).abs().max() / expected["logits"].abs().max())
        good = worst <= TOLERANCE
        failed, checked = failed + (not good), checked + 1
        print(f"{'ok    ' if good else 'FAILED'} {folder.name} ({kind}): {worst:.1e}")
    if not checked:
        print("there was nothing to check")
    return 1 if failed or not checked else 0


if __name__ == "__main__":
    sys.exit(main())
