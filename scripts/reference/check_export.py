"""Checks that transformers loads a folder that Retune exported, without a missing or left-over tensor, and gets the same logits.

  python scripts/reference/check_export.py FOLDER --inputs TOKENS.safetensors --logits LOGITS.safetensors

FOLDER holds a model of any of the supported classes: `architectures` of its config.json says which (GPT2LMHeadModel, BertForSequenceClassification,
BertForMaskedLM, BertModel, ...). TOKENS holds input_ids, attention_mask and perhaps token_type_ids, I64 [rows, length]; LOGITS what is expected:
`logits`, for a class without a head `hidden`, compared at the real positions: max|a - b| <= 1e-4 max|b|. A trunk may lack the pooler: GGUF files have
none. Prints one JSON line. Exit status: 0 all right; 1 something differs.

  RETUNE_TEST_EXPORTS=/tmp/exports cargo test -p retune --test models
  for d in /tmp/exports/*; do PY scripts/reference/check_export.py $d --inputs $d/inputs.safetensors --logits $d/expected.safetensors; done
"""
import argparse, json, pathlib, sys
import torch
from reference import load_file


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("folder", type=pathlib.Path)
    ap.add_argument("--inputs", required=True)
    ap.add_argument("--logits", required=True)
    ap.add_argument("--tolerance", type=float, default=1e-4)
    a = ap.parse_args()
    torch.set_num_threads(1)
    import transformers
    config = transformers.AutoConfig.from_pretrained(a.folder)
    name = config.architectures[0]
    model, info = getattr(transformers, name).from_pretrained(a.folder, dtype=torch.float32, output_loading_info=True)
    problems = {k: sorted(str(x) for x in v if not (name.endswith("Model") and str(x).startswith("pooler."))) for k, v in info.items()}
    problems = {k: v for k, v in problems.items() if v}
    tokens = load_file(a.inputs)
    keys = [k for k in ("input_ids", "attention_mask", "token_type_ids") if k in tokens]
    with torch.no_grad():
        out = model.eval()(**{k: tokens[k] for k in keys})
    ours = out.logits if hasattr(out, "logits") else out.last_hidden_state
    file = load_file(a.logits)
    want = file["logits"] if "logits" in file else file["hidden"]
    if ours.dim() == 3:
        real = tokens["attention_mask"].bool()
        ours, want = ours[real], want[real]
    off = float((ours - want).abs().max() / want.abs().max()) if ours.shape == want.shape else None
    ok = not problems and off is not None and off <= a.tolerance
    labels = [config.id2label[i] for i in sorted(config.id2label)] if "Classification" in name else None
    print(json.dumps({"folder": str(a.folder), "class": name, "labels": labels, "relative": off, "problems": problems, "ok": ok}))
    sys.exit(0 if ok else 1)


if __name__ == "__main__":
    main()
