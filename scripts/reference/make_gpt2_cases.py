"""Makes tiny random GPT-2, BERT, RoBERTa and DistilBERT models and, for each tuning method, what torch and PEFT compute with them.

  python scripts/reference/make_gpt2_cases.py [--out tests/data/parity] [--only CASE ...]

A base folder (`gpt2_base`, `bert_base`) holds config.json and model.safetensors once; a case of it names it in meta.json (`base`). The small
models of `bert_tokcls_full`, `bert_mlm_full`, `roberta_full` and `distilbert_full` lie in their own folders. A case's files are those of every
parity case: inputs, logits (with the loss), trainable_init, grads, step1, adapter_config.json and adapter_model.safetensors where PEFT writes
them, meta.json with the losses of five AdamW steps (lr 1e-2, weight decay 0.01 on everything, no clipping). No tensor is at its usual initial value: biases,
LayerNorms and everything trainable are drawn at random. All f32, eval mode, rows padded on the right.
"""
import argparse, json, pathlib, shutil, tempfile
import torch
from reference import ROOT, random_tokens, save_file, versions, write_json

LENGTHS = [14, 9, 11, 5]
CLASSES = [2, 0, 1, 2]


def configs():
    """name: (transformers config, is it a base that several cases share)"""
    import transformers as t
    bert = dict(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, num_hidden_layers=2, num_attention_heads=4, pad_token_id=0)
    small = bert | dict(vocab_size=128, hidden_size=32, intermediate_size=48, max_position_embeddings=40)
    return {
        "gpt2_base": t.GPT2Config(vocab_size=256, n_positions=128, n_embd=64, n_layer=2, n_head=4, n_inner=128, resid_pdrop=0.0, embd_pdrop=0.0,
                                  attn_pdrop=0.0, summary_first_dropout=0.0, bos_token_id=1, eos_token_id=2),
        "bert_base": t.BertConfig(vocab_size=256, hidden_size=64, intermediate_size=128, max_position_embeddings=64, num_labels=3, **bert),
        "bert_tokcls_full": t.BertConfig(num_labels=5, id2label=dict(enumerate(["O", "B-PER", "I-PER", "B-LOC", "I-LOC"])),
                                         label2id={"O": 0, "B-PER": 1, "I-PER": 2, "B-LOC": 3, "I-LOC": 4}, **small),
        "bert_mlm_full": t.BertConfig(**small),
        # RoBERTa counts positions from pad_token_id + 1
        "roberta_full": t.RobertaConfig(num_labels=3, type_vocab_size=1, **(small | dict(pad_token_id=1, max_position_embeddings=42))),
        "distilbert_full": t.DistilBertConfig(vocab_size=128, dim=32, hidden_dim=48, n_layers=2, n_heads=4, max_position_embeddings=40, num_labels=3,
                                              dropout=0.0, attention_dropout=0.0, seq_classif_dropout=0.0, pad_token_id=0),
    }


def class_of(name):
    import transformers as t
    return {"gpt2_base": t.GPT2LMHeadModel, "bert_base": t.BertForSequenceClassification, "bert_tokcls_full": t.BertForTokenClassification,
            "bert_mlm_full": t.BertForMaskedLM, "roberta_full": t.RobertaForSequenceClassification,
            "distilbert_full": t.DistilBertForSequenceClassification}[name]


# name: (base, task, method, options)
CASES = {
    "gpt2_full": ("gpt2_base", "lm", "full", {}),
    "gpt2_lora": ("gpt2_base", "lm", "lora", dict(target_modules=["c_attn", "c_proj", "c_fc"], fan_in_fan_out=True)),
    "gpt2_lora_dora": ("gpt2_base", "lm", "lora", dict(target_modules=["c_attn", "c_proj", "c_fc"], fan_in_fan_out=True, use_dora=True)),
    "gpt2_ia3": ("gpt2_base", "lm", "ia3", dict(target_modules=["c_attn", "mlp.c_proj"], feedforward_modules=["mlp.c_proj"], fan_in_fan_out=True)),
    "gpt2_prompt_tuning": ("gpt2_base", "lm", "prompt_tuning", {}),
    "gpt2_prefix_tuning": ("gpt2_base", "lm", "prefix_tuning", {}),
    "gpt2_p_tuning": ("gpt2_base", "lm", "p_tuning", dict(encoder_hidden_size=32)),
    "gpt2_p_tuning_lstm": ("gpt2_base", "lm", "p_tuning", dict(encoder_hidden_size=8, encoder_reparameterization_type="LSTM")),
    "gpt2_bitfit": ("gpt2_base", "lm", "bitfit", {}),
    "gpt2_seqcls_lora": ("gpt2_base", "classes", "lora", dict(target_modules=["c_attn"], fan_in_fan_out=True, modules_to_save=["score"])),
    "bert_full": ("bert_base", "classes", "full", {}),
    "bert_lora": ("bert_base", "classes", "lora", dict(target_modules=["query", "value"])),
    "bert_lora_dora": ("bert_base", "classes", "lora", dict(target_modules=["query", "value"], use_dora=True)),
    "bert_ia3": ("bert_base", "classes", "ia3", dict(target_modules=["key", "value", "output.dense"], feedforward_modules=["output.dense"])),
    "bert_prompt_tuning": ("bert_base", "classes", "prompt_tuning", {}),
    "bert_prefix_tuning": ("bert_base", "classes", "prefix_tuning", {}),
    "bert_p_tuning": ("bert_base", "classes", "p_tuning", dict(encoder_hidden_size=32)),
    "bert_bitfit": ("bert_base", "classes", "bitfit", {}),
    "bert_tokcls_full": ("bert_tokcls_full", "tags", "full", {}),
    "bert_mlm_full": ("bert_mlm_full", "masked", "full", {}),
    "roberta_full": ("roberta_full", "classes", "full", {}),
    "distilbert_full": ("distilbert_full", "classes", "full", {}),
}


def draw(name, p, g):
    x = torch.randn(p.shape, generator=g)
    if p.dim() == 1 and ("norm" in name.lower() or ".ln_" in name) and name.endswith("weight"):
        return 1 + 0.2 * x
    return 0.2 * x if p.dim() == 1 else 0.15 * x


def randomise(named, g):
    with torch.no_grad():
        for name, p in sorted(named):
            p.copy_(draw(name, p, g))


def make_base(name, out, seed):
    folder = out / name
    shutil.rmtree(folder, ignore_errors=True)
    model = class_of(name)(configs()[name])
    randomise(model.named_parameters(), torch.Generator().manual_seed(seed))
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)


def load(base, task, out):
    """The model of a case and the config.json it needs beyond the base's, if any."""
    import transformers as t
    if base == "gpt2_base" and task == "classes":
        config = t.GPT2Config.from_pretrained(out / base, num_labels=3, pad_token_id=0)
        model = t.GPT2ForSequenceClassification.from_pretrained(out / base, config=config, dtype=torch.float32, attn_implementation="eager")
    else:
        config = None
        model, info = class_of(base).from_pretrained(out / base, dtype=torch.float32, attn_implementation="eager", output_loading_info=True)
        problems = {k: sorted(map(str, v)) for k, v in info.items() if v}
        if problems:
            raise SystemExit(f"{base}: transformers did not load the weights cleanly: {problems}")
    model.config.use_cache = False
    model.name_or_path = model.config._name_or_path = ""
    return model.eval(), config


def inputs_of(model, task, g):
    vocab, pad = model.config.vocab_size, model.config.pad_token_id or 0
    tokens = random_tokens(vocab, LENGTHS, g)
    real = tokens["attention_mask"].bool()
    tokens["input_ids"] = tokens["input_ids"].masked_fill(~real, pad)
    if task == "classes":
        tokens["labels"] = torch.tensor(CLASSES)
    elif task == "tags":       # the first token of a row and every fifth carry no tag
        tags = torch.randint(0, model.config.num_labels, real.shape, generator=g)
        tokens["labels"] = tags.masked_fill(~real | (torch.arange(real.shape[1]) % 5 == 0), -100)
    elif task == "masked":     # every third token is masked (id 2) and asked for
        asked = real & (torch.arange(real.shape[1]) % 3 == 1)
        tokens["labels"] = tokens["input_ids"].masked_fill(~asked, -100)
        tokens["input_ids"] = tokens["input_ids"].masked_fill(asked, 2)
    if model.config.model_type == "bert":   # a second sentence from the middle on
        half = (torch.tensor(LENGTHS) // 2)[:, None]
        tokens["token_type_ids"] = ((torch.arange(real.shape[1])[None] >= half) & real).long()
    return tokens


def peft_config(method, task, options):
    import peft
    kind = {"lm": "CAUSAL_LM", "classes": "SEQ_CLS"}[task]
    if method == "lora":
        return peft.LoraConfig(task_type=kind, r=4, lora_alpha=8, lora_dropout=0.0, **options)
    if method == "ia3":
        return peft.IA3Config(task_type=kind, **options)
    virtual = dict(task_type=kind, num_virtual_tokens=5)
    if method == "prompt_tuning":
        return peft.PromptTuningConfig(**virtual)
    if method == "prefix_tuning":
        return peft.PrefixTuningConfig(**virtual)
    return peft.PromptEncoderConfig(**virtual, **options)


def tune(model, task, method, options, g):
    """Chooses what is trained; a PEFT method's tensors are drawn at random."""
    if method == "full":
        return model
    if method == "bitfit":
        for name, p in model.named_parameters():
            p.requires_grad_(name.endswith("bias") or name.startswith("classifier"))
        return model
    import peft
    torch.manual_seed(1)
    model = peft.get_peft_model(model, peft_config(method, task, options))
    with torch.no_grad():
        for name, p in sorted(model.named_parameters()):
            if not p.requires_grad:
                continue
            x = torch.randn(p.shape, generator=g)
            if "magnitude" in name or "ia3" in name:
                p.mul_(1 + 0.2 * x)
            elif "prompt_encoder" in name and method != "p_tuning":
                p.copy_(0.5 * x)
            else:
                p.copy_(0.2 * x)
    return model.eval()


def forward(model, tokens):
    keys = ("input_ids", "attention_mask", "token_type_ids", "labels")
    out = model(**{k: tokens[k] for k in keys if k in tokens})
    return out.logits, out.loss


def merged_difference(model, tokens, logits):
    """How far the logits move when PEFT merges, or None where it can't."""
    with torch.no_grad():
        merged = model.merge_and_unload()
        return float((forward(merged, tokens)[0] - logits).abs().max())


def trainable(model):
    return {n: p for n, p in model.named_parameters() if p.requires_grad}


def copies(tensors):
    return {n: t.detach().clone().contiguous() for n, t in tensors.items()}


def tidy_adapter(folder):
    """PEFT names the base by the path it came from; ours has none."""
    (folder / "README.md").unlink(missing_ok=True)
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    config["base_model_name_or_path"] = None
    for key in ("target_modules", "feedforward_modules"):   # sets, in another order on every run
        if isinstance(config.get(key), list):
            config[key].sort()
    path.write_text(json.dumps(config, indent=2, sort_keys=True))


def make(name, out, seed):
    base, task, method, options = CASES[name]
    folder = out / name
    if base == name:
        make_base(base, out, seed)
    else:
        shutil.rmtree(folder, ignore_errors=True)
    g = torch.Generator().manual_seed(seed + 1)
    model, own_config = load(base, task, out)
    folder.mkdir(parents=True, exist_ok=True)
    tokens = inputs_of(model, task, g)
    model = tune(model, task, method, options, g)
    if own_config is not None:
        own_config.architectures = ["GPT2ForSequenceClassification"]
        own_config._name_or_path = ""
        own_config.save_pretrained(folder)
    is_peft = method not in ("full", "bitfit")
    if is_peft:
        model.save_pretrained(folder)
        tidy_adapter(folder)
    save_file({k: v.contiguous() for k, v in tokens.items()}, str(folder / "inputs.safetensors"))
    if method != "full":
        save_file(copies(trainable(model)), str(folder / "trainable_init.safetensors"))
    if method == "full" and name != "bert_mlm_full":
        with torch.no_grad():
            keys = ("input_ids", "attention_mask", "token_type_ids")
            hidden = model(**{k: tokens[k] for k in keys if k in tokens}, output_hidden_states=True).hidden_states
        save_file({f"hidden_{i}": h.contiguous() for i, h in enumerate(hidden)}, str(folder / "hidden_states.safetensors"))

    optimizer = torch.optim.AdamW(trainable(model).values(), lr=1e-2, weight_decay=0.01)
    losses, meta = [], {}
    for step in range(5):
        optimizer.zero_grad()
        logits, loss = forward(model, tokens)
        loss.backward()
        losses.append(float(loss.detach()))
        if step == 0:
            grads = {n: p.grad for n, p in trainable(model).items() if p.grad is not None}
            save_file({"logits": logits.detach().contiguous(), "loss": loss.detach().reshape(1)}, str(folder / "logits.safetensors"))
            save_file(copies(grads), str(folder / "grads.safetensors"))
            meta = dict(no_grad_for=[n for n, p in trainable(model).items() if p.grad is None],
                        # a key's bias cannot change the softmax: its gradient is rounding noise, and so is its first step
                        noise=[n for n in grads if n.endswith(("key.bias", "k_lin.bias", "c_attn.bias"))],
                        grad_global_norm=float(torch.stack([x.norm() for x in grads.values()]).norm()),
                        trainable=sum(p.numel() for p in trainable(model).values()), loss=losses[0])
            first = logits.detach()
        optimizer.step()
        if step == 0:
            save_file(copies(trainable(model)), str(folder / "step1.safetensors"))
    meta["adamw_losses"] = losses
    if method in ("lora", "ia3"):   # from the file, with its first values
        import peft
        again, _ = load(base, task, out)
        meta["merged_max_abs_diff"] = merged_difference(peft.PeftModel.from_pretrained(again, folder).eval(), tokens, first)
    write_json(folder / "meta.json", dict(case=name, base=base, **versions("torch", "transformers", "peft"), **meta))
    return meta


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--out", default=ROOT / "tests" / "data" / "parity", type=pathlib.Path)
    ap.add_argument("--only", nargs="*", choices=list(CASES))
    ap.add_argument("--seed", type=int, default=11)
    args = ap.parse_args()
    torch.set_num_threads(1)
    for base in ("gpt2_base", "bert_base"):
        make_base(base, args.out, args.seed)
    for name in args.only or CASES:
        meta = make(name, args.out, args.seed)
        print(name, meta["trainable"], round(meta["grad_global_norm"], 3), meta.get("merged_max_abs_diff"), [round(x, 4) for x in meta["adamw_losses"]], meta["no_grad_for"])


if __name__ == "__main__":
    main()
