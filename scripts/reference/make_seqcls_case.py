"""What transformers' LlamaForSequenceClassification says of tests/data/parity/llama_base_full with a made-up head.

  python scripts/reference/make_seqcls_case.py [--out tests/data/parity/llama_seqcls]

The head is `score.weight[i, j] = 0.2 sin(1 + 64 i + j)`, 3 x 64, no bias: it reads the last real row of each text. Inputs and base are
llama_base_full's; the labels are 2, 0, 1. Writes logits.safetensors (`logits` F32 [3, 3], `loss` [1]) and the gradient of the head and of one
inner weight in grads.safetensors.
"""
import argparse, pathlib
import torch
from reference import ROOT, load_file, save_file


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--out", default=ROOT / "tests/data/parity/llama_seqcls", type=pathlib.Path)
    a = ap.parse_args()
    torch.set_num_threads(1)
    from transformers import LlamaConfig, LlamaForSequenceClassification
    base = ROOT / "tests/data/parity/llama_base_full"
    config = LlamaConfig.from_pretrained(base, num_labels=3, pad_token_id=0)
    model = LlamaForSequenceClassification.from_pretrained(base, config=config, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        model.score.weight.copy_(0.2 * torch.sin(1 + torch.arange(3 * 64, dtype=torch.float64)).reshape(3, 64))
    tokens = load_file(base / "inputs.safetensors")
    ids = tokens["input_ids"].masked_fill(tokens["attention_mask"] == 0, 0)
    if bool((ids.eq(0) & tokens["attention_mask"].bool()).any()):
        raise SystemExit("a real token is the padding's: the last row would be misread")
    out = model(input_ids=ids, attention_mask=tokens["attention_mask"], labels=torch.tensor([2, 0, 1]))
    out.loss.backward()
    a.out.mkdir(parents=True, exist_ok=True)
    save_file({"logits": out.logits.detach().contiguous(), "loss": out.loss.detach().reshape(1)}, str(a.out / "logits.safetensors"))
    named = dict(model.named_parameters())
    kept = ("score.weight", "model.layers.1.self_attn.v_proj.weight")
    save_file({n: named[n].grad.contiguous() for n in kept}, str(a.out / "grads.safetensors"))
    print([[round(x, 4) for x in row] for row in out.logits.tolist()], float(out.loss.detach()))


if __name__ == "__main__":
    main()
