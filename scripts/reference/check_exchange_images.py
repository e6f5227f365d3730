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
# Of model types for which that is too much to ask.
TOLERANCES = {}


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


# Of each model type what makes the network of a config.json; `check_exchange_detectors.py` adds others.
NETWORKS = {"vgg": VGG}


def network(folder):
    """What a folder says it is, with its weights; nothing missing, nothing left over."""
    config = json.loads((folder / "config.json").read_text())
    model = NETWORKS[config["model_type"]](config)
    # A plain dictionary: torch does not miss what counts the batches.
    model.load_state_dict(load_file(folder / "model.safetensors"), strict=True)
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
            if name not in state:               # a bias where there was none
                module = model.get_submodule(name.removesuffix(".bias"))
                module.bias = state[name] = torch.nn.Parameter(torch.zeros(what["shape"]))
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


def answer(folder, pictures):
    """(what it was loaded as, what it says of each picture); `pictures` are [n, 3, height, width]."""
    kind, model = load(folder)
    with torch.no_grad():
        return kind, model and model(pictures)


def off(ours, theirs):
    """The largest difference, as a share of the largest value."""
    return float((ours - theirs).abs().max() / theirs.abs().max())


def checked(folder, answer):
    """One case: whether it is right, and the line that says so."""
    kind, name = json.loads((folder / "base/config.json").read_text())["model_type"], folder.name
    if kind not in NETWORKS:
        return None, f"SKIPPED {name}: {kind} is checked by check_exchange_detectors.py"
    expected = load_file(folder / "expected.safetensors")
    try:
        loaded, logits = answer(folder, expected["pictures"].permute(0, 3, 1, 2).contiguous())
    except Exception as why:
        return False, f"FAILED {name}: {type(why).__name__}: {why}"
    if logits is None:
        return None, f"SKIPPED {name}: no other tool has its {loaded} here"
    worst = off(expected["logits"], logits)
    good = worst <= TOLERANCES.get(kind, TOLERANCE)
    return good, f"{'ok    ' if good else 'FAILED'} {name} ({loaded}): {worst:.1e}"


def check(root, answer=answer):
    """All cases in a folder, a line each; how many are right and how many are not."""
    counts = {True: 0, False: 0, None: 0}
    for folder in sorted(p.parent for p in pathlib.Path(root).glob("*/case.json")):
        good, line = checked(folder, answer)
        counts[good] += 1
        print(line)
    return counts[True], counts[False]


def main():
    right, wrong = check(sys.argv[1])
    if not right:
        print("there was nothing to check")
    return 1 if wrong or not right else 0


if __name__ == "__main__":
    sys.exit(main())
