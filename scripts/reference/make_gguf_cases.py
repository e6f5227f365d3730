"""Makes small GGUF data with known contents: blocks of every quantised type, and a tiny Llama that mixes all of them.

  python scripts/reference/make_gguf_cases.py [--out tests/data/gguf]

blocks.safetensors: for each type `TYPE.raw` (U8 [3, bytes of a row], blocks of random bits with sane scales) and `TYPE.values`
(F32 [3, 512], what gguf's own dequantisation makes of them).
tiny_mixed.gguf: a Llama of 2 layers, hidden 256, untied, whose 16 matrices use all these types, with a byte-level tokenizer and a chat
template inside; inputs.safetensors, logits.safetensors: what transformers computes on it, expanded to f32.
lora/: a LoRA on all its linears made with PEFT: adapter, logits, loss, and gradients of all of its tensors.
"""
import argparse, json, pathlib
import numpy as np
import torch
from reference import ROOT, forward, load_base, random_tokens, save_file, save_tokens, sha256, versions, write_json

# type: (values a block, bytes a block, where the f16 scale lies, where the f16 minimum lies or None, what an average quant is)
LAYOUTS = {
    "Q4_0": (32, 18, 0, None, 0), "Q4_1": (32, 20, 0, 2, -7.5), "Q5_0": (32, 22, 0, None, 0), "Q5_1": (32, 24, 0, 2, -15.5), "Q8_0": (32, 34, 0, None, 0),
    "Q2_K": (256, 84, 80, 82, 1.5), "Q3_K": (256, 110, 108, None, 0), "Q4_K": (256, 144, 0, 2, 7.5), "Q5_K": (256, 176, 0, 2, 15.5), "Q6_K": (256, 210, 208, None, 0),
}
DENSE = ("F32", "F16", "BF16")
HIDDEN, HEADS, KV_HEADS, FF, LAYERS = 256, 8, 2, 256, 2
SPECIAL = ["<pad>", "<|im_start|>", "<|im_end|>"]
MERGES = ["t h", "th e", "Ġ the", "i n", "Ġ a"]
TEMPLATE = "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"


def put_f16(blocks, offset, values):
    blocks[:, offset:offset + 2] = np.asarray(values, np.float16).reshape(-1, 1).view(np.uint8)


def random_raw(kind, rows, columns, rng, deviation=0.06):
    """U8 [rows, row bytes] of random bits; every block has its own scale, chosen for values of about the given deviation."""
    import gguf
    if kind in DENSE:
        values = (deviation * rng.standard_normal((rows, columns))).astype(np.float32)
        return gguf.quants.quantize(values, getattr(gguf.GGMLQuantizationType, kind)).view(np.uint8).reshape(rows, -1)
    size, nbytes, scale_at, min_at, middle = LAYOUTS[kind]
    count = rows * columns // size
    blocks = rng.integers(0, 256, (count, nbytes), dtype=np.uint8)
    spread = rng.uniform(0.5, 1.5, count).astype(np.float32)

    def set_scale(d):
        put_f16(blocks, scale_at, spread * d)
        if min_at is not None:
            put_f16(blocks, min_at, spread * d * middle)
    set_scale(1e-2)
    first = dequantise(kind, blocks.reshape(rows, -1))
    set_scale(1e-2 * deviation / first.std())
    return blocks.reshape(rows, -1)


def dequantise(kind, raw):
    import gguf
    t = getattr(gguf.GGMLQuantizationType, kind)
    raw = raw.view({"F32": np.float32, "F16": np.float16}.get(kind, np.uint8))
    return np.ascontiguousarray(gguf.quants.dequantize(raw, t), dtype=np.float32).reshape(raw.shape[0], -1)


def byte_alphabet():
    """GPT-2's 256 stand-in characters, in byte order."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    extra = iter(range(256, 512))
    return [chr(b) if b in shown else chr(next(extra)) for b in range(256)]


def tensors(rng):
    """(name, type, raw rows) of the tiny model; layer 0 and 1 differ in every type."""
    kinds = [dict(attn_q="Q4_K", attn_k="Q5_K", attn_v="Q6_K", attn_output="Q3_K", ffn_gate="Q2_K", ffn_up="Q4_0", ffn_down="Q5_1"),
             dict(attn_q="Q4_1", attn_k="F16", attn_v="BF16", attn_output="Q5_0", ffn_gate="Q8_0", ffn_up="Q3_K", ffn_down="Q4_K")]
    rows = dict(attn_q=HIDDEN, attn_k=HIDDEN // HEADS * KV_HEADS, attn_v=HIDDEN // HEADS * KV_HEADS, attn_output=HIDDEN, ffn_gate=FF, ffn_up=FF, ffn_down=HIDDEN)
    vocabulary = len(SPECIAL) + 256 + len(MERGES)

    def norm():
        return (1 + 0.2 * rng.standard_normal((1, HIDDEN))).astype(np.float32)
    yield "token_embd.weight", "Q8_0", random_raw("Q8_0", vocabulary, HIDDEN, rng, 0.5)
    for layer in range(LAYERS):
        yield f"blk.{layer}.attn_norm.weight", "F32", norm()
        yield f"blk.{layer}.ffn_norm.weight", "F32", norm()
        for name, kind in kinds[layer].items():
            columns = FF if name == "ffn_down" else HIDDEN
            yield f"blk.{layer}.{name}.weight", kind, random_raw(kind, rows[name], columns, rng)
    yield "output_norm.weight", "F32", norm()
    yield "output.weight", "Q6_K", random_raw("Q6_K", vocabulary, HIDDEN, rng, 0.15)


def write_gguf(path, rng):
    import gguf
    w = gguf.GGUFWriter(str(path), "llama")
    w.add_name("tiny mixed")
    w.add_block_count(LAYERS), w.add_context_length(512), w.add_embedding_length(HIDDEN), w.add_feed_forward_length(FF)
    w.add_head_count(HEADS), w.add_head_count_kv(KV_HEADS), w.add_rope_freq_base(10000.0), w.add_rope_dimension_count(HIDDEN // HEADS)
    w.add_layer_norm_rms_eps(1e-5)
    tokens = SPECIAL + byte_alphabet() + [m.replace(" ", "") for m in MERGES]
    w.add_vocab_size(len(tokens))
    w.add_tokenizer_model("gpt2"), w.add_tokenizer_pre("smollm"), w.add_token_list(tokens)
    w.add_token_types([3] * len(SPECIAL) + [1] * (len(tokens) - len(SPECIAL)))
    w.add_token_merges(MERGES)
    w.add_pad_token_id(0), w.add_bos_token_id(1), w.add_eos_token_id(2), w.add_add_bos_token(False), w.add_chat_template(TEMPLATE)
    kinds = {}
    for name, kind, raw in tensors(rng):
        kinds[name] = kind
        if kind == "F32":
            w.add_tensor(name, raw.reshape(-1) if raw.shape[0] == 1 else raw)
        elif kind == "F16":
            w.add_tensor(name, raw.view(np.float16))
        else:
            w.add_tensor(name, raw, raw_dtype=getattr(gguf.GGMLQuantizationType, kind))
    w.write_header_to_file(), w.write_kv_data_to_file(), w.write_tensors_to_file(), w.close()
    return kinds


def make_lora(model, folder, tokens, generator):
    """PEFT's adapter on every linear, with what PEFT and torch compute of it."""
    import peft
    model = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8,
                                target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]))
    with torch.no_grad():
        for name, p in sorted(model.named_parameters()):
            if "lora_" in name:
                p.copy_(torch.randn(p.shape, generator=generator) * (p.shape[1] ** -0.5 if "lora_A" in name else 0.05))
    model.eval().save_pretrained(folder)
    # PEFT writes where the base lay when this ran: no business of the committed file.
    config = folder / "adapter_config.json"
    saved = json.loads(config.read_text())
    config.write_text(json.dumps(saved | {"base_model_name_or_path": None}, indent=2, sort_keys=True))
    (folder / "README.md").unlink()
    logits, loss = forward(model, tokens["input_ids"], tokens["attention_mask"], tokens["labels"])
    loss.backward()
    save_file({"logits": logits.detach().contiguous(), "loss": loss.detach().reshape(1)}, str(folder / "logits.safetensors"))
    save_file({n: p.grad.contiguous() for n, p in model.named_parameters() if p.grad is not None}, str(folder / "grads.safetensors"))
    return float(loss.detach())


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--out", default=ROOT / "tests" / "data" / "gguf", type=pathlib.Path)
    ap.add_argument("--seed", type=int, default=11)
    a = ap.parse_args()
    torch.set_num_threads(1)
    a.out.mkdir(parents=True, exist_ok=True)
    rng, generator = np.random.default_rng(a.seed), torch.Generator().manual_seed(a.seed)

    blocks = {}
    for kind in [*LAYOUTS, "F16", "BF16"]:
        raw = random_raw(kind, 3, 512, rng)
        blocks[f"{kind}.raw"] = torch.from_numpy(raw.copy())
        blocks[f"{kind}.values"] = torch.from_numpy(dequantise(kind, raw))
    save_file(blocks, str(a.out / "blocks.safetensors"))

    gguf_path = a.out / "tiny_mixed.gguf"
    kinds = write_gguf(gguf_path, rng)
    model = load_base(gguf_path)
    tokens = random_tokens(model.config.vocab_size, [21, 8], generator)
    save_tokens(a.out / "inputs.safetensors", tokens)
    with torch.no_grad():
        logits, loss = forward(model, tokens["input_ids"], tokens["attention_mask"], tokens["labels"])
    save_file({"logits": logits.contiguous(), "loss": loss.reshape(1)}, str(a.out / "logits.safetensors"))
    lora_loss = make_lora(model, a.out / "lora", tokens, generator)
    write_json(a.out / "meta.json", {"model_sha256": sha256(gguf_path), "types": kinds, "loss": float(loss), "max_abs_logit": float(logits.abs().max()), "lora_loss": lora_loss,
                                     "versions": versions("gguf", "numpy", "torch", "transformers", "peft")})
    print(json.dumps({"out": str(a.out), "bytes": {f.name: f.stat().st_size for f in sorted(a.out.rglob("*")) if f.is_file()}, "loss": float(loss), "lora_loss": lora_loss,
                      "max_abs_logit": float(logits.abs().max())}))


if __name__ == "__main__":
    main()
