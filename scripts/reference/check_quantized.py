"""Checks that other programs load what `retune quantize` (or `merge`, `export`) wrote, and get the same values from it.

  retune quantize MODEL --to nf4 --out Q;  retune quantize Q --to f32 --out PLAIN
  PY scripts/reference/check_quantized.py Q --plain PLAIN

  retune quantize MODEL --to q8_0 --out q.gguf;  retune export --model q.gguf --out PLAIN --dtype f32
  PY scripts/reference/check_quantized.py q.gguf --plain PLAIN --prompt "Once upon a time"

A folder is loaded by transformers with bitsandbytes: every quantised layer is dequantised by bitsandbytes and compared with PLAIN, what is not quantised must be
equal; then the logits of both on random ids. A GGUF file is read twice: by transformers (through `gguf`), whose values and names must be those of PLAIN, and, with
--prompt, by llama.cpp, which continues the prompt greedily beside transformers on PLAIN: the same text is demanded of f32, f16 and bf16 files; with blocks llama.cpp
rounds activations to 8 bits, so that the texts part after some tokens. Prints one JSON line. Exit status: 0 all right; 1 something differs.
"""
import argparse, json, pathlib, sys
import torch


def folder(path, plain):
    """bitsandbytes' values against ours: (largest |difference| of quantised layers relative to their values, layers, others that differ)."""
    import bitsandbytes as bnb
    import transformers
    name = transformers.AutoConfig.from_pretrained(plain).architectures[0]
    cls = getattr(transformers, name)
    model, info = cls.from_pretrained(path, output_loading_info=True)
    want = cls.from_pretrained(plain, dtype=torch.float32)
    problems = {k: sorted(map(str, v)) for k, v in info.items() if v}
    expected, off, layers = dict(want.named_parameters()), 0.0, 0
    others = []
    modules = dict(model.named_modules())
    for key, value in expected.items():
        module = modules[key.rsplit(".", 1)[0]]
        leaf = key.rsplit(".", 1)[1]
        got = getattr(module, leaf)
        if leaf == "weight" and isinstance(module, bnb.nn.Linear4bit):
            got = bnb.functional.dequantize_4bit(got.data, got.quant_state).float()
        elif leaf == "weight" and isinstance(module, bnb.nn.Linear8bitLt):
            scb = got.SCB if getattr(got, "SCB", None) is not None else module.state.SCB
            got = got.data.float() * scb.float().reshape(-1, 1) / 127
        else:
            if not torch.equal(got.float(), value.float()):
                others.append(key)
            continue
        value = value.T if got.shape != value.shape else value
        layers += 1
        off = max(off, float((got - value).abs().max() / value.abs().max()))
    ids = torch.randint(0, want.config.vocab_size, (1, 12), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        a, b = (m.eval()(input_ids=ids) for m in (model, want))
    a, b = ((x.logits if hasattr(x, "logits") else x.last_hidden_state).float() for x in (a, b))
    return {"layers": layers, "values_off": off, "others_that_differ": others, "problems": problems, "logits_off": float((a - b).abs().max() / b.abs().max())}


def gguf_values(path, plain):
    """The values as transformers reads them out of the file, by their Hugging Face names."""
    import transformers
    model = transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    want = transformers.AutoModelForCausalLM.from_pretrained(plain, dtype=torch.float32)
    got, differ = model.state_dict(), []
    for key, value in want.state_dict().items():
        if key not in got or got[key].shape != value.shape or not torch.allclose(got[key], value, rtol=0, atol=1e-6 * float(value.abs().max())):
            differ.append(key)
    import gguf
    blocks = any(t.tensor_type.name not in ("F32", "F16", "BF16") for t in gguf.GGUFReader(path).tensors)
    return {"tensors": len(got), "blocks": blocks, "others_that_differ": differ}


def greedy(path, plain, prompt, tokens):
    """llama.cpp's continuation of the file, and transformers' of the plain folder."""
    import transformers
    from llama_cpp import LlamaCpp
    server = LlamaCpp(path)
    body = {"prompt": prompt, "n_predict": tokens, "temperature": 0.0, "top_k": 1, "cache_prompt": False}
    theirs = server.post("/completion", body)["content"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(plain)
    model = transformers.AutoModelForCausalLM.from_pretrained(plain, dtype=torch.float32)
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    same_ids = server.tokenize(prompt) == ids[0].tolist()[-len(server.tokenize(prompt)):]
    with torch.no_grad():
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False)
    ours = tokenizer.decode(out[0, ids.shape[1]:], skip_special_tokens=True)
    return {"llama_cpp": theirs, "transformers": ours, "same_text": theirs.strip() == ours.strip(), "same_ids": same_ids}


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("model", type=pathlib.Path)
    ap.add_argument("--plain", type=pathlib.Path, required=True, help="the same model, dequantised by Retune")
    ap.add_argument("--prompt", help="continue this text greedily (GGUF files)")
    ap.add_argument("--tokens", type=int, default=24)
    ap.add_argument("--tolerance", type=float, default=1e-5)
    a = ap.parse_args()
    torch.set_num_threads(2)
    torch.set_grad_enabled(False)
    if a.model.suffix == ".gguf":
        found = gguf_values(a.model, a.plain)
        if a.prompt:
            found |= greedy(a.model, a.plain, a.prompt, a.tokens)
        same_text = found.get("same_text", True) or found["blocks"]
        ok = not found["others_that_differ"] and same_text and found.get("same_ids", True)
    else:
        found = folder(a.model, a.plain)
        ok = not found["problems"] and not found["others_that_differ"] and found["layers"] > 0 and found["values_off"] <= a.tolerance
    print(json.dumps({"model": str(a.model), **found, "ok": ok}))
    sys.exit(0 if ok else 1)


if __name__ == "__main__":
    main()
