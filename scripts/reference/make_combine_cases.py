"""Two LoRA adapters and what PEFT's add_weighted_adapter makes of them, for tests/data/combine.

Run: python scripts/reference/make_combine_cases.py tests/data/combine
"""

import json
import pathlib
import shutil
import sys

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from torch import nn

CASES = {
    "linear": dict(weights=[0.7, 0.4]),
    "linear_negative": dict(weights=[0.7, -0.4], combination_type="linear"),
    "cat": dict(weights=[0.7, -0.4]),
    "svd": dict(weights=[0.7, 0.4], svd_rank=3),
    "ties": dict(weights=[0.7, 0.4], density=0.5),
    "ties_frequency": dict(weights=[0.7, 0.4], density=0.6, majority_sign_method="frequency", combination_type="ties"),
    "ties_svd": dict(weights=[0.7, 0.4], density=0.5, svd_rank=4),
    "magnitude_prune": dict(weights=[0.7, 0.4], density=0.3),
    "magnitude_prune_svd": dict(weights=[0.7, 0.4], density=0.3, svd_rank=4),
}


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.Linear(10, 14)
        self.down = nn.Linear(14, 9)

    def forward(self, x):
        return self.down(torch.relu(self.up(x)))


def main(out: pathlib.Path):
    torch.manual_seed(0)
    base = Net()
    for name, targets, alpha in [("a", ["up", "down"], 8), ("b", ["down"], 2)]:
        model = get_peft_model(Net(), LoraConfig(r=4, lora_alpha=alpha, target_modules=targets))
        for key, parameter in model.named_parameters():
            if "lora_" in key:
                nn.init.normal_(parameter)
        shutil.rmtree(out / name, ignore_errors=True)
        model.save_pretrained(out / name)
        (out / name / "README.md").unlink(missing_ok=True)
    model = PeftModel.from_pretrained(base, out / "a", adapter_name="a")
    model.load_adapter(out / "b", adapter_name="b")
    deltas = {}
    for case, settings in CASES.items():
        settings = {"combination_type": case, **settings}
        model.add_weighted_adapter(["a", "b"], adapter_name=case, **settings)
        for name in ["up", "down"]:
            layer = getattr(model.base_model.model, name)
            deltas[f"{case}.{name}"] = layer.get_delta_weight(case).detach().clone().contiguous()
    save_file(deltas, out / "deltas.safetensors")
    (out / "cases.json").write_text(json.dumps(CASES, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
