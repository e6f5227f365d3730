"""Makes a tiny random Whisper and, for each tuning method, what torch and PEFT compute with it.

  python scripts/reference/make_whisper_cases.py [--out tests/data/parity] [--only CASE ...]

`whisper_base` holds config.json and model.safetensors (2 + 2 layers, 32 channels, 80 mel bands, windows of 48 frames). A case's files are those
of every parity case: inputs (input_features [B, bands, frames], decoder_input_ids, attention_mask of those, labels), logits (with the loss),
grads, step1, adapter_config.json and adapter_model.safetensors where PEFT writes them, meta.json with the losses of five AdamW steps (lr 1e-2,
weight decay 0.01 on everything, no clipping). No tensor is at its usual initial value but for the sinusoids of the encoder. All f32, eval
mode, transcripts padded on the right. `encoder.safetensors` has the encoder's last rows.
"""
import argparse, json, pathlib, shutil
import torch
from reference import ROOT, save_file, versions, write_json

LENGTHS = [9, 5, 7]
FRAMES = 48


def config():
    import transformers as t
    return t.WhisperConfig(vocab_size=160, num_mel_bins=80, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
                           decoder_attention_heads=2, encoder_ffn_dim=48, decoder_ffn_dim=64, max_source_positions=FRAMES // 2,
                           max_target_positions=24, dropout=0.0, attention_dropout=0.0, activation_dropout=0.0, pad_token_id=0, bos_token_id=1,
                           eos_token_id=2, decoder_start_token_id=3, suppress_tokens=None, begin_suppress_tokens=None)


CASES = {"whisper_full": ("full", {}), "whisper_lora": ("lora", dict(target_modules=["q_proj", "v_proj"]))}


def draw(name, p, g):
    x = torch.randn(p.shape, generator=g)
    if p.dim() == 1 and "norm" in name and name.endswith("weight"):
        return 1 + 0.2 * x
    return 0.2 * x if p.dim() == 1 else 0.15 * x


def randomise(named, g):
    with torch.no_grad():
        for name, p in sorted(named):
            if name != "model.encoder.embed_positions.weight":
                p.copy_(draw(name, p, g))


def load(out):
    import transformers as t
    model = t.WhisperForConditionalGeneration.from_pretrained(out / "whisper_base", dtype=torch.float32, attn_implementation="eager")
    model.config.use_cache = False
    # WhisperEncoder freezes its sinusoids, and from_pretrained forgets that
    model.model.encoder.embed_positions.requires_grad_(False)
    model.name_or_path = model.config._name_or_path = ""
    return model.eval()


def make_base(out, seed):
    import transformers as t
    folder = out / "whisper_base"
    shutil.rmtree(folder, ignore_errors=True)
    model = t.WhisperForConditionalGeneration(config())
    randomise(model.named_parameters(), torch.Generator().manual_seed(seed))
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)


def inputs(g):
    longest = max(LENGTHS)
    mask = (torch.arange(longest)[None] < torch.tensor(LENGTHS)[:, None]).long()
    ids = torch.randint(4, 160, mask.shape, generator=g).masked_fill(mask == 0, 0)
    labels = torch.randint(4, 160, mask.shape, generator=g).masked_fill(mask == 0, -100)
    labels[:, 0] = -100   # a prompt's row without loss
    return dict(input_features=0.5 * torch.randn(len(LENGTHS), 80, FRAMES, generator=g), decoder_input_ids=ids, attention_mask=mask, labels=labels)


def trainable(model):
    return {n: p for n, p in model.named_parameters() if p.requires_grad}


def copies(named):
    return {n: p.detach().clone().contiguous() for n, p in named.items()}


def forward(model, x):
    out = model(input_features=x["input_features"], decoder_input_ids=x["decoder_input_ids"])
    loss = torch.nn.functional.cross_entropy(out.logits.flatten(0, 1), x["labels"].flatten(), ignore_index=-100)
    return out.logits, loss


def make(name, out, seed):
    method, options = CASES[name]
    folder = out / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    g = torch.Generator().manual_seed(seed + 1)
    model, x = load(out), inputs(g)
    if method == "lora":
        import peft
        model = peft.get_peft_model(model, peft.LoraConfig(r=4, lora_alpha=8, lora_dropout=0.0, **options)).eval()
        randomise(trainable(model).items(), g)
        model.save_pretrained(folder)
        (folder / "README.md").unlink(missing_ok=True)
        path = folder / "adapter_config.json"
        saved = json.loads(path.read_text())
        saved["base_model_name_or_path"] = None
        saved["target_modules"] = sorted(saved["target_modules"])
        write_json(path, saved)
    save_file({k: v.contiguous() for k, v in x.items()}, str(folder / "inputs.safetensors"))
    if method == "full":
        with torch.no_grad():
            rows = model.model.encoder(x["input_features"]).last_hidden_state
        save_file({"rows": rows.contiguous()}, str(folder / "encoder.safetensors"))
    optimizer = torch.optim.AdamW(trainable(model).values(), lr=1e-2, weight_decay=0.01)
    losses, meta = [], {}
    for step in range(5):
        optimizer.zero_grad()
        logits, loss = forward(model, x)
        loss.backward()
        losses.append(float(loss.detach()))
        if step == 0:
            grads = {n: p.grad for n, p in trainable(model).items() if p.grad is not None}
            save_file({"logits": logits.detach().contiguous(), "loss": loss.detach().reshape(1)}, str(folder / "logits.safetensors"))
            save_file(copies(grads), str(folder / "grads.safetensors"))
            meta = dict(grad_global_norm=float(torch.stack([v.norm() for v in grads.values()]).norm()),
                        trainable=sum(p.numel() for p in trainable(model).values()), loss=losses[0])
        optimizer.step()
        if step == 0:
            save_file(copies(trainable(model)), str(folder / "step1.safetensors"))
    write_json(folder / "meta.json", dict(case=name, base="whisper_base", **versions("torch", "transformers", "peft"), **meta, adamw_losses=losses))
    return meta


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--out", default=ROOT / "tests" / "data" / "parity", type=pathlib.Path)
    ap.add_argument("--only", nargs="*", choices=list(CASES))
    ap.add_argument("--seed", type=int, default=11)
    args = ap.parse_args()
    torch.set_num_threads(1)
    make_base(args.out, args.seed)
    for name in args.only or CASES:
        meta = make(name, args.out, args.seed)
        print(name, meta["trainable"], round(meta["grad_global_norm"], 3), round(meta["loss"], 4))


if __name__ == "__main__":
    main()
