"""AdapterHub folders of tiny random models, as `adapters` writes them. Usage: make_adapterhub_files.py OUT

Needs adapters 1.3.0 with transformers 4.57.6, which do not go with the other scripts' versions: a virtual environment of their own.
"""

import sys

import adapters
import torch
from adapters import (
    AutoAdapterModel,
    DoRAConfig,
    IA3Config,
    ParBnConfig,
    PrefixTuningConfig,
    SeqBnConfig,
)
from transformers import BertConfig

out = sys.argv[1]
torch.manual_seed(3)
config = BertConfig(
    vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48
)
cases = {
    "par_bn": (ParBnConfig(reduction_factor=8), True),
    "ia3": (IA3Config(), True),
    "dora": (DoRAConfig(r=2), True),
    "all_parts": (
        SeqBnConfig(
            mh_adapter=True,
            ln_before=True,
            ln_after=True,
            use_gating=True,
            scaling="learned",
            reduction_factor={"0": 4, "default": 8},
            leave_out=[],
        ),
        False,
    ),
    "prefix": (PrefixTuningConfig(prefix_length=3, bottleneck_size=4), False),
    "prefix_flat": (PrefixTuningConfig(prefix_length=3, flat=True), False),
}
for name, (method, safe) in cases.items():
    model = AutoAdapterModel.from_config(config)
    model.add_adapter("task", config=method)
    model.train_adapter("task")
    with torch.no_grad():
        for key, p in model.named_parameters():
            if p.requires_grad:
                p.copy_(torch.randn_like(p) * 0.1)
    model.save_adapter(f"{out}/ah_bert_{name}", "task", with_head=False, use_safetensors=safe)
