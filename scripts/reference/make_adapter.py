"""Makes a LoRA adapter with PEFT, for checking that Retune reads PEFT's files and gets PEFT's numbers.

  python scripts/reference/make_adapter.py --model BASE --out DIR [--rank 8 --alpha 16 --rslora --targets q_proj,v_proj ...]
  retune logits --model BASE --adapter DIR --ids DIR/inputs.safetensors --out L.safetensors
  python scripts/reference/check_adapter.py --model BASE --adapter DIR --ids DIR/inputs.safetensors --logits L.safetensors

Every tensor of the adapter is non-zero (both A and B), so that a swapped, transposed or unscaled factor shows. Writes into DIR:
adapter_config.json and adapter_model.safetensors (PEFT's own `save_pretrained`), inputs.safetensors (two or more right-padded rows with
attention_mask and labels), logits.safetensors (`logits` with zeros at padding, and `loss`). Prints one JSON line.
"""
import argparse, json, pathlib
import torch
from reference import forward, load_base, random_tokens, read_tokens, save_file, save_tokens

ALL_LINEARS = "q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj"


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--model", required=True, help="the base: Hugging Face folder or GGUF file")
    ap.add_argument("--out", required=True)
    ap.add_argument("--rank", type=int, default=8)
    ap.add_argument("--alpha", type=float, default=16)
    ap.add_argument("--rslora", action="store_true", help="scale by alpha / sqrt(rank) instead of alpha / rank")
    ap.add_argument("--dora", action="store_true")
    ap.add_argument("--targets", default=ALL_LINEARS, help=f"comma-separated, or one regular expression after 're:', or all-linear (default {ALL_LINEARS})")
    ap.add_argument("--rank-pattern", type=json.loads, default={}, help='JSON, e.g. \'{"q_proj": 2}\'')
    ap.add_argument("--alpha-pattern", type=json.loads, default={})
    ap.add_argument("--layers", type=lambda s: [int(x) for x in s.split(",")], help="layers_to_transform, comma-separated")
    ap.add_argument("--dtype", choices=["f32", "bf16", "f16"], default="f32", help="of the saved adapter (the logits use the rounded values)")
    ap.add_argument("--ids", help="use these tokens instead of random ones")
    ap.add_argument("--lengths", type=lambda s: [int(x) for x in s.split(",")], default=[17, 9], help="row lengths (default 17,9)")
    ap.add_argument("--strength", type=float, default=0.2, help="scales B (default 0.2: the logits move visibly, and a deep model stays sane)")
    ap.add_argument("--seed", type=int, default=0)
    ap.add_argument("--threads", type=int, default=2)
    a = ap.parse_args()
    torch.set_num_threads(a.threads)
    import peft

    base = load_base(a.model)
    targets = a.targets[3:] if a.targets.startswith("re:") else a.targets if a.targets == "all-linear" else a.targets.split(",")
    alpha = int(a.alpha) if a.alpha == int(a.alpha) else a.alpha
    config = peft.LoraConfig(task_type=peft.TaskType.CAUSAL_LM, r=a.rank, lora_alpha=alpha, use_rslora=a.rslora, use_dora=a.dora,
                             target_modules=targets, rank_pattern=a.rank_pattern, alpha_pattern=a.alpha_pattern,
                             layers_to_transform=a.layers, lora_dropout=0.0)
    torch.manual_seed(a.seed)
    model = peft.get_peft_model(base, config)
    generator = torch.Generator().manual_seed(a.seed)
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}[a.dtype]
    with torch.no_grad():
        for name, p in sorted(model.named_parameters()):
            if ".lora_A." in name:     # an output of unit size for an input of unit size
                p.copy_(torch.randn(p.shape, generator=generator) / p.shape[1] ** 0.5)
            elif ".lora_B." in name:
                p.copy_(torch.randn(p.shape, generator=generator) * (0.1 * a.strength / p.shape[1] ** 0.5))
            elif "lora_magnitude_vector" in name:
                p.mul_(1 + 0.1 * torch.randn(p.shape, generator=generator))
            if p.requires_grad:
                p.copy_(p.to(dtype).float())
    model.eval()

    out = pathlib.Path(a.out)
    model.save_pretrained(out)
    if a.dtype != "f32":
        from safetensors.torch import load_file
        path = out / "adapter_model.safetensors"
        save_file({k: v.to(dtype) for k, v in load_file(path).items()}, str(path), metadata={"format": "pt"})
    if a.ids:
        ids, mask, labels = read_tokens(a.ids)
    else:
        tokens = random_tokens(base.config.vocab_size, a.lengths, generator)
        ids, mask, labels = tokens["input_ids"], tokens["attention_mask"], tokens["labels"]
    save_tokens(out / "inputs.safetensors", dict(input_ids=ids, attention_mask=mask) | ({"labels": labels} if labels is not None else {}))
    with torch.no_grad():
        logits, loss = forward(model, ids, mask, labels)
        with model.disable_adapter():
            base_logits, _ = forward(model, ids, mask)
    save_file({"logits": logits.contiguous()} | ({"loss": loss.reshape(1)} if loss is not None else {}), str(out / "logits.safetensors"))
    print(json.dumps({"made": str(out), "r": a.rank, "lora_alpha": alpha, "use_rslora": a.rslora, "use_dora": a.dora, "target_modules": targets,
                      "trainable": sum(p.numel() for p in model.parameters() if p.requires_grad),
                      "tokens": int(mask.sum()), "loss": None if loss is None else float(loss),
                      "adapter_moves_logits_by": float((logits - base_logits).abs().max()), "max_abs_logit": float(logits.abs().max())}))


if __name__ == "__main__":
    main()
