#!/usr/bin/env python3
"""What quantising a base costs, and what a LoRA on it wins back: the table of docs/memory.md.

  scripts/quantised_quality.py                     # SmolLM2 and the conversations of `retune fetch chatterbot`, about 5 minutes on two cores
  scripts/quantised_quality.py --no-train          # perplexities of the bases only
  scripts/quantised_quality.py --text FILE         # those on a text of your own
  scripts/quantised_quality.py --seeds 42,43,44

For every storage: the perplexity of the base on a plain text (the conversations' sentences one after the other), and on held-out answers before and
after the same LoRA run on it. `won back` is the share of the perplexity lost by quantising that is gone after training:
1 - (trained on storage - trained on f32) / (storage - f32), of the answers.
"""
import argparse, json, pathlib, statistics, subprocess, sys, tempfile

ROOT = pathlib.Path(__file__).resolve().parents[1]
STORAGES = {"f32": [], "nf4": ["--double-quant=false"], "nf4, double": [], "fp4": [], "int4": [], "int8": []}


def parse():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--retune", type=pathlib.Path, help="the program (default: built here)")
    ap.add_argument("--text", type=pathlib.Path, help="a plain text (.txt)")
    ap.add_argument("--no-train", action="store_true")
    ap.add_argument("--seeds", default="42")
    ap.add_argument("--steps", default="120")
    ap.add_argument("--out", type=pathlib.Path, default=ROOT / "target" / "quantised-quality.json")
    return ap.parse_args()


def said(command):
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stderr[-2000:]}")
    return done.stdout


def fetched(retune, what):
    said([retune, "fetch", what])
    return pathlib.Path(said([retune, "fetch", what, "--print-path"]).strip())


def storage_flags(name):
    return ["--storage", name.split(",")[0], *STORAGES[name]]


def perplexity(retune, model, data, name, adapter=None):
    command = [retune, "eval", "--model", model, "--data", data, "--json", *storage_flags(name)]
    found = json.loads(said(command + (["--adapter", adapter] if adapter else [])).strip().splitlines()[-1])
    return found["perplexity"]


def plain_text(rows, folder):
    """The sentences of all conversations, once each, in paragraphs of about 300 words."""
    said = dict.fromkeys(m["content"].strip() for row in rows.read_text().split("\n") if row for m in json.loads(row)["messages"])
    paragraphs, words = [[]], 0
    for sentence in said:
        paragraphs[-1].append(sentence)
        words += len(sentence.split())
        if words > 300:
            paragraphs.append([])
            words = 0
    path = folder / "text.jsonl"
    path.write_text("".join(json.dumps({"text": " ".join(p)}) + "\n" for p in paragraphs if p))
    return path


def trained(retune, model, train, held, name, seed, steps, folder):
    out = folder / f"{name.replace(', ', '-')}-{seed}"
    said([retune, "train", "--model", model, "--data", train, "--method", "lora", "--rank", "16", "--steps", steps, "--batch", "8", "--lr", "5e-4",
          "--seed", seed, "--out", out, "--json", *storage_flags(name)])
    return perplexity(retune, model, held, name, out)


def main():
    a = parse()
    if not a.retune:
        subprocess.run(["cargo", "build", "--release"], cwd=ROOT, check=True)
    retune = (a.retune or ROOT / "target" / "release" / "retune").resolve()
    model, train = fetched(retune, "smollm2"), fetched(retune, "chatterbot")
    held = train.parent / "heldout.jsonl"
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        text = a.text or plain_text(train.parent / "all.jsonl", folder)
        for name in STORAGES:
            results[name] = {"text": perplexity(retune, model, text, name), "base": perplexity(retune, model, held, name)}
            print(f"{name}: text {results[name]['text']:.2f}, answers {results[name]['base']:.2f}", flush=True)
        for name in () if a.no_train else ("f32", "nf4, double"):
            runs = [trained(retune, model, train, held, name, seed, a.steps, folder) for seed in a.seeds.split(",")]
            results[name] |= {"trained": statistics.mean(runs), "runs": runs}
            print(f"{name}, trained: {results[name]['trained']:.2f} {runs}", flush=True)
    exact = results["f32"]
    print("\n| storage | text | held-out answers | after LoRA | won back |\n|---|---|---|---|---|")
    for name, r in results.items():
        won = ""
        if "trained" in r and name != "f32":
            won = f"{100 * (1 - (r['trained'] - exact['trained']) / (r['base'] - exact['base'])):.0f} %"
        print(f"| {name} | {r['text']:.2f} | {r['base']:.2f} | {format(r['trained'], '.2f') if 'trained' in r else '–'} | {won or '–'} |")
    a.out.parent.mkdir(parents=True, exist_ok=True)
    a.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
