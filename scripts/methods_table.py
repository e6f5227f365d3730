#!/usr/bin/env python3
"""Every method on MiniLM and the `sentiment` set, over folds: the table of docs/methods.md.

  scripts/methods_table.py                            # all methods, five folds: half an hour on two quiet cores
  scripts/methods_table.py --methods lora,head --folds 2
  scripts/methods_table.py --table                    # only print the table of what is in --out already

Builds the program, fetches model and data with it, splits the 3,000 sentences into folds (by the hash of each text, so that a text is never on
both sides), and runs `retune train` once for each method and fold: 2,400 sentences, three epochs, batch 16, the 600 others held out. Runs that
--out holds already are not made again. Speed and memory are of the runs themselves: on a busy machine they are for orientation only.
"""
import argparse, hashlib, json, math, os, pathlib, statistics, subprocess, sys, time

ROOT = pathlib.Path(__file__).resolve().parents[1]

# name: (method, learning rate, settings of the run file)
METHODS = {
    "full": ("full", 1e-4, ""),
    "partial, last 2 blocks": ("partial", 2e-4, "[partial]\nlast_blocks = 2"),
    "bitfit": ("bitfit", 2e-3, ""),
    "sparse, random 1 %": ("sparse", 2e-3, "[sparse]\nselection = 'random'\nshare = 0.01"),
    "sparse, magnitude 1 %": ("sparse", 1e-3, "[sparse]\nselection = 'magnitude'\nshare = 0.01"),
    "sparse, fisher 1 %": ("sparse", 1e-3, "[sparse]\nselection = 'fisher'\nshare = 0.01"),
    "head (pooler)": ("head", 5e-3, ""),
    "head (mean pooling)": ("head", 2e-2, ""),
    "lora r 8, query value": ("lora", 2e-3, "[lora]\nrank = 8\nlora_alpha = 16\ntarget_modules = ['query', 'value']"),
    "lora r 8, all linears": ("lora", 1e-3, "[lora]\nrank = 8\nlora_alpha = 16"),
    "dora r 8, query value": ("lora", 2e-3, "[lora]\nrank = 8\nlora_alpha = 16\nuse_dora = true\ntarget_modules = ['query', 'value']"),
    "ia3": ("ia3", 1e-2, ""),
    "adapter, Houlsby 16": ("adapter", 1e-3, "[adapter]\narchitecture = 'houlsby'\nreduction_factor = 16"),
    "adapter, Pfeiffer 16": ("adapter", 1e-3, "[adapter]\narchitecture = 'pfeiffer'\nreduction_factor = 16"),
    "prompt, 20 tokens": ("prompt", 1e-2, "[prompt]\nnum_virtual_tokens = 20"),
    "prefix, 20 tokens": ("prefix", 1e-2, "[prefix]\nnum_virtual_tokens = 20"),
}
POOLING = {"head (mean pooling)": "mean"}


def parse():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--methods", help="names of the table, or methods, comma-separated (default: all)")
    ap.add_argument("--folds", type=int, default=5, help="how many of the five folds")
    ap.add_argument("--epochs", type=int, default=3)
    ap.add_argument("--out", type=pathlib.Path, default=ROOT / "target" / "methods")
    ap.add_argument("--retune", type=pathlib.Path, help="the program (default: built here)")
    ap.add_argument("--table", action="store_true", help="run nothing")
    return ap.parse_args()


def program(a):
    if a.retune:
        return a.retune
    subprocess.run(["cargo", "build", "--release"], cwd=ROOT, check=True)
    return ROOT / "target" / "release" / "retune"


def fetched(retune, what):
    subprocess.run([retune, "fetch", what], check=True, stdout=subprocess.DEVNULL)
    return pathlib.Path(subprocess.run([retune, "fetch", what, "--print-path"], check=True, capture_output=True, text=True).stdout.strip())


def folds(rows, k=5):
    """k lists of rows, stratified by label; equal texts stay together."""
    parts = [[] for _ in range(k)]
    for label in sorted({row["label"] for row in rows}):
        texts = sorted({row["text"] for row in rows if row["label"] == label}, key=lambda t: hashlib.sha256(t.encode()).hexdigest())
        place = {text: i % k for i, text in enumerate(texts)}
        for row in rows:
            if row["label"] == label:
                parts[place[row["text"]]].append(row)
    return parts


def write_rows(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


def run(retune, name, fold, data, model, a):
    """One run's figures, from its log; made once."""
    method, lr, settings = METHODS[name]
    folder = a.out / f"{name.replace(' ', '-').replace(',', '').replace('%', 'pc').replace('(', '').replace(')', '')}-{fold}"
    result = folder / "figures.json"
    if result.exists():
        return json.loads(result.read_text())
    folder.mkdir(parents=True, exist_ok=True)
    train, held = data
    pooling = f"pooling = \"{POOLING[name]}\"\n" if name in POOLING else ""
    toml = f"""model = "{model}"
data = "{train}"
eval_data = "{held}"
out = "{folder / 'out'}"
method = "{method}"
epochs = {a.epochs}
batch_size = 16
lr = {lr}
seed = {fold}
keep_last = true
{pooling}{settings}
"""
    file = folder / "run.toml"
    file.write_text(toml)
    begin = time.perf_counter()
    with open(folder / "log.txt", "w") as log:
        child = subprocess.Popen([retune, "train", file], stdout=log, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(child.pid, 0)
    if status:
        print(f"{name}, fold {fold}: failed\n{(folder / 'log.txt').read_text()[-600:]}", file=sys.stderr)
        return None
    events = [json.loads(line) for line in (folder / "out" / "metrics.jsonl").read_text().split("\n") if line]
    of = lambda kind: [e for e in events if e["event"] == kind]
    steps, per_epoch = of("step"), of("started")[0]["steps_per_epoch"]
    rate = lambda part: sum(s["tokens"] for s in part) / max(1e-9, sum(s["tokens"] / s["tokens_per_s"] for s in part))
    seconds = lambda part: sum(s["tokens"] / s["tokens_per_s"] for s in part)
    figures = {
        "accuracy": of("eval")[-1]["metrics"]["accuracy"], "trainable": of("started")[0]["trainable_parameters"],
        "first_epoch_s": seconds(steps[:per_epoch]), "later_epoch_s": seconds(steps[per_epoch:]) / max(1, a.epochs - 1),
        "tokens_per_s": rate(steps), "peak_bytes": of("finished")[-1]["peak_bytes"], "peak_rss_mib": usage.ru_maxrss / 1024,
        "seconds": time.perf_counter() - begin, "load": os.getloadavg()[0],
    }
    result.write_text(json.dumps(figures, indent=1) + "\n")
    return figures


T95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776}


def interval(values):
    """Mean and half of the 95 % interval: of a mean over folds, or of the share that one fold of 600 finds."""
    mean = statistics.mean(values)
    if len(values) > 1:
        return mean, T95[len(values) - 1] * statistics.stdev(values) / math.sqrt(len(values))
    return mean, 1.96 * math.sqrt(mean * (100 - mean) / 600)


def table(results, total):
    full = next((r for name, r in results.items() if name == "full" and r), None)
    memory = statistics.median(f["peak_rss_mib"] for f in full) if full else None
    lines = ["| method | accuracy | against full | trained | share | epoch 1 | later epochs | peak memory | of full's |", "|---|---|---|---|---|---|---|---|---|"]
    for name, runs in results.items():
        if not runs:
            continue
        accuracy = [100 * f["accuracy"] for f in runs]
        mean, half = interval(accuracy)
        # The same folds: their own difficulty falls out of the differences.
        apart = [100 * (f["accuracy"] - g["accuracy"]) for f, g in zip(runs, full or [])]
        against = "–" if name == "full" or not apart else "{:+.1f} ± {:.1f}".format(*interval(apart)) if len(apart) > 1 else f"{apart[0]:+.1f}"
        mid = lambda key: statistics.median(f[key] for f in runs)
        # Others may have been at work: the quickest fold says most.
        least = lambda key: min(f[key] for f in runs)
        share = 100 * mid("trainable") / total
        ratio = f"{mid('peak_rss_mib') / memory:.2f}" if memory else "–"
        lines.append(f"| {name} | {mean:.1f} ± {half:.1f} % | {against} | {mid('trainable'):,.0f} | {share:.3g} % | {least('first_epoch_s'):.1f} s | {least('later_epoch_s'):.1f} s "
                     f"| {mid('peak_rss_mib'):.0f} MiB | {ratio} |")
    return "\n".join(lines)


def main():
    a = parse()
    wanted = [w.strip() for w in a.methods.split(",")] if a.methods else None
    names = [n for n in METHODS if not wanted or n in wanted or METHODS[n][0] in wanted]
    retune = None if a.table else program(a)
    if not a.table:
        model, data = fetched(retune, "minilm"), fetched(retune, "sentiment")
        rows = [json.loads(line) for line in (data / "all.jsonl").read_text().split("\n") if line]
        parts = folds(rows)
    results = {}
    for fold in range(a.folds):
        if not a.table:
            train = write_rows(a.out / f"train-{fold}.jsonl", [r for i, part in enumerate(parts) if i != fold for r in part])
            held = write_rows(a.out / f"held-{fold}.jsonl", parts[fold])
        for name in names:
            if a.table:
                slug = name.replace(' ', '-').replace(',', '').replace('%', 'pc').replace('(', '').replace(')', '')
                path = a.out / f"{slug}-{fold}" / "figures.json"
                figures = json.loads(path.read_text()) if path.exists() else None
            else:
                figures = run(retune.resolve(), name, fold, (train, held), model, a)
            if figures:
                results.setdefault(name, []).append(figures)
                if not a.table:
                    print(f"fold {fold}, {name}: {100 * figures['accuracy']:.1f} %, {figures['seconds']:.0f} s", flush=True)
    ordered = {name: results.get(name) for name in METHODS}
    full = ordered.get("full")
    print(table(ordered, full[0]["trainable"] if full else 22_713_986))


if __name__ == "__main__":
    main()
