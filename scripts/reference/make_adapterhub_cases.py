"""Makes adapters of AdapterHub on the tiny bases of tests/data/parity and what its library `adapters` computes with them.

  python -m venv VENV && VENV/bin/pip install -r scripts/reference/requirements-adapterhub.txt
  VENV/bin/python scripts/reference/make_adapterhub_cases.py [--out tests/data/parity] [--only CASE ...]

It needs an environment of its own: adapters 1.3.0 wants transformers 4. A case's files: adapter_config.json and adapter.safetensors as `save_adapter`
writes them (pytorch_adapter.bin with `ln_before`; and head_config.json, model_head.safetensors where there is a head), inputs, logits (with the loss), grads, step1 (one AdamW step: lr 1e-2,
weight decay 0.01 on everything, no clipping) and meta.json with the losses of five such steps. The tensors of grads and step1 have the names that they
have in the adapter's files. Every adapter tensor is drawn at random, norms and scalings included. All f32, eval mode, rows padded on the right.
"""
import argparse, json, pathlib, shutil, sys, tempfile
import torch, transformers, adapters
from adapters import (DoubleSeqBnConfig, IA3Config, LoRAConfig, ParBnConfig, PrefixTuningConfig, PromptTuningConfig,
                      SeqBnConfig)
from safetensors.torch import load_file, save_file

ROOT = pathlib.Path(__file__).resolve().parents[2]
PARITY = ROOT / "tests/data/parity"
LENGTHS = [14, 9, 11, 5]
CLASSES = [2, 0, 1, 2]

# name: (base, configuration)
CASES = {
    "bert_ah_double_seq_bn": ("bert_base", DoubleSeqBnConfig(reduction_factor=8)),
    "bert_ah_seq_bn": ("bert_base", SeqBnConfig(reduction_factor=8)),
    "bert_ah_par_bn": ("bert_base", ParBnConfig(reduction_factor=8)),
    # everything that is off by default, at once and in turn
    "bert_ah_odd": ("bert_base", DoubleSeqBnConfig(reduction_factor={"0": 16, "default": 8}, non_linearity="gelu", ln_before=True, ln_after=True,
                                                   original_ln_before=True, residual_before_ln="post_add", adapter_residual_before_ln=True, scaling="learned")),
    "bert_ah_plus": ("bert_base", SeqBnConfig(reduction_factor=8, original_ln_after=False, residual_before_ln=False, scaling="channel", leave_out=[0])),
    "gpt2_ah_double_seq_bn": ("gpt2_base", DoubleSeqBnConfig(reduction_factor=8)),
    "gpt2_ah_seq_bn": ("gpt2_base", SeqBnConfig(reduction_factor=8, ln_before=True)),
    "gpt2_ah_par_bn": ("gpt2_base", ParBnConfig(reduction_factor=8, ln_after=True)),
    "llama_ah_double_seq_bn": ("llama_base_full", DoubleSeqBnConfig(reduction_factor=8)),
    "llama_ah_seq_bn": ("llama_base_full", SeqBnConfig(reduction_factor=8)),
    "llama_ah_par_bn": ("llama_base_full", ParBnConfig(reduction_factor=8)),
    "bert_ah_lora": ("bert_base", LoRAConfig(r=4, alpha=6, intermediate_lora=True, output_lora=True)),
    "bert_ah_ia3": ("bert_base", IA3Config()),
    "bert_ah_prompt": ("bert_base", PromptTuningConfig(prompt_length=5)),
    "bert_ah_prefix": ("bert_base", PrefixTuningConfig(prefix_length=5, bottleneck_size=16)),
    "bert_ah_prefix_flat": ("bert_base", PrefixTuningConfig(prefix_length=5, flat=True)),
    # q and v of one fused matrix
    "gpt2_ah_lora": ("gpt2_base", LoRAConfig(r=4, alpha=6)),
    "gpt2_ah_ia3": ("gpt2_base", IA3Config()),
    "gpt2_ah_prefix_flat": ("gpt2_base", PrefixTuningConfig(prefix_length=5, flat=True)),
    "llama_ah_lora": ("llama_base_full", LoRAConfig(r=4, alpha=6, attn_matrices=["q", "k", "v"], leave_out=[0])),
    "llama_ah_ia3": ("llama_base_full", IA3Config()),
    "llama_ah_prefix": ("llama_base_full", PrefixTuningConfig(prefix_length=5, bottleneck_size=16)),
}


def base_model(name):
    """The base, through a config.json in the words of transformers 4."""
    config = json.loads((PARITY / name / "config.json").read_text())
    if "rope_parameters" in config:
        config["rope_theta"] = config.pop("rope_parameters")["rope_theta"]
    config["torch_dtype"] = config.pop("dtype")
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        (folder / "config.json").write_text(json.dumps(config))
        shutil.copy(PARITY / name / "model.safetensors", folder)
        kind = adapters.AutoAdapterModel if name == "bert_base" else transformers.AutoModelForCausalLM
        model = kind.from_pretrained(folder, attn_implementation="eager")
    if kind is not adapters.AutoAdapterModel:
        adapters.init(model)
    return model.eval()


def batch(base):
    g = torch.Generator().manual_seed(5)
    width = max(LENGTHS)
    ids = torch.randint(3, 250, (len(LENGTHS), width), generator=g)
    mask = torch.tensor([[int(i < n) for i in range(width)] for n in LENGTHS])
    ids = torch.where(mask == 1, ids, 0)
    if base == "bert_base":
        types = torch.tensor([[int(n // 2 <= i < n) for i in range(width)] for n in LENGTHS])
        return {"input_ids": ids, "attention_mask": mask, "token_type_ids": types, "labels": torch.tensor(CLASSES)}
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.where(mask == 1, ids, -100)}


def shake(model, g, ones):
    """Random values for all that is trained; scalings and norms about 1."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.requires_grad:
                about = 1.0 if "scaling" in name or (name.endswith("lora_B") and ones) or ("norm" in name and name.endswith("weight")) else 0.0
                p.copy_(about + 0.2 * torch.randn(p.shape, generator=g))


def case(name, out):
    base, config = CASES[name]
    torch.manual_seed(0)
    model = base_model(base)
    model.add_adapter("task", config=config)
    if base == "bert_base":
        # The library turns the checkpoint's own classifier into a head called `default`.
        for head in list(model.heads):
            model.delete_head(head)
        model.add_classification_head("task", num_labels=3, layers=1, use_pooler=True)
    model.train_adapter("task")
    model.eval()
    shake(model, torch.Generator().manual_seed(sum(map(ord, name))), ones=getattr(config, "composition_mode", None) == "scale")
    folder = out / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    # A norm in front of the bottleneck has two names, which only a .bin file can hold.
    # A language model's own head is saved beside unless told otherwise: one case has it.
    with_head = base == "bert_base" or name == "llama_ah_seq_bn"
    model.save_adapter(str(folder), "task", with_head=with_head, use_safetensors=not (getattr(config, "ln_before", False) or "prefix" in name))
    for config_file in folder.glob("*_config.json"):
        value = json.loads(config_file.read_text())
        value["model_name"] = ""
        config_file.write_text(json.dumps(value, indent=2, sort_keys=True))
    saved = [load_file(f) for f in folder.glob("*.safetensors")] + [torch.load(f) for f in folder.glob("*.bin")]
    names = {k for tensors in saved for k in tensors}
    inputs = batch(base)
    save_file(inputs, folder / "inputs.safetensors")

    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    # the head lies in the file as `heads.task...`, the rest under its own name
    assert set(trained) <= names, set(trained) - names

    def loss_of():
        result = model(**inputs)
        return result.loss, result.logits

    optimizer = torch.optim.AdamW(trained.values(), lr=1e-2, weight_decay=0.01)
    losses = []
    for step in range(5):
        optimizer.zero_grad()
        loss, logits = loss_of()
        loss.backward()
        losses.append(loss.item())
        if step == 0:
            save_file({"logits": logits.detach().contiguous(), "loss": loss.detach().reshape(1)}, folder / "logits.safetensors")
            save_file({n: p.grad.contiguous() for n, p in trained.items()}, folder / "grads.safetensors")
        optimizer.step()
        if step == 0:
            save_file({n: p.detach().clone().contiguous() for n, p in trained.items()}, folder / "step1.safetensors")
    meta = {"case": name, "base": base, "adapters": adapters.__version__, "transformers": transformers.__version__, "torch": torch.__version__.split("+")[0],
            "python": sys.version.split()[0], "trainable": sum(p.numel() for p in trained.values()), "loss": losses[0], "adamw_losses": losses}
    (folder / "meta.json").write_text(json.dumps(meta, indent=1) + "\n")
    print(name, losses)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=PARITY)
    parser.add_argument("--only", nargs="*")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for name in args.only or CASES:
        case(name, args.out)


main()
