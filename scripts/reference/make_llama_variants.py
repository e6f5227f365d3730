"""Makes tiny random models of every Llama-shaped kind with transformers, with inputs, logits, loss and gradients from torch.

  python scripts/reference/make_llama_variants.py [--out tests/data/llama_variants] [--only NAME ...]

One folder a variant: config.json and model.safetensors (or shards with their index) as `save_pretrained` writes them; config_v4.json, the
same settings in the words that older transformers wrote and most published models have (`rope_theta`, `rope_scaling`, `torch_dtype`);
inputs.safetensors (two right-padded rows of different length: input_ids, attention_mask, labels with -100);
logits.safetensors (`logits` with zeros at padding, `loss`); grads.safetensors (d loss / d weight of a few weights); meta.json.
Everything is computed in f32; weights stored as bf16 are rounded before, so the stored values are the exact ones.
"""
import argparse, json, pathlib, shutil, tempfile
import torch
from reference import ROOT, compare, forward, load_base, random_tokens, save_file, save_tokens, versions, write_json

VOCAB = 160
SIZE = dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=96, vocab_size=VOCAB,
            max_position_embeddings=256, rms_norm_eps=1e-5, bos_token_id=1, eos_token_id=2, pad_token_id=0)
LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32)

# name: (model class, settings, dtype of the file, largest shard or None, what it is for)
VARIANTS = {
    "mistral": ("Mistral", dict(tie_word_embeddings=False, head_dim=16, rms_norm_eps=1e-5, sliding_window=4096, rope_theta=10000.0),
                "bf16", None, "Mistral: untied, head_dim named, a sliding window longer than any row"),
    "qwen2": ("Qwen2", dict(tie_word_embeddings=True, rms_norm_eps=1e-6, rope_theta=1000000.0, use_sliding_window=False, sliding_window=32768, max_window_layers=2),
              "f32", None, "Qwen2: biases on q, k and v, not on o; large rotary base; the sliding window is switched off"),
    "qwen3": ("Qwen3", dict(tie_word_embeddings=True, head_dim=32, rms_norm_eps=1e-6, rope_theta=1000000.0, attention_bias=False),
              "f32", None, "Qwen3: a norm on each head's q and k before rotation; head_dim 32 while hidden / heads is 16"),
    "llama_rope_llama3": ("Llama", dict(tie_word_embeddings=False, rope_theta=10000.0, rope_scaling=LLAMA3),
                          "f32", None, "Llama 3.1's rope scaling; original length 32, so that all three bands occur; untied"),
    "llama_rope_linear": ("Llama", dict(tie_word_embeddings=True, rope_theta=10000.0, rope_scaling=dict(rope_type="linear", factor=4.0)),
                          "f32", None, "linear rope scaling"),
    "llama_bias": ("Llama", dict(tie_word_embeddings=True, rope_theta=10000.0, attention_bias=True, mlp_bias=True),
                   "f32", None, "biases on all seven linears"),
    "llama_sharded": ("Llama", dict(tie_word_embeddings=True, rope_theta=10000.0), "bf16", "60KB", "weights in shards with model.safetensors.index.json"),
}
LENGTHS = {"default": [15, 7], "llama_rope_llama3": [45, 12]}   # longer than the original length
GRADS = ("model.embed_tokens.weight", "layers.0.self_attn.q_proj", "layers.1.mlp.down_proj", "layers.0.input_layernorm", "model.norm.weight",
         "layers.0.self_attn.q_norm", "layers.0.self_attn.k_norm", "layers.0.self_attn.k_proj.bias", "layers.1.self_attn.v_proj.bias")


def config_of(kind, settings):
    import transformers
    settings = dict(settings)
    rope = dict(rope_theta=settings.pop("rope_theta"), **settings.pop("rope_scaling", dict(rope_type="default")))
    return getattr(transformers, kind + "Config")(**(SIZE | settings), rope_parameters=rope, initializer_range=0.2)


def randomise(model, dtype, generator):
    """Random values everywhere, also where a fresh model has ones and zeros, then rounded to what the file will hold."""
    with torch.no_grad():
        for name, p in sorted(model.named_parameters()):
            x = torch.randn(p.shape, generator=generator)
            if "norm" in name:
                x = 1 + 0.2 * x
            elif name.endswith("bias"):
                x = 0.5 * x
            else:
                x = 0.15 * x
            p.copy_(x.to(dtype).float())


def old_words(config):
    """config.json as transformers 4 wrote it."""
    old = dict(config)
    rope = dict(old.pop("rope_parameters"))
    old["rope_theta"] = rope.pop("rope_theta")
    old["rope_scaling"] = None if rope.get("rope_type") == "default" else rope
    if rope.get("rope_type") == "linear":   # and before 4.43 the key was `type`
        old["rope_scaling"] = {"type": "linear", "factor": rope["factor"]}
    old["torch_dtype"] = old.pop("dtype")
    old["transformers_version"] = "4.44.0"
    if old.get("use_sliding_window") is False:   # published Qwen2 files name a window and switch it off
        old["sliding_window"] = 32768
    for key in ("layer_types", "_from_model_config"):
        old.pop(key, None)
    return old


def make(name, out, seed):
    import transformers
    kind, settings, dtype_name, shard, purpose = VARIANTS[name]
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[dtype_name]
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    config = config_of(kind, settings)
    model = getattr(transformers, kind + "ForCausalLM")(config)
    randomise(model, dtype, generator)
    folder = out / name
    shutil.rmtree(folder, ignore_errors=True)
    model.to(dtype).save_pretrained(folder, **({"max_shard_size": shard} if shard else {}))
    written = json.loads((folder / "config.json").read_text())
    write_json(folder / "config_v4.json", old_words(written))
    (folder / "generation_config.json").unlink(missing_ok=True)

    tokens = random_tokens(VOCAB, LENGTHS.get(name, LENGTHS["default"]), generator)
    save_tokens(folder / "inputs.safetensors", tokens)
    model = load_base(folder)              # from the file, as a reader has it
    logits, loss = forward(model, tokens["input_ids"], tokens["attention_mask"], tokens["labels"])
    loss.backward()
    logits, loss = logits.detach(), loss.detach()
    grads = {n: p.grad.contiguous() for n, p in model.named_parameters() if any(g in n for g in GRADS)}
    if not model.config.tie_word_embeddings:
        grads["lm_head.weight"] = model.lm_head.weight.grad.contiguous()
    save_file({"logits": logits.contiguous(), "loss": loss.reshape(1)}, str(folder / "logits.safetensors"))
    save_file(grads, str(folder / "grads.safetensors"))

    # the old words must mean the same model
    with tempfile.TemporaryDirectory() as tmp:
        for f in folder.glob("model*"):
            shutil.copy(f, tmp)
        shutil.copy(folder / "config_v4.json", pathlib.Path(tmp) / "config.json")
        with torch.no_grad():
            again, _ = forward(load_base(tmp), tokens["input_ids"], tokens["attention_mask"])
    same = compare(again, logits, tokens["attention_mask"], 0.0)
    if same["max_abs_diff"] != 0:
        raise SystemExit(f"{name}: config_v4.json gives other logits: {same}")
    # and the variant must matter: without its speciality the logits are others
    meta = dict(variant=name, purpose=purpose, weights=dtype_name, loss=float(loss), max_abs_logit=float(logits.abs().max()),
                grad_global_norm=float(torch.stack([p.grad.norm() for p in model.parameters()]).norm()),
                **versions("torch", "transformers"))
    if "rope_scaling" in settings:
        plain = config_of(kind, {k: v for k, v in settings.items() if k != "rope_scaling"})
        other = getattr(transformers, kind + "ForCausalLM")(plain).eval()
        other.load_state_dict(model.state_dict())
        with torch.no_grad():
            unscaled, _ = forward(other, tokens["input_ids"], tokens["attention_mask"])
        meta["logits_without_rope_scaling_differ_by"] = float((unscaled - logits).abs().max())
    write_json(folder / "meta.json", meta)
    return folder, meta


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--out", default=ROOT / "tests" / "data" / "llama_variants", type=pathlib.Path)
    ap.add_argument("--only", nargs="*", choices=list(VARIANTS))
    ap.add_argument("--seed", type=int, default=7)
    a = ap.parse_args()
    torch.set_num_threads(1)
    for i, name in enumerate(VARIANTS):
        if a.only and name not in a.only:
            continue
        folder, meta = make(name, a.out, a.seed + i)
        size = sum(f.stat().st_size for f in folder.iterdir())
        print(json.dumps({"made": name, "bytes": size, "loss": meta["loss"], "max_abs_logit": meta["max_abs_logit"], "files": sorted(f.name for f in folder.iterdir())}))


if __name__ == "__main__":
    main()
