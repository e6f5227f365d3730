"""Files of tensors as torch.save writes them, and one that must not be run.

Usage: make_torch_files.py OUT FORMATS   (FORMATS: the folder tests/data/formats)
"""

import os
import shutil
import sys

import torch
from safetensors.torch import load_file, save_file

out = sys.argv[1]
os.makedirs(out, exist_ok=True)
torch.manual_seed(11)
shared = torch.randn(6, 4)
tensors = {
    "f32": torch.randn(3, 5),
    "f16": torch.randn(4).half(),
    "bf16": torch.randn(2, 2, 2).bfloat16(),
    "f64": torch.randn(3).double(),
    "i64": torch.arange(5),
    "i32": torch.arange(6, dtype=torch.int32).view(2, 3),
    "i8": torch.tensor([-1, 2], dtype=torch.int8),
    "u8": torch.tensor([255, 0], dtype=torch.uint8),
    "bool": torch.tensor([True, False, True]),
    "scalar": torch.tensor(0.5),
    "empty": torch.zeros(0, 3),
    "transposed": torch.randn(3, 7).t(),
    "slice": torch.randn(8, 3)[2:5],
    "column": torch.randn(4, 6)[:, 1],
    "tied.a": shared,
    "tied.b": shared,
    "parameter": torch.nn.Parameter(torch.randn(2, 3)),
}
torch.save(tensors, f"{out}/kinds.pt")
save_file({k: v.detach().clone().contiguous() for k, v in tensors.items()}, f"{out}/kinds.safetensors")
model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.LayerNorm(2))
torch.save(model.state_dict(), f"{out}/state_dict.bin")
save_file(model.state_dict(), f"{out}/state_dict.safetensors")
torch.save({"a": torch.ones(2)}, f"{out}/old.pt", _use_new_zipfile_serialization=False)
torch.save({"epoch": 3, "a": torch.ones(2)}, f"{out}/number.pt")
torch.save({"inner": {"a": torch.ones(2)}}, f"{out}/nested.pt")


class Evil:
    def __reduce__(self):
        return (os.system, ("touch retune-was-here",))


torch.save({"a": Evil()}, f"{out}/evil.pt")

os.makedirs(f"{out}/peft_bin", exist_ok=True)
lora = f"{sys.argv[2]}/lora_bert_seqcls"
shutil.copy(f"{lora}/adapter_config.json", f"{out}/peft_bin")
torch.save(load_file(f"{lora}/adapter_model.safetensors"), f"{out}/peft_bin/adapter_model.bin")
