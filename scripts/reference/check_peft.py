"""Trains an adapter of every kind with Retune on tiny new models, loads each into real PEFT, and compares the logits (CPU, f32).

  cargo build --release
  python scripts/reference/check_peft.py --retune target/release/retune [--work DIR] [--only NAME ...]
  python scripts/reference/check_peft.py --retune target/release/retune --pair MODEL ADAPTER [--pair ...]

Without --pair: `retune init` makes a tiny Llama (tied, biases) and a tiny GPT-2, `retune train` three steps of each case of CASES,
`retune logits` its logits, and check_adapter.py compares them with PEFT's on the same base, file and tokens. With --pair, adapters that are
there already (on a base with a language-model head) are checked instead, prompts and prefixes too.
Prints one line a case. Exit status: 0 all right; 1 something differs or could not be made; 2 wrong usage.
"""
import argparse, json, pathlib, subprocess, sys, tempfile
import torch
from reference import random_tokens, save_tokens

HERE = pathlib.Path(__file__).resolve().parent
VOCAB = 300
LLAMA = dict(model_type="llama", architectures=["LlamaForCausalLM"], hidden_size=32, intermediate_size=48, num_hidden_layers=2,
             num_attention_heads=4, num_key_value_heads=2, vocab_size=VOCAB, max_position_embeddings=128, rms_norm_eps=1e-5,
             tie_word_embeddings=True, attention_bias=True, mlp_bias=True, initializer_range=0.3, bos_token_id=0, eos_token_id=0)
GPT2 = dict(model_type="gpt2", architectures=["GPT2LMHeadModel"], n_embd=32, n_layer=2, n_head=4, n_inner=48, vocab_size=VOCAB,
            n_positions=128, initializer_range=0.3, bos_token_id=0, eos_token_id=0)

# Name: base, flags of `retune train`.
CASES = {
    "lora": ("llama", "--method lora"),
    "rslora, patterns": ("llama", "--method lora --rslora --rank-pattern q_proj=4,layers.1.mlp.up_proj=2 --alpha-pattern v_proj=5"),
    "layers, exclude": ("llama", "--method lora --layers 1 --exclude k_proj"),
    "dora": ("llama", "--method lora --dora"),
    "dora, gpt2": ("gpt2", "--method lora --dora"),
    "bias of B": ("llama", "--method lora --lora-bias"),
    "biases of targets": ("llama", "--method lora --targets q_proj,v_proj --lora-train-bias lora_only"),
    "all biases": ("llama", "--method lora --targets q_proj,v_proj --lora-train-bias all"),
    "table": ("llama", "--method lora --targets q_proj,embed_tokens"),
    "table, dora": ("llama", "--method lora --targets q_proj,embed_tokens --dora"),
    "table and head held whole": ("llama", "--method lora --modules-to-save embed_tokens,lm_head,norm"),
    "pissa": ("llama", "--method lora --init pissa"),
    "pissa, rslora, gpt2": ("gpt2", "--method lora --init pissa --rslora"),
    "pissa_niter_4": ("llama", "--method lora --init pissa_niter_4"),
    "olora": ("llama", "--method lora --init olora"),
    "gaussian": ("llama", "--method lora --init gaussian"),
    "ia3": ("llama", "--method ia3"),
    "ia3, gpt2": ("gpt2", "--method ia3"),
}


def run(*command):
    """stdout of a command; what it said, if it failed."""
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.stdout


def check(retune, model, adapter, ids, work, tolerance):
    """check_adapter.py's report."""
    logits = work / "logits.safetensors"
    run(retune, "logits", "--model", model, "--adapter", adapter, "--ids", ids, "--out", logits, "--any-base")
    done = subprocess.run([sys.executable, HERE / "check_adapter.py", "--model", model, "--adapter", adapter, "--ids", ids,
                           "--logits", logits, "--tolerance", str(tolerance)], capture_output=True, text=True)
    try:
        return json.loads(done.stdout.strip().splitlines()[-1])
    except (IndexError, ValueError):
        raise RuntimeError(done.stderr[-2000:])


def bases(retune, work):
    """The tiny models, and rows to train on."""
    rows = work / "rows.jsonl"
    words = "the cat sat on a mat and saw two dogs run by while rain fell over quiet hills".split()
    texts = [" ".join(words[(i * j + j) % len(words)] for j in range(3, 15)) for i in range(1, 25)]
    rows.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    made = {}
    for name, config in (("llama", LLAMA), ("gpt2", GPT2)):
        path, made[name] = work / f"{name}.json", work / name
        path.write_text(json.dumps(config))
        run(retune, "init", "--config", path, "--train-tokenizer", rows, "--out", made[name], "--seed", 3)
    return made, rows


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--retune", required=True, type=pathlib.Path, help="the program")
    ap.add_argument("--work", type=pathlib.Path, help="keep everything in this folder (default: a temporary one)")
    ap.add_argument("--only", nargs="*", choices=sorted(CASES), help="these cases alone")
    ap.add_argument("--pair", nargs=2, action="append", metavar=("MODEL", "ADAPTER"), help="check this adapter on this base instead")
    ap.add_argument("--tolerance", type=float, default=1e-4, help="times max|reference| (default 1e-4)")
    a = ap.parse_args()
    retune, failed = a.retune.resolve(), 0
    with tempfile.TemporaryDirectory() as temporary:
        work = (a.work or pathlib.Path(temporary)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        if a.pair:
            todo = [(adapter, pathlib.Path(model), pathlib.Path(adapter), None) for model, adapter in a.pair]
        else:
            made, rows = bases(retune, work)
            todo = [(name, made[base], work / name.replace(", ", "-").replace(" ", "-"), flags.split())
                    for name, (base, flags) in CASES.items() if not a.only or name in a.only]
        for name, model, adapter, flags in todo:
            try:
                if flags is not None:
                    run(retune, "train", "--model", model, "--data", rows, "--out", adapter, "--steps", 3, "--lr", 0.03,
                        "--train-on", "all", "--batch", 4, "--storage", "f32", *flags)
                config = json.loads((model / "config.json").read_text())
                ids = work / "ids.safetensors"
                save_tokens(ids, random_tokens(config["vocab_size"], [11, 7], torch.Generator().manual_seed(1)))
                report = check(retune, model, adapter, ids, work, a.tolerance)
                ok = report["ok"] and report.get("adapter_moves_logits_by", 0) > 1e-3
                what = f"off by {report.get('relative', float('nan')):.1e}, moves logits by {report.get('adapter_moves_logits_by', 0):.2f}"
                if report["failed"]:
                    what += f"; failed: {', '.join(report['failed'])} " + str({k: report[k] for k in report["failed"] if k in report})
            except RuntimeError as error:
                ok, what = False, str(error)
            failed += not ok
            print(f"{'ok    ' if ok else 'FAILED'} {name}: {what}", flush=True)
    print(f"{len(todo) - failed} of {len(todo)} agree")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
