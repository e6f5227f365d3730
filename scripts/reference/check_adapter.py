"""Checks logits that Retune wrote against transformers + PEFT on the very same base, adapter and tokens (CPU, f32).

  retune logits --model BASE --adapter ADAPTER --ids TOKENS.safetensors --out LOGITS.safetensors
  python scripts/reference/check_adapter.py --model BASE --adapter ADAPTER --ids TOKENS.safetensors --logits LOGITS.safetensors

BASE is a Hugging Face folder or one GGUF file (transformers expands it to f32). Without --adapter the base alone is checked, which is
also how a merged or exported folder is checked: against the file that it came from, with --expect-model.
Prints one JSON line. Exit status: 0 all right; 1 something differs (`failed` names what); 2 wrong usage.
"""
import argparse, json, sys, warnings
import torch
from reference import compare, forward, load_base, load_file, read_tokens, save_file


def load_adapter(base, folder):
    """PEFT's model, and what PEFT could not place: tensors missing in the file, left over in it, or changed on the way in."""
    import peft
    from peft.utils import load_peft_weights
    config = peft.PeftConfig.from_pretrained(folder)
    config.inference_mode = True
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = peft.PeftModelForCausalLM(base, config, "default")
        result = model.load_adapter(folder, "default", is_trainable=False)
    stored = load_peft_weights(folder, device="cpu")
    loaded = peft.get_peft_model_state_dict(model)
    changed = [k for k in sorted(stored.keys() & loaded.keys())
               if stored[k].shape != loaded[k].shape or not torch.equal(stored[k].float(), loaded[k].float())]
    report = {
        "peft_type": str(getattr(config.peft_type, "value", config.peft_type)),
        "adapter_tensors": len(stored),
        "missing_keys": sorted(set(loaded) - set(stored) | {k for k in result.missing_keys if "lora_" in k}),
        "unexpected_keys": sorted(set(stored) - set(loaded) | set(result.unexpected_keys)),
        "changed_keys": changed,
        "warnings": sorted({str(w.message).split("\n")[0] for w in caught
                            if any(word in str(w.message).lower() for word in ("missing", "unexpected", "adapter"))}),
    }
    return model.eval(), report


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--model", required=True, help="the base: Hugging Face folder or GGUF file")
    ap.add_argument("--adapter", help="folder with adapter_config.json and adapter_model.safetensors")
    ap.add_argument("--ids", required=True, help="safetensors with input_ids, attention_mask, and labels if the loss is to be compared")
    ap.add_argument("--logits", help="safetensors with logits [rows, length, vocab] (and loss), as `retune logits` writes")
    ap.add_argument("--expect-model", help="compare transformers' logits on this folder or file instead of --logits (say, a merged folder)")
    ap.add_argument("--write", help="also write the reference's logits (zeros at padding) and loss to this safetensors file")
    ap.add_argument("--any-padding", action="store_true", help="do not require zeros at padding (files that transformers wrote have values there)")
    ap.add_argument("--tolerance", type=float, default=1e-4, help="times max|reference| (default 1e-4)")
    ap.add_argument("--threads", type=int, default=2)
    a = ap.parse_args()
    if not (a.logits or a.expect_model or a.write):
        ap.error("nothing to compare: give --logits, --expect-model or --write")
    torch.set_num_threads(a.threads)

    ids, mask, labels = read_tokens(a.ids)
    result, failed = {"check": "logits", "model": a.model, "adapter": a.adapter}, []
    model = load_base(a.model)
    if int(ids.max()) >= model.config.vocab_size:
        raise SystemExit(f"{a.ids}: id {int(ids.max())} is outside the vocabulary of {model.config.vocab_size}")
    if a.adapter:
        model, report = load_adapter(model, a.adapter)
        result |= report
        failed += [k for k in ("missing_keys", "unexpected_keys", "changed_keys") if report[k]]
    with torch.no_grad():
        reference, loss = forward(model, ids, mask, labels)
        if a.adapter:   # an adapter that does nothing would pass unnoticed
            with model.disable_adapter():
                base_logits, _ = forward(model, ids, mask)
            result["adapter_moves_logits_by"] = float((reference - base_logits).abs().max())
            del base_logits
    if loss is not None:
        result["reference_loss"] = float(loss)
    if a.write:
        save_file({"logits": reference.contiguous()} | ({"loss": loss.reshape(1)} if loss is not None else {}), a.write)

    ours, ours_loss = None, None
    if a.expect_model:
        del model
        with torch.no_grad():
            ours, ours_loss = forward(load_base(a.expect_model), ids, mask, labels)
    elif a.logits:
        file = load_file(a.logits)
        if "logits" not in file:
            raise SystemExit(f"{a.logits}: no tensor 'logits'; it has {sorted(file)}")
        ours, ours_loss = file["logits"], file.get("loss")
    if ours is not None:
        if ours.shape != reference.shape:
            failed.append("shape")
            result |= {"shape": list(ours.shape), "shape_reference": list(reference.shape)}
        else:
            result |= compare(ours, reference, mask, a.tolerance) | {"tolerance": a.tolerance}
            result["padding_is_zero"] = not bool(ours[~mask.bool()].any())
            failed += ["logits"] * (not result["relative"] <= a.tolerance)
            failed += ["finite"] * (not result["finite"]) + ["padding"] * (not (a.any_padding or result["padding_is_zero"]))
        if ours_loss is not None and loss is not None:
            result["loss"] = float(ours_loss)
            failed += ["loss"] * (not abs(result["loss"] - float(loss)) <= a.tolerance * abs(float(loss)))
    result |= {"ok": not failed, "failed": failed}
    print(json.dumps(result))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
